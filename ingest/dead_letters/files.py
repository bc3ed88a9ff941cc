"""The files of a dead-letter folder: their names, their ages, and the replay lock.

Everything here blocks, and raises OSError.
"""

from __future__ import annotations

import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ingest.system.clock import unix_us
from ingest.system.files import REAL_CALLS, AppendFile, FileCalls, Lock, open_regular, sync_folder

_SEGMENT_NAME = re.compile(r"dlq-[0-9TZ]+-\d+-[0-9a-f]+\.jsonl")
_LOCK_NAME = "replay.lock"
CURSOR_SUFFIX = ".cursor"


class FileStamp(NamedTuple):
    """Identity and size of a file at one moment. A segment never shrinks and is never replaced."""

    inode: int
    size: int

    def continues(self, earlier: FileStamp) -> bool:
        """Whether this is the same file as earlier, and not shorter."""
        return self.inode == earlier.inode and self.size >= earlier.size


def new_segment(folder: Path, calls: FileCalls = REAL_CALLS) -> AppendFile:
    """Create a segment, lock it, and sync its name to the disk."""
    while True:
        now = datetime.fromtimestamp(unix_us() / 1e6, UTC)
        name = f"dlq-{now:%Y%m%dT%H%M%S%fZ}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        file = AppendFile.open(folder / name, create=True, calls=calls)
        try:
            still_there = file.lock()
            sync_folder(folder, calls)
        except OSError:
            file.close()
            raise
        if still_there:
            return file
        file.close()  # another process removed it before it was locked


def sync_file(path: Path, calls: FileCalls = REAL_CALLS) -> None:
    """Sync a file that another process wrote."""
    with open_regular(path) as file:
        calls.fdatasync(file.fileno())


def touched_us(segment: Path) -> int:
    """Return when the segment or its cursor was last written, in Unix microseconds."""
    touched_ns = segment.stat().st_mtime_ns
    if cursor_path(segment).exists():
        touched_ns = max(touched_ns, cursor_path(segment).stat().st_mtime_ns)
    return touched_ns // 1000


def segments(folder: Path) -> list[Path]:
    """Return the segments, oldest first; none if the folder does not exist."""
    return [path for path in stamps(folder) if is_segment(path.name)]


def is_segment(name: str) -> bool:
    """Whether a file of that name contains dead letters."""
    return _SEGMENT_NAME.fullmatch(name) is not None


def stamps(folder: Path) -> dict[Path, FileStamp]:
    """Return a stamp of each file of the folder, oldest segment first; none without a folder."""
    found: dict[Path, FileStamp] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    now = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # another process removed it after it was listed
                found[folder / entry.name] = FileStamp(now.st_ino, now.st_size)
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def folder_bytes(folder: Path) -> int:
    """Return the size of everything in the folder, in bytes."""
    return sum(each.size for each in stamps(folder).values())


def cursor_path(segment: Path) -> Path:
    """Return the file that says which lines of a segment are done."""
    return segment.with_name(segment.name + CURSOR_SUFFIX)


def try_replay_lock(folder: Path) -> Lock | None:
    """Take the replay lock, which is needed to mark lines as done. None: somebody else has it."""
    return Lock.try_take(folder / _LOCK_NAME, create=True)
