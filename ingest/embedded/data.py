"""The folder of an embedded PostgreSQL: its lock, its data, its logins, and where its socket is.

Promises: data of another version or owner is never changed. Data is made whole or not at all. Each
problem is a StartError with the name of the folder and what to do.

The user that the server runs as may log in, and root, by `peer`: the kernel tells the server who
opened its socket. Both may take each role, since they could read the files anyway.

The folder of the socket belongs to that user alone (0700), and its path is short. A name in /tmp is
a random one, so another user of the machine cannot take it first. The URL of the server has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from ingest.embedded.programs import (
    DatabaseUser,
    clean_environment,
    command,
    database_user,
    find_binaries,
    major_of,
    may_enter,
    place,
)
from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import Lock, replace_private, sync_folder
from ingest.system.state_folder import is_alive

PORT = 5432  # only names the socket file
SOCKET = f".s.PGSQL.{PORT}"
_FILES = (SOCKET, f"{SOCKET}.lock")
PATH_BYTES_MAX = 103 - len(SOCKET) - 1  # of the folder; a socket's path has 103 bytes on macOS
SHARED = Path("/tmp")  # noqa: S108  mkdtemp makes the folder in it
LEFT_OVER_S = 60.0  # an empty folder that is younger may be of a server that is starting
PREVIOUS_S_MAX = 20.0  # for an earlier server on the same data that is shutting down
UNMARKED_S_MAX = 2.0  # from the end of its parent until its pid file says that it stops
LOG_BYTES_MAX = 8 * 1024**2
HAS_PROC = Path("/proc/self/cmdline").exists()
_MAP = "iot_ingest"
_ROLE_ALL_SINCE = 16  # the first version in which a map may name `all` roles
_HEAD = "# iot-ingest writes this file at each start of the embedded database.\n"


class Home(NamedTuple):
    """What is needed to start a server. `data` and `sockets` belong to `user`."""

    data: Path
    log: Path
    sockets: Path
    binaries: Path
    user: DatabaseUser


def try_lock(folder: Path) -> Lock | None:
    """Lock the folder, and make it if it is missing. Return None if another process has the lock.

    Nobody else may write into the folder, whatever the umask is. The database's user must be able
    to enter it, and as root that is another user.
    """
    mode = 0o755 if os.geteuid() == 0 else 0o700
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        elif (found := folder.stat()).st_mode & 0o022 and found.st_uid == os.geteuid():
            folder.chmod(mode)
        taken = Lock.try_take(folder / "postgres.lock", create=True)
        if taken is not None:
            taken.record(f"{os.getpid()}\n")
    except OSError as error:
        raise StartError(
            f"cannot lock the database in {folder}: {error.strerror}; choose another folder with "
            "--state-dir"
        ) from error
    return taken


def locked_by(folder: Path) -> str:
    """Return the pid of the process that has locked the folder, for people."""
    try:
        return (folder / "postgres.lock").read_text(errors="replace")[:20].strip() or "unknown"
    except OSError:
        return "unknown"


def prepare(folder: Path) -> Home:
    """Check a locked folder, and prepare all but the data. Blocks up to 1 s."""
    data = folder / "data"
    user = database_user(data)
    if user.uid >= 0 and not may_enter(user, folder):
        raise StartError(
            f"{folder} is inside a folder that the user {user.name} may not enter, and PostgreSQL "
            "does not run as root: choose another folder with --state-dir, for example "
            "/var/lib/iot-ingest"
        )
    binaries = place(user, find_binaries(), folder)
    if data.exists():
        _check_data(data, binaries)
    log = folder / "postgres.log"
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(folder / "postgres.log.1")
    return Home(
        data,
        log,
        make_socket_folder(folder, user, sockets_of(published_url(folder))),
        binaries,
        user,
    )


def _check_data(data: Path, binaries: Path) -> None:
    try:
        have = (data / "PG_VERSION").read_text().strip()
    except OSError as error:
        raise StartError(
            f"{data} exists but is not a PostgreSQL data folder: move it away, or choose another "
            "folder with --state-dir"
        ) from error
    ours = major_of(binaries)
    if have != str(ours):
        raise StartError(
            f"{data} was made by PostgreSQL {have}, but the programs in {binaries} are version "
            f"{ours}: set INGEST_PG_BIN to the programs of version {have}, or dump the data with "
            "them (pg_dump) and restore it into a new --state-dir"
        )


async def await_previous(data: Path) -> None:
    """Wait for the end of a server whose service has just died. Remove a pid file without a server.

    Raises StartError if a server of this data goes on running.
    """
    started_s = monotonic_s()
    pid_file = data / "postmaster.pid"
    while (lines := pid_file_lines(data)) and lines[0].isdecimal():
        pid = int(lines[0])
        if not _is_postgres_on(pid, data):
            # PostgreSQL would refuse to start if the number belongs to another process now. If a
            # child of the old server still lives, the shared memory blocks the start.
            pid_file.unlink(missing_ok=True)
            return
        patience_s = PREVIOUS_S_MAX if status_of(lines) == "stopping" else UNMARKED_S_MAX
        if monotonic_s() - started_s > patience_s:
            raise StartError(
                f"another PostgreSQL (pid {pid}) runs on {data}: stop it (kill -INT {pid}), or "
                "choose another folder with --state-dir"
            )
        await asyncio.sleep(0.02)


def pid_file_lines(data: Path) -> list[str]:
    """Return the lines of the server's pid file; none if there is no such file."""
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def status_of(lines: list[str]) -> str:
    """Return the server's state by its pid file: starting, ready, stopping, ..."""
    return lines[7].strip() if len(lines) > 7 else "starting"


def _is_postgres_on(pid: int, data: Path) -> bool:
    """Whether the process is a server of this data. Without /proc: whether it lives."""
    if HAS_PROC:
        try:
            return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
    return is_alive(pid)


async def make_data(home: Home) -> None:
    """Make the data if there is none. If it is killed, no part of it is taken for data."""
    if home.data.exists():
        return
    if not home.user.login:  # initdb asks for it, and says only that the user does not exist
        raise StartError(
            f"the user id {home.user.owner_uid} has no name here, and PostgreSQL makes a database "
            "only for a user with a name: run as such a user (in a container of our image: --user "
            "10001), or use a database of your own (INGEST_DATABASE_URL)"
        )
    # Each try has its own name: the children of an initdb that was killed may still write.
    for left in home.data.parent.glob("data.new*"):
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="data.new.", dir=home.data.parent))
    _give(new, home.user)
    locale = ["--locale=C"]
    if major_of(home.binaries) >= 17:  # it has its own UTF-8 rules; every system has C
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options = [
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--data-checksums",
        "--no-instructions",
    ]
    process = await asyncio.create_subprocess_exec(
        *command(home.user, home.binaries / "initdb", "-D", str(new), "-U", "postgres"),
        *options,
        *locale,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=clean_environment(),
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        text = output.decode(errors="replace").strip()[-600:]
        raise StartError(f"cannot make a database in {home.data.parent}: {text}")
    new.rename(home.data)
    sync_folder(home.data.parent)


def write_access_rules(data: Path, user: DatabaseUser, major: int) -> None:
    """Write pg_hba.conf and pg_ident.conf of the data, if they differ. Raises OSError."""
    role = "all" if major >= _ROLE_ALL_SINCE else "postgres"
    names = sorted({"root", user.login} - {""})
    mapped = [f'{_MAP} "{name}" {role}\n' for name in names]
    # The server cannot look up a user without a name, as containers may have it. Then only the mode
    # of the socket's folder, 0700, keeps others out.
    way = f"peer map={_MAP}" if user.login else "trust"
    rules = [f"local {database} all {way}\n" for database in ("all", "replication")]
    for name, lines in (("pg_hba.conf", rules), ("pg_ident.conf", mapped)):
        _replace(data / name, "".join([_HEAD, *lines]), user)


def _replace(path: Path, text: str, user: DatabaseUser) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_text(errors="replace") == text:
            return
    # The folder belongs to the database's user, who could put a link there. So root writes a file
    # with a new name, and never through the old one.
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # with the mode 0600
    with os.fdopen(fd, "w") as file:
        if user.uid >= 0:
            os.fchown(fd, user.uid, user.gid)
        file.write(text)
        file.flush()
        os.fsync(fd)
    Path(new).replace(path)


def make_socket_folder(
    folder: Path, user: DatabaseUser, last: Path | None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Return a private folder for the socket of the database in `folder`; make it if needed.

    It is in $RUNTIME_DIRECTORY (of systemd) or $XDG_RUNTIME_DIR, else in /tmp: there it is `last`,
    the folder of the last start, unless somebody has taken that name. Raises StartError.
    """
    name = f"iot-ingest-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    for base in _private_bases(user, environ):
        sockets = base / name
        if len(os.fsencode(sockets)) <= PATH_BYTES_MAX and make_private(sockets, user):
            return sockets
    ours = last is not None and last.parent == SHARED and last.name.startswith(_prefix(user))
    if last is not None and ours and make_private(last, user):
        return last
    try:
        sockets = Path(tempfile.mkdtemp(prefix=_prefix(user), dir=SHARED))
        _give(sockets, user)
    except OSError as error:
        raise StartError(f"cannot make a folder for sockets in {SHARED}: {error}") from error
    return sockets


def _prefix(user: DatabaseUser) -> str:
    return f"iot-ingest-{user.owner_uid}-"


def _private_bases(user: DatabaseUser, environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield folders of ours in which nobody else can make a name."""
    for variable in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        base = Path(environ.get(variable, "").split(":", 1)[0])
        with contextlib.suppress(OSError):
            found = base.stat()
            ours = found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if base.is_absolute() and ours and (user.uid < 0 or may_enter(user, base)):
                yield base


def make_private(sockets: Path, user: DatabaseUser) -> bool:
    """Make the folder, or use the one that is there; return whether it is private."""
    try:
        with contextlib.suppress(FileExistsError):
            sockets.mkdir(mode=0o700)
            _give(sockets, user)
        found = sockets.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    return private and found.st_uid == user.owner_uid


def _give(folder: Path, user: DatabaseUser) -> None:
    if user.uid >= 0:
        os.chown(folder, user.uid, user.gid)


def remove_socket_folder(sockets: Path) -> None:
    """Remove the folder of a server that does not run, with the files that PostgreSQL leaves."""
    with contextlib.suppress(OSError):
        if not sockets.is_symlink():
            for name in _FILES:
                (sockets / name).unlink(missing_ok=True)
            sockets.rmdir()


def sweep_left_overs(user: DatabaseUser) -> None:
    """Remove empty folders in /tmp that killed services of this user have left."""
    for left in SHARED.glob(f"{_prefix(user)}*"):
        with contextlib.suppress(OSError):  # rmdir refuses a folder in use: a socket is in it
            found = left.lstat()
            age_s = unix_us() / 1e6 - found.st_mtime
            if found.st_uid == user.owner_uid and age_s > LEFT_OVER_S:
                left.rmdir()


def url_of(sockets: Path) -> str:
    """Return the URL of the server whose socket is in this folder."""
    return f"postgresql://postgres@/postgres?host={quote(str(sockets))}&port={PORT}"


def publish_url(folder: Path, url: str) -> None:
    """Tell other processes of this user where the server is. The caller has the lock.

    The file stays after a stop, so that the next start uses the same folder for its socket.
    """
    replace_private(folder / "server.url", url.encode())


def published_url(folder: Path) -> str:
    """Return the URL that was published last, or nothing."""
    try:
        return (folder / "server.url").read_text()
    except OSError:
        return ""


def sockets_of(url: str) -> Path | None:
    """Return the folder of the socket that the URL names, if it names one."""
    (path,) = parse_qs(urlsplit(url).query).get("host", [""])
    return Path(path) if path.startswith("/") else None
