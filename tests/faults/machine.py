"""Changes to this machine that need root: small file systems, memory limits. All are undone.

And one change that each process may make, up to a limit: the number of open files.

Raises NotHere where the machine does not allow a change; the report then lists the fault as not
tested.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class NotHere(Exception):
    """This machine cannot do it."""


def allow_files(count: int) -> None:
    """Allow this process, and those that it starts, `count` open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        raise NotHere(f"may open {hard:,} files, needs {count:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


class SmallDisk:
    """A tmpfs of `size_kib` at a folder. `with SmallDisk(folder, 64) as disk: disk.grow(4096)`."""

    def __init__(
        self, folder: Path, size_kib: int, *, owner: tuple[int, int] | None = None
    ) -> None:
        self.folder = folder
        self._size_kib = size_kib
        self._owner = owner

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mount(f"size={self._size_kib}k,mode=0700")
        if self._owner is not None:
            os.chown(self.folder, *self._owner)
        return self

    def grow(self, size_kib: int) -> None:
        """Give it another size."""
        self._mount(f"remount,size={size_kib}k")

    def _mount(self, options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "faults", str(self.folder)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotHere("may not mount a small file system: needs root") from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


class Cgroup:
    """A memory cgroup of our own, version 1 or 2."""

    def __init__(self, name: str) -> None:
        self._first = first = _V1.is_dir()
        self._folder = (_V1 if first else _V2) / name
        self._limit = "memory.limit_in_bytes" if first else "memory.max"

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir()
        except OSError as error:
            raise NotHere(f"may not make a cgroup: {error.strerror}") from error
        if not (self._folder / self._limit).exists():
            self._folder.rmdir()
            raise NotHere("the memory controller is not here")
        return self

    def adopt(self, pid: int) -> None:
        """Put a process in; the memory that it takes from now on counts here."""
        (self._folder / self._limit).write_text("-1" if self._first else "max")
        (self._folder / "cgroup.procs").write_text(str(pid))

    def limit(self, more_bytes: int) -> None:
        """Limit the group to `more_bytes` above its present use."""
        usage = "memory.usage_in_bytes" if self._first else "memory.current"
        used = int((self._folder / usage).read_text())
        (self._folder / self._limit).write_text(str(used + more_bytes))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end_s = time.monotonic() + 2
        while time.monotonic() < end_s:  # a process that has just ended is counted for a moment
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
