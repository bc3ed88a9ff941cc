"""A file system that keeps unsynced bytes in memory only: `python -m .. BACKING MOUNT`.

It uses FUSE and simulates the power loss of a whole machine: PostgreSQL's data and the service's
files are on it. Bytes that are written and not fsynced are only in this process. To kill it is the
power failure; the folder BACKING is the disk. A stat of `/.tear-SEED` before that writes a random
half of the unsynced pages to the disk. Names are durable at once (forgetting.py is stricter about
names, for the service's own folders). Needs the packages mfusepy and libfuse3, and /dev/fuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults.machine import NotHere

PAGE_BYTES = 4096
MOUNT_S_MAX = 10.0
_NEVER_CUT = 1 << 62


class Lazy:
    """One file: `fd` is the file on the disk, `pages` are those written since the last fsync."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
        self.pages: dict[int, bytearray] = {}
        self._cut = _NEVER_CUT  # the disk's bytes from here on were cut off

    def _page(self, number: int) -> bytearray:
        at = number * PAGE_BYTES
        known = max(0, min(PAGE_BYTES, self._cut - at))
        data = os.pread(self.fd, known, at) if known else b""
        return bytearray(data.ljust(PAGE_BYTES, b"\0"))

    def read(self, size: int, offset: int) -> bytes:
        """Return the bytes that a reader gets."""
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            number, start = divmod(offset, PAGE_BYTES)
            count = min(PAGE_BYTES - start, end - offset)
            page = self.pages.get(number) or self._page(number)
            parts.append(bytes(page[start : start + count]))
            offset += count
        return b"".join(parts)

    def write(self, data: bytes, offset: int) -> None:
        """Take data into memory."""
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, PAGE_BYTES)
            count = min(PAGE_BYTES - start, len(data) - at)
            page = self.pages.get(number)
            if page is None:
                page = self.pages[number] = self._page(number)
            page[start : start + count] = data[at : at + count]
            at += count
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        """Cut, or grow by zeros, in memory."""
        if size < self.size:
            number, start = divmod(size, PAGE_BYTES)
            if start:
                page = self.pages.setdefault(number, self._page(number))
                page[start:] = bytes(PAGE_BYTES - start)
            first = number + bool(start)
            self.pages = {each: page for each, page in self.pages.items() if each < first}
            self._cut = min(self._cut, size)
        self.size = size

    def sync(self) -> None:
        """Write all pages to the disk."""
        if self._cut < _NEVER_CUT:
            os.ftruncate(self.fd, min(self._cut, self.size))
            self._cut = _NEVER_CUT
        for number, page in sorted(self.pages.items()):
            at = number * PAGE_BYTES
            os.pwrite(self.fd, page[: max(0, self.size - at)], at)
        self.pages.clear()
        os.ftruncate(self.fd, self.size)

    def tear(self, rng: random.Random) -> None:
        """Write a random half of the pages to the disk."""
        for number, page in sorted(self.pages.items()):
            at = number * PAGE_BYTES
            if rng.random() < 0.5:
                os.pwrite(self.fd, page[: max(0, self.size - at)], at)


class _Operations:
    """The operations that the kernel calls, by paths below MOUNT; errors are OSError."""

    use_ns = True

    def __init__(self, backing: str, context: Callable[[], tuple[int, int, int]]) -> None:
        self.files: dict[int, Lazy] = {}
        self._backing = backing
        self._context = context  # (uid, gid, pid) of who asks

    def _lazy(self, path: str) -> Lazy:
        inode = os.lstat(self._backing + path).st_ino
        if inode not in self.files:
            self.files[inode] = Lazy(self._backing + path)
        return self.files[inode]

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        if path.startswith("/.tear-"):
            rng = random.Random(path)
            for each in self.files.values():
                each.tear(rng)
            raise FileNotFoundError(errno.ENOENT, path)
        found = os.lstat(self._backing + path)
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_dev")
        fields = {name: getattr(found, name) for name in names}
        for name in ("st_atime", "st_mtime", "st_ctime"):
            fields[name] = getattr(found, name + "_ns")
        if found.st_ino in self.files:
            fields["st_size"] = self.files[found.st_ino].size
        return fields

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._backing + path)]

    def open(self, path: str, flags: int) -> int:
        self._lazy(path)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        os.close(os.open(self._backing + path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))
        self._own(path)
        os.chmod(self._backing + path, mode & 0o7777)
        return self.open(path, 0)

    def _own(self, path: str) -> None:
        uid, gid, _ = self._context()
        os.lchown(self._backing + path, uid, gid)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._lazy(path).read(size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._lazy(path).write(data, offset)
        return len(data)

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        self._lazy(path).truncate(length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._lazy(path).sync()
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def rename(self, old: str, new: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            self._forget(os.lstat(self._backing + new))
        os.rename(self._backing + old, self._backing + new)
        return 0

    def unlink(self, path: str) -> int:
        self._forget(os.lstat(self._backing + path))
        os.unlink(self._backing + path)
        return 0

    def _forget(self, found: os.stat_result) -> None:
        if found.st_nlink == 1 and (lazy := self.files.pop(found.st_ino, None)):
            os.close(lazy.fd)

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._backing + path, mode)
        self._own(path)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._backing + path)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._backing + source, self._backing + target)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._backing + path, mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._backing + path, uid, gid)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._backing)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")
        return {name: getattr(found, name) for name in (*names, "f_namemax")}


def serve(backing: str, mount: str) -> None:
    """Mount and serve until killed."""
    mfusepy: Any = importlib.import_module("mfusepy")  # optional, and of a library of the system
    made = type("Disk", (_Operations, mfusepy.Operations), {})
    mfusepy.FUSE(
        made(backing, mfusepy.fuse_get_context),
        mount,
        foreground=True,
        nothreads=True,
        allow_other=True,
        default_permissions=True,
        use_ino=True,
        fsname="faults",
    )


class LazyDisk:
    """`async with LazyDisk(backing, mount) as disk:`; `power_off` when nothing runs on it."""

    def __init__(self, backing: Path, mount: Path) -> None:
        self.backing, self.mount = backing, mount
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.mount.mkdir(parents=True, exist_ok=True)
        self.mount.chmod(0o755)
        await self._start()
        return self

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.lazy_disk", str(self.backing), str(self.mount)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(MOUNT_S_MAX):
                while not os.path.ismount(self.mount):
                    if self._process.returncode is not None:
                        break
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass
        if not os.path.ismount(self.mount):
            await self._end()
            assert self._process.stderr is not None, "piped"
            said = (await self._process.stderr.read()).decode().strip().splitlines()
            raise NotHere(
                f"no FUSE (apt-get install fuse3): {said[-1] if said else 'it does not mount'}"
            )

    async def _end(self) -> None:
        assert self._process is not None, "started"
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        words = ["umount", "-l", str(self.mount)]
        await asyncio.to_thread(subprocess.run, words, check=False, capture_output=True)

    async def power_off(self, seed: int | None) -> None:
        """Lose what was not fsynced (with `seed`: keep a random half of its pages), mount again."""
        if seed is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.stat, self.mount / f".tear-{seed}")
        await self._end()
        await self._start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
