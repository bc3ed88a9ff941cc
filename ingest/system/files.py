"""Files whose content must survive a crash: appending, syncing to the disk, locking.

An AppendFile keeps the whole of what `append` was given, or nothing of it. If neither is sure, it
says so by `suspect`. The system calls that can fail are parameters, so that a test can make the
n-th of them fail. A lock is freed by the kernel when its process dies.
The file system of a folder tells whether fsynced data survives a crash of the machine there. It is
read from /proc/mounts; where that does not exist, it is unknown.
Everything here blocks, and raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import BinaryIO, NamedTuple

from ingest.system.clock import monotonic_s

VOLATILE = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})  # memory, whatever fsync says
REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "fuse.sshfs"}
    | {"fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.glusterfs", "vboxsf", "fuse.vmhgfs-fuse"}
)
_OVERLAYS_MAX = 4  # file systems, one above the other


class FileCalls(NamedTuple):
    """The system calls whose failure must not lose a dead letter."""

    write: Callable[[int, memoryview], int] = os.write
    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate


REAL_CALLS = FileCalls()
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class AppendFile:
    """A file that only grows, by one whole `append` after the other. Not for concurrent use.

    `size` is the end of the last whole append. After an error `suspect` says whether the file may
    contain more than that, or less. Then it must not be used any more.
    """

    def __init__(
        self, path: Path, fd: int, found: os.stat_result, calls: FileCalls, unseen_s_max: float
    ) -> None:
        self.path = path
        self.inode = found.st_ino
        self._unseen_s_max = unseen_s_max
        self._checked_s = float("-inf")
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
        """Open for appending. `create`: the file must not exist yet, and gets the mode 0600.

        `append` checks whether somebody has removed the file, once in `unseen_s_max` seconds.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT
        fd = os.open(path, flags | (os.O_EXCL if create else 0), 0o600)
        try:
            return cls(path, fd, os.fstat(fd), calls, unseen_s_max)
        except OSError:
            os.close(fd)
            raise

    def append(self, data: bytes) -> None:
        """Write all of `data` and sync it to the disk, or cut off the part that was written."""
        now_s = monotonic_s()
        if now_s - self._checked_s >= self._unseen_s_max:
            if not self._is_there():
                self.suspect = True
                raise OSError(
                    errno.ENOENT, "somebody removed, moved or changed the file", str(self.path)
                )
            self._checked_s = now_s
        try:
            self._write_all(data)
        except OSError:
            self._take_back()
            raise
        try:
            self._calls.fdatasync(self._fd)
        except OSError:
            # Do not sync this descriptor again: the kernel has marked the pages as clean. A second
            # fdatasync would succeed although the data is not on the disk.
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
        """Lock the file as one that is being written, until it is closed; False if it is gone."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self._is_there()

    def _is_there(self) -> bool:
        """Whether the path still names our file, with the size that we gave it.

        Nobody would read a file that was moved away. If somebody cut the file, or appended to it,
        further lines would not be at the offsets that we record.
        """
        try:
            ours = os.fstat(self._fd)
            return os.path.samestat(os.stat(self.path), ours) and ours.st_size == self.size
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the descriptor. What was appended is on the disk already."""
        os.close(self._fd)


class Lock(AbstractContextManager["Lock"]):
    """A lock on a file until it is closed. The kernel frees it when the process dies."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def try_take(cls, path: Path, *, create: bool = False, shared: bool = False) -> Lock | None:
        """Take the lock at once, or return None if somebody else has it.

        Several may have a `shared` lock at the same time, but nobody an exclusive one beside them.
        """
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return cls(fd)

    def fileno(self) -> int:
        """Return the descriptor. A child that inherits it has the lock too, until it ends."""
        return self._fd

    def record(self, text: str) -> None:
        """Replace the content of the locked file, for people. Raises OSError."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)

    def __exit__(self, *_: object) -> None:
        self.close()


def is_locked(path: Path) -> bool:
    """Whether somebody has an exclusive lock on a file. Takes a shared lock for a moment."""
    lock = Lock.try_take(path, shared=True)
    if lock is not None:
        lock.close()
    return lock is None


class FolderLock(Lock):
    """Two locks of one process on a folder: on its file `lock`, and on the folder itself.

    If somebody removes the file, the lock on the folder still keeps other processes out. Some
    network file systems cannot lock a folder; there only the file is locked.
    """

    def __init__(self, file: Lock, folder: Path, folder_fd: int) -> None:
        super().__init__(file.fileno())
        self._folder = folder
        self._folder_fd = folder_fd

    @classmethod
    def of(cls, folder: Path) -> FolderLock | None:
        """Take both locks at once, or return None if somebody else has one of them."""
        file = Lock.try_take(folder / "lock", create=True)
        if file is None:
            return None
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            file.close()
            raise
        taken = cls(file, folder, fd)
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken.close()
                return None
        return taken

    def holds(self) -> bool:
        """Whether the path still names the folder that is locked."""
        try:
            return os.path.samestat(os.stat(self._folder), os.fstat(self._folder_fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Release both locks."""
        os.close(self._folder_fd)
        super().close()


def sync_folder(folder: Path, calls: FileCalls = REAL_CALLS) -> None:
    """Sync a folder, so that created and removed names are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        calls.fsync(fd)
    finally:
        os.close(fd)


def replace_private(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file that only the owner may read; its old content is there until the end."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(fd)
    new.replace(path)


def unlink_aside(path: Path) -> None:
    """Remove a file's name. A thread frees its blocks: 64 MiB take the kernel 17 ms.

    Raises OSError; then the file is still there.
    """
    fd = -1
    with contextlib.suppress(OSError):  # without a descriptor the caller waits for the kernel
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        path.unlink()
    finally:
        if fd >= 0:
            _close_aside(fd)


def _close_aside(fd: int) -> None:
    try:
        Thread(target=os.close, args=(fd,), name="unlinked", daemon=True).start()
    except RuntimeError:  # no further thread is possible: the caller waits
        os.close(fd)


def make_folder(folder: Path, calls: FileCalls = REAL_CALLS) -> None:
    """Make a folder (0700) if it is missing; sync its name and those above it to the disk.

    Its own name is synced even if the folder exists: the process that made it may have died before.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()] or [folder]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_folder(each.parent, calls)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. A pipe or a link of that name is an error, never a wait."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb", buffering=256 * 1024)


def other_writers(path: Path, found: os.stat_result) -> str:
    """Say who else may write to a file or folder, of which `found` is the stat; "" if nobody.

    We may, and so may root, the owner of the folder it is in, and our groups: in a pod, the group
    of its volumes. Raises OSError.
    """
    if found.st_mode & stat.S_IWOTH:
        return "everybody may write to it (chmod o-w)"
    if found.st_mode & stat.S_IWGRP and found.st_gid not in {os.getegid(), *os.getgroups()}:
        return "a group that we are not in may write to it (chmod g-w)"
    ours = found.st_uid in {0, os.geteuid(), path.parent.stat().st_uid}
    return "" if ours else "another user owns it (chown)"


def size_bytes(path: Path) -> int:
    """Return the size of a file; 0 if somebody has removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def filesystem_of(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type of the file system that contains `path`, or an empty string.

    For an overlay it names the file system of the upper folder too, if that is visible:
    `overlay on tmpfs`.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = [[*line.split(" "), "", "", "", ""][:4] for line in lines]
    kinds: list[str] = []
    folder = path.resolve()
    for _ in range(_OVERLAYS_MAX):
        kind, options = _mount_of(folder, found)
        if not kind or kind in kinds[-1:]:
            break
        kinds.append(kind)
        upper = next((each for each in options.split(",") if each.startswith("upperdir=")), "")
        if kind != "overlay" or not upper:
            break
        folder = Path(_plain(upper.removeprefix("upperdir=")))
    return " on ".join(kinds)


def _mount_of(folder: Path, mounts: list[list[str]]) -> tuple[str, str]:
    above = [each for each in mounts if folder.is_relative_to(_plain(each[1]))]
    # Of those that are mounted on the nearest folder, the last one hides the others.
    _, _, kind, options = max(reversed(above), key=lambda each: len(each[1]), default=[""] * 4)
    return kind, options


def _plain(escaped: str) -> str:
    return escaped.replace("\\040", " ")


def is_volatile(kind: str) -> bool:
    """Whether a file system of this kind loses all data at a restart of the machine."""
    return kind.rpartition(" on ")[2] in VOLATILE


def is_remote(kind: str) -> bool:
    """Whether another machine (or the host) keeps the files: locks and fsync may not work."""
    return kind.rpartition(" on ")[2] in REMOTE
