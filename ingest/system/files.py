"""Files that must not lie: appended to by whole pieces, brought to the disk, locked.

An AppendFile never keeps a part of what it was given, or says that it can no longer be trusted.
The system calls that can fail are handed in, so that a test can make the n-th of them fail.
Everything here blocks, and raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import BinaryIO, NamedTuple

from ingest.system.clock import monotonic_s


class FileCalls(NamedTuple):
    """The system calls whose failure must not lose a letter."""

    write: Callable[[int, memoryview], int] = os.write
    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate


REAL_CALLS = FileCalls()


class AppendFile:
    """A file that only grows, by whole pieces. Not for concurrent use.

    `size` is the end of the last whole piece. After an error `suspect` says whether the file may
    hold more than that, or not hold what it was told to: then it must not be used any more.
    """

    def __init__(
        self, path: Path, fd: int, found: os.stat_result, calls: FileCalls, unseen_s_max: float
    ) -> None:
        self.path = path
        self.inode = found.st_ino
        self._unseen_s_max = unseen_s_max
        self._seen_s = float("-inf")
        self.size = found.st_size
        self.suspect = False
        self._fd = fd
        self._calls = calls

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool,
        calls: FileCalls = REAL_CALLS,
        unseen_s_max: float = 0.0,
    ) -> AppendFile:
        """Open for appending. `create`: it must not exist yet, and belongs to its owner only.

        That it was not removed by somebody is looked at once in `unseen_s_max` seconds.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT
        fd = os.open(path, flags | (os.O_EXCL if create else 0), 0o600)
        try:
            return cls(path, fd, os.fstat(fd), calls, unseen_s_max)
        except OSError:
            os.close(fd)
            raise

    def append(self, data: bytes) -> None:
        """Write all of `data` and bring it to the disk, or take back what was written of it."""
        now_s = monotonic_s()
        if now_s - self._seen_s >= self._unseen_s_max:
            if not self._is_there():
                self.suspect = True
                raise OSError(
                    errno.ENOENT, "somebody removed, moved or changed the file", str(self.path)
                )
            self._seen_s = now_s
        try:
            self._write_all(data)
        except OSError:
            self._take_back()
            raise
        try:
            self._calls.fdatasync(self._fd)
        except OSError:
            # Never again on this descriptor: the kernel has marked the pages clean.
            self._take_back()
            self.suspect = True
            raise
        self.size += len(data)

    def _write_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = self._calls.write(self._fd, left)
            if count <= 0:
                raise OSError(errno.EIO, "write took nothing")
            left = left[count:]

    def _take_back(self) -> None:
        try:
            self._calls.ftruncate(self._fd, self.size)
        except OSError:
            self.suspect = True

    def lock(self) -> bool:
        """Mark the file as being written, until it is closed; False if it was removed meanwhile."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self._is_there()

    def _is_there(self) -> bool:
        """Whether the name still leads to what we wrote, and to nothing else.

        A moved file would never be read again, nor what follows where somebody has cut it off; and
        behind bytes of somebody else nothing would be where we say that it is.
        """
        try:
            ours = os.fstat(self._fd)
            return os.path.samestat(os.stat(self.path), ours) and ours.st_size == self.size
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the descriptor; whatever was appended is on the disk already."""
        os.close(self._fd)


def sync_folder(folder: Path, calls: FileCalls = REAL_CALLS) -> None:
    """Bring created and removed names to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        calls.fsync(fd)
    finally:
        os.close(fd)


def unlink_aside(path: Path) -> None:
    """Remove a file's name; its blocks come free in a thread, for 64 MiB takes the kernel 17 ms.

    Raises OSError, and then the file is still there.
    """
    fd = -1
    with contextlib.suppress(OSError):  # without it the caller waits, and all is well
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        path.unlink()
    finally:
        if fd >= 0:
            _close_aside(fd)


def _close_aside(fd: int) -> None:
    try:
        Thread(target=os.close, args=(fd,), name="unlinked", daemon=True).start()
    except RuntimeError:  # no thread to be had: then the caller waits
        os.close(fd)


def make_folder(folder: Path, calls: FileCalls = REAL_CALLS) -> None:
    """Make a folder of ours (0700) if it is missing; bring its name, and those above, to the disk.

    The last name is brought there in any case: who made the folder may have died before.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()] or [folder]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_folder(each.parent, calls)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a link of that name must not stop anybody."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb", buffering=256 * 1024)


class Lock:
    """An exclusive lock on a file, held until closed; the kernel frees it when a process dies."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def try_take(cls, path: Path, *, create: bool = False) -> Lock | None:
        """Take the lock at once, or return None if somebody holds it."""
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return cls(fd)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class FolderLock:
    """One process's hold on a folder: a lock on its file `lock`, and one on the folder itself.

    So whoever removes the file lets nobody in. Where a folder cannot be locked (on some network
    file systems) the file must do.
    """

    def __init__(self, folder: Path, file: Lock, fd: int) -> None:
        self._folder = folder
        self._file = file
        self._fd = fd

    @classmethod
    def try_take(cls, folder: Path) -> FolderLock | None:
        """Take both at once, or return None if somebody holds one of them."""
        file = Lock.try_take(folder / "lock", create=True)
        if file is None:
            return None
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            file.close()
            raise
        taken = cls(folder, file, fd)
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken.close()
                return None
        return taken

    def holds(self) -> bool:
        """Whether the folder's name still leads to the one that is locked."""
        try:
            return os.path.samestat(os.stat(self._folder), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give both back."""
        os.close(self._fd)
        self._file.close()
