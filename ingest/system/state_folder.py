"""The state folder: who uses it (a lock), where its parts lie, how other commands find a service.

`service.json` is for the owner only: it holds the token of the running service. It is believed
only while the lock is held, so a killed service leaves no false trace.
All calls are small file work and block for a moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from pathlib import Path

import msgspec

from ingest.model.errors import StartError
from ingest.system.files import sync_folder


class ServiceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a running service tells the other commands of this machine; `started_us` is Unix time.

    `listen` and `admin_listen` are the addresses really bound; `token` opens the admin actions.
    """

    pid: int
    version: str
    listen: str
    admin_listen: str
    database_url: str
    token: str
    started_us: int


class StateFolder:
    """A state folder that can be written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    @classmethod
    def open(cls, path: Path) -> StateFolder:
        """Create the folder if it is missing. Raises StartError if it cannot be written to."""
        path = path.expanduser().absolute()
        try:
            # As root, the database's unprivileged user must be able to pass: 0755, whatever umask.
            for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
                missing.mkdir(exist_ok=True)
                missing.chmod(0o755)
                with contextlib.suppress(PermissionError):  # a parent that may not be listed
                    sync_folder(missing.parent)  # what is kept in it must be found after a crash
            folder = cls(path)
            folder.dead_letters.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(folder._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StartError(
                f"cannot write to the state folder {path}: {error.strerror} ({error.filename}); "
                "choose another with --state-dir or INGEST_STATE_DIR"
            ) from error
        return folder

    @property
    def dead_letters(self) -> Path:
        """The folder of the dead-letter files (0700)."""
        return self.path / "dead-letters"

    @property
    def journal(self) -> Path:
        """The folder of the journal (0700)."""
        return self.path / "journal"

    @property
    def postgres(self) -> Path:
        """The folder of the embedded database."""
        return self.path / "postgres"

    @property
    def _lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def _service_path(self) -> Path:
        return self.path / "service.json"

    def lock(self) -> None:
        """Take the folder for this process. Raises StartError that names who has it."""
        assert self._lock_fd is None, "locked once, until unlocked"
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
            os.close(fd)
            raise StartError(
                f"a service (pid {holder or 'unknown'}) already uses the state folder {self.path}: "
                "stop it, or choose another folder with --state-dir"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd
        self.withdraw()  # what a killed service had published

    def unlock(self) -> None:
        """Give the folder free."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def publish(self, info: ServiceInfo) -> None:
        """Tell other commands of this user where the service is. Needs the lock."""
        assert self._lock_fd is not None, "only who holds the lock is the service"
        new = self.path / "service.json.new"
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(info))
        new.replace(self._service_path)

    def withdraw(self) -> None:
        """Take back what was published."""
        self._service_path.unlink(missing_ok=True)

    def durable_parts(self, *, embedded: bool) -> tuple[Path, ...]:
        """Return the folders on which a durable 202 rests: each may be a mount of its own.

        `embedded`: so does the database.
        """
        parts = (self.journal, self.dead_letters)
        return (*parts, self.postgres) if embedded else parts

    def free_bytes(self) -> int:
        """Return the free space for us, where there is least of it. Raises OSError."""
        parts = [each for each in (self.journal, self.dead_letters) if each.exists()]
        return min(shutil.disk_usage(each).free for each in (self.path, *parts))


def existing(path: Path) -> Path:
    """Return the path of a state folder that is there: who only looks or mends makes none.

    Raises StartError that names it, as it may be mistyped.
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
    """Return what the service running on this state folder published; None if there is none.

    Raises StartError if a service runs there whose notes we may not read.
    """
    folder = StateFolder(path.expanduser().absolute())
    try:
        info = msgspec.json.decode(folder._service_path.read_bytes(), type=ServiceInfo)
        # The lock last and seldom: who asks for it holds it for a moment.
        return info if _is_alive(info.pid) and _is_locked(folder._lock_path) else None
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    except PermissionError as error:
        raise StartError(
            f"may not read {error.filename}: use the user the service runs as, or another "
            "--state-dir"
        ) from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
