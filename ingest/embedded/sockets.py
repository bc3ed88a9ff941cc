"""The folder of the server's Unix socket: private, short, and of a name that others cannot take.

Promises: it belongs to the database's user alone (0700). A name in /tmp is a random one, so another
user of the machine cannot take it first.
Does not: remember the name. The URL of the server has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ingest.embedded.programs import DatabaseUser, may_enter
from ingest.model.errors import StartError
from ingest.system.clock import unix_us

PORT = 5432  # only names the socket file
SOCKET = f".s.PGSQL.{PORT}"
FILES = (SOCKET, f"{SOCKET}.lock")
PATH_BYTES_MAX = 103 - len(SOCKET) - 1  # of the folder; a socket's path has 103 bytes on macOS
SHARED = Path("/tmp")  # noqa: S108  mkdtemp makes the folder in it
LEFT_OVER_S = 60.0  # an empty folder that is younger may be of a server that is starting


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


def _give(sockets: Path, user: DatabaseUser) -> None:
    if user.uid >= 0:
        os.chown(sockets, user.uid, user.gid)


def remove_socket_folder(sockets: Path) -> None:
    """Remove the folder of a server that does not run, with the files that PostgreSQL leaves."""
    with contextlib.suppress(OSError):
        if not sockets.is_symlink():
            for name in FILES:
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
