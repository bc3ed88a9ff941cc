"""The files of a dead-letter folder: their names and ages, the replay lock, marks, and reading.

A segment has one letter a line, and is never edited. Which of its lines are done is in a file
beside it, the cursor, to which marks are appended:

    {"at":"..","how":"replayed","done":[[offset,"id","reason"],..],"sum":".."}

A mark counts only for a line that has its id at its offset. A cut or altered record is ignored.
Then its lines are live and are replayed again, which the table's key makes harmless.
Promises: lines that are cut or altered, and files that cannot be read, are skipped and counted in a
Tally. Each letter that is yielded has passed its checksum. One line at a time is in memory.
Everything here blocks. What does not read letters raises OSError.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from ingest.dead_letters.format import (
    ID_AT,
    ID_CHARACTERS,
    LINE_BYTES_MAX,
    seal,
    unseal,
)
from ingest.dead_letters.store import EVERYTHING, LiveLetter, Selection, Sieve, Tally
from ingest.system.clock import rfc3339, unix_us
from ingest.system.files import REAL_CALLS, AppendFile, FileCalls, Lock, open_regular, sync_folder

_SEGMENT_NAME = re.compile(r"dlq-[0-9TZ]+-\d+-[0-9a-f]+\.jsonl")
_LOCK_NAME = "replay.lock"
CURSOR_SUFFIX = ".cursor"
_MARKS_PER_RECORD = 500  # a cut record loses at most so many


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


# Marks


class Mark(NamedTuple):
    """A line that is done: its offset in bytes, its id and its reason."""

    offset: int
    id: str
    reason: str


def mark_done(letters: Iterable[LiveLetter], how: str, calls: FileCalls = REAL_CALLS) -> None:
    """Record that lines of some segments are done. When this returns, that is on the disk.

    The caller has the replay lock.
    """
    by_segment: dict[Path, list[Mark]] = {}
    for each in letters:
        mark = Mark(each.offset, each.id, each.letter.reason)
        by_segment.setdefault(each.path, []).append(mark)
    for segment, marks in by_segment.items():
        _append(segment, marks, how, calls)


def _append(segment: Path, marks: Sequence[Mark], how: str, calls: FileCalls) -> None:
    path = cursor_path(segment)
    is_new = not path.exists()
    data = b"" if is_new or _ends_with_line_feed(path) else b"\n"
    for first in range(0, len(marks), _MARKS_PER_RECORD):
        done = [list(mark) for mark in marks[first : first + _MARKS_PER_RECORD]]
        data += seal(orjson.dumps({"at": rfc3339(unix_us()), "how": how, "done": done}))
    with closing(AppendFile.open(path, create=False, calls=calls)) as file:
        file.append(data)
    if is_new:
        sync_folder(segment.parent, calls)


def _ends_with_line_feed(path: Path) -> bool:
    """Whether the last record is whole. If it was cut, the next one must begin on a new line."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def read_marks(segment: Path, start: int = 0) -> tuple[list[Mark], int]:
    """Return the marks from byte `start` on, and the byte up to which they were read."""
    marks: list[Mark] = []
    try:
        file = open_regular(cursor_path(segment))
    except FileNotFoundError:
        return [], start
    with file:
        file.seek(start)
        for record in file:
            if not record.endswith(b"\n"):
                break  # cut, or being written
            start += len(record)
            marks += _marks_of(record)
    return marks, start


def _marks_of(record: bytes) -> list[Mark]:
    body = unseal(record)
    if body is None:
        return []
    try:
        return [Mark(int(at), str(id_), str(why)) for at, id_, why in orjson.loads(body)["done"]]
    except (ValueError, TypeError, KeyError):
        return []


# Reading


def live_letters(
    folder: Path, *, where: Selection = EVERYTHING, tally: Tally | None = None
) -> Iterator[LiveLetter]:
    """Yield the live letters of all segments. Two segments may have the same id."""
    for segment in segments(folder):
        yield from segment_letters(segment, where=where, tally=tally)


def segment_letters(
    segment: Path, *, start: int = 0, where: Selection = EVERYTHING, tally: Tally | None = None
) -> Iterator[LiveLetter]:
    """Yield the live letters of one segment from byte `start` on."""
    tally = tally if tally is not None else Tally()
    sieve = Sieve(where, tally)
    for offset, line in undone_lines(segment, start=start, tally=tally):
        found = sieve.wanted(line)
        if found is not None:
            yield LiveLetter(segment, offset, offset + len(line), *found, line)


def first_letters(
    segment: Path, *, start: int, where: Selection, count_max: int
) -> tuple[list[LiveLetter], int]:
    """Return the first live letters from byte `start` on, and where to continue."""
    tally = Tally()
    letters = list(
        islice(segment_letters(segment, start=start, where=where, tally=tally), count_max)
    )
    return letters, letters[-1].end if len(letters) == count_max else max(start, tally.end)


def undone_lines(
    segment: Path, *, start: int = 0, tally: Tally | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of the whole lines that have no mark, without checking them."""
    tally = tally if tally is not None else Tally()
    done: dict[int, str] = {}
    try:
        done = {mark.offset: mark.id for mark in read_marks(segment)[0] if mark.offset >= start}
    except OSError as error:  # then all lines count as live: sending one twice is harmless
        tally.unreadable.append(f"{segment.name}{CURSOR_SUFFIX}: {error.strerror}")
    try:
        with open_regular(segment) as file:
            file.seek(start)
            for offset, line in _lines(file, start, tally):
                id_ = done.get(offset)
                if id_ is None or line[ID_AT : ID_AT + ID_CHARACTERS] != id_.encode():
                    yield offset, line
    except FileNotFoundError:
        return  # another process removed it after it was listed
    except OSError as error:
        tally.unreadable.append(f"{segment.name}: {error.strerror}")


def _lines(file: BinaryIO, offset: int, tally: Tally) -> Iterator[tuple[int, bytes]]:
    while line := file.readline(LINE_BYTES_MAX):
        if line.endswith(b"\n"):
            tally.end = offset + len(line)
            yield offset, line
            offset = tally.end
            continue
        whole = offset + len(line)
        while line and not line.endswith(b"\n"):  # no letter is that long: skip to its end
            line = file.readline(LINE_BYTES_MAX)
            whole += len(line)
        if not line:
            tally.torn += 1
            return
        tally.altered += 1
        offset = tally.end = whole
