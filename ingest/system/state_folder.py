"""The state folder: its lock, the places of its parts, the running service, the mark of the stream.

`service.json` is readable for the owner only, because it contains the token of the running service.
A command believes it only while the folder is locked, so the file of a killed service misleads
nobody. All calls do little work on files and block for a moment.

The mark says what the stream must have. The broker cannot say what it has lost: a stream whose last
block is damaged ends earlier, and gives the same places to new messages. So gateways note how far
messages were acknowledged, and whoever purges notes first how far. All that lies between must be
there, at the next start too. Of what came after the last note, a second at most, it knows nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from ingest.model.errors import StartError
from ingest.system.files import (
    FolderLock,
    is_locked,
    other_writers,
    replace_private,
    sync_folder,
)
from ingest.system.logs import Occasionally, get_logger

MARK_WARNING_S = 3600.0
EMBEDDED = "the embedded database"  # the name of the one that is in the state folder
MARK_BYTES_MAX = 512  # one sector: it is written whole or not at all


class ServiceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a running service publishes for commands on this machine; `started_us` is Unix time.

    `listen` and `admin_listen` are the addresses that are bound. `token` permits admin actions.
    `page` is the dashboard's address with a key, which works once. `cert_file` is the certificate
    of the data port, if that speaks TLS. `target` are the table and its columns for time, device,
    metric and value, as SQL names them. `is_open`: everybody may post until it is restarted.
    `fix_url`: how to correct the URL of its database, in words.
    """

    pid: int
    version: str
    listen: str
    admin_listen: str
    database_url: str
    token: str
    started_us: int
    page: str = ""
    cert_file: str = ""
    target: tuple[str, ...] = ("readings", "ts", "device_id", "metric", "value")
    is_open: bool = False
    fix_url: str = ""


class StateFolder:
    """A state folder and the places of its parts. Journal, dead letters, broker are 0700."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dead_letters = path / "dead-letters"
        self.journal = path / "journal"
        self.journal_columns = self.journal / "columns.json"  # see app/buffer.py
        self.postgres = path / "postgres"  # the embedded database
        self.broker = path / "broker"  # the embedded broker
        self.broker_left = self.broker / "left"  # the note of what it holds
        self._lock_path = path / "lock"
        self._service_path = path / "service.json"
        self.checked_database = path / "checked-database"

    @classmethod
    def open(cls, path: Path) -> StateFolder:
        """Create the folder if it is missing. Raises StartError if it cannot be written to."""
        path = path.expanduser().absolute()
        try:
            # As root, the embedded database runs as another user, who must be able to pass through
            # these folders. So they are 0755, whatever the umask is.
            for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
                missing.mkdir(exist_ok=True)
                missing.chmod(0o755)
                with contextlib.suppress(PermissionError):  # a parent that may not be listed
                    sync_folder(missing.parent)  # the folder must exist after a crash
            folder = cls(path)
            folder.dead_letters.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(folder._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StartError(
                f"cannot write to the state folder {path}: {error.strerror} ({error.filename}); "
                "choose another with --state-dir or INGEST_STATE_DIR"
            ) from error
        return folder

    def of_process(self, command: str, name: str) -> StateFolder:
        """Return the state folder of a forwarder or an `mqtt`: it has dead letters of its own."""
        return StateFolder(self.path / command / name)

    def other_writers(self) -> str:
        """Say who else may write here: they may post, and delete what is kept. "" if nobody."""
        return other_writers(self.path, self.path.stat())

    def lock(self) -> FolderLock:
        """Lock the folder for this process. Raises StartError with the pid of another owner."""
        try:
            lock = FolderLock.of(self.path)
            if lock is not None:
                lock.record(f"{os.getpid()}\n")
        except OSError as error:
            raise StartError(
                f"cannot lock the state folder {self.path}: {error.strerror} ({self._lock_path}); "
                "choose another with --state-dir or INGEST_STATE_DIR"
            ) from error
        if lock is None:
            owner = self._lock_path.read_text(errors="replace")[:20].strip()
            raise StartError(
                f"a program (pid {owner or 'unknown'}) already uses the state folder {self.path}: "
                "stop it, or choose another folder: the setting state_dir (--state-dir)"
            )
        if others := self.other_writers():
            get_logger("start").warning("state_folder_shared", path=str(self.path), why=others)
        self.withdraw()  # the file that a killed service has left
        return lock

    def publish(self, info: ServiceInfo) -> None:
        """Tell other commands of this user where the service is. The caller has the lock."""
        replace_private(self._service_path, msgspec.json.encode(info))

    def withdraw(self) -> None:
        """Remove what was published."""
        self._service_path.unlink(missing_ok=True)

    def remember_database(self, name: str) -> None:
        """Note that the table of this database is right, for the next start. Raises OSError."""
        replace_private(self.checked_database, f"{name}\n".encode(), sync=True)
        sync_folder(self.path)

    def remembered_database(self) -> str:
        """Return the name that was noted last, or nothing."""
        try:
            return self.checked_database.read_text(errors="replace").strip()
        except OSError:
            return ""

    def durable_parts(self, *, embedded: bool) -> tuple[Path, ...]:
        """Return the folders that a durable 202 depends on. Each may be a mount of its own.

        With an `embedded` database its folder is one of them.
        """
        parts = (self.journal, self.dead_letters)
        return (*parts, self.postgres) if embedded else parts

    def room(self) -> tuple[int, str]:
        """Return the free bytes of the part that has the least, and where that is, in words.

        Raises OSError.
        """
        parts = [each for each in (self.journal, self.dead_letters) if each.exists()]
        free, part = min((shutil.disk_usage(each).free, each) for each in (self.path, *parts))
        mount = next(each for each in (part, *part.parents) if each.is_mount())
        return free, f"{part}, on the disk that is mounted at {mount}"


def existing(path: Path) -> Path:
    """Return the absolute path of a state folder that exists. Only `serve` makes a new one.

    Raises StartError with the path, which may be mistyped.
    """
    path = path.expanduser().absolute()
    try:
        there = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise StartError(f"the state folder {path}: {error.strerror} (--state-dir)") from error
    if not there:
        raise StartError(
            f"there is no state folder {path}: --state-dir chooses another one, and "
            "`ingest serve` makes it at its first start"
        )
    return path


def running_service(path: Path) -> ServiceInfo | None:
    """Return what the service that runs on this state folder published; None if there is none.

    Raises StartError if a service runs there, but this user may not read its file.
    """
    folder = StateFolder(path.expanduser().absolute())
    try:
        info = msgspec.json.decode(folder._service_path.read_bytes(), type=ServiceInfo)
        # The lock is tried last and seldom, because no service can start in that moment.
        return info if is_alive(info.pid) and is_locked(folder._lock_path) else None
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    except PermissionError as error:
        raise StartError(
            f"may not read {error.filename}: use the user the service runs as, or another "
            "--state-dir"
        ) from error
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror} (--state-dir)") from error


def is_alive(pid: int) -> bool:
    """Whether there is such a process, of whichever user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


class StreamMark(NamedTuple):
    """Places in the stream that the broker made at `made`."""

    made: str = ""
    purged_to: int = -1  # our own purge may have removed all up to here; -1: not known
    done_to: int = 0  # all up to here was stored
    acknowledged_to: int = 0  # a gateway was told that the stream has all up to here
    delivered_to: int = 0  # the farthest place that a writer was given
    deliveries: int = 0  # of writers, all so far


class MarkFile:
    """The mark's file, which all processes of a state folder share. `broker`: where; "" is ours.

    Numbers of one stream only grow, whoever writes them. A file that is missing or damaged says
    nothing.
    """

    def __init__(self, state_folder: Path, broker: str = "") -> None:
        suffix = f"-{crc32(broker.encode()):08x}" if broker else ""
        self._path = state_folder / f"stream-mark{suffix}"
        self._occasionally = Occasionally(MARK_WARNING_S)

    def read(self) -> StreamMark:
        """Return what was noted last; an empty mark if that is not known. Blocks for a moment."""
        try:
            return _decoded(self._path.read_bytes()[:MARK_BYTES_MAX])
        except OSError:
            return StreamMark()

    async def note(self, mark: StreamMark, *, anew: bool = False) -> None:
        """Raise the numbers of this stream, or begin with another one, or `anew`.

        Begin anew after a loss that was told: it must not be told at each start.
        """
        try:
            await asyncio.to_thread(self._note, mark, anew=anew)
        except OSError as error:
            if self._occasionally.due("") is not None:
                get_logger("broker").warning("stream_mark_not_kept", why=str(error))

    def _note(self, mark: StreamMark, *, anew: bool) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = _decoded(os.pread(fd, MARK_BYTES_MAX, 0))
            if before.made == mark.made and not anew:
                grown = (max(pair) for pair in zip(before[1:], mark[1:], strict=True))
                mark = StreamMark(mark.made, *grown)
            if mark != before:
                os.pwrite(fd, json.dumps(mark).encode().ljust(MARK_BYTES_MAX), 0)
                os.fsync(fd)
        finally:
            os.close(fd)


def _decoded(data: bytes) -> StreamMark:
    with contextlib.suppress(ValueError, TypeError):
        made, *places = json.loads(data)
        if isinstance(made, str) and all(type(each) is int for each in places):
            return StreamMark(made, *places)
    return StreamMark()
