"""Which lines of a segment are done: marks appended to a file beside it, never an edit.

    {"at":"..","how":"replayed","done":[[offset,"id","reason"],..],"sum":".."}

A mark counts only for a line that still has its id at its offset. A torn or altered record is
ignored: its lines are live again and replayed again, which the table's key makes harmless.
Everything here blocks, and raises OSError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest.dead_letters.files import cursor_path
from ingest.dead_letters.format import seal, unseal
from ingest.system.clock import rfc3339, unix_us
from ingest.system.files import REAL_CALLS, AppendFile, FileCalls, open_regular, sync_folder

_MARKS_PER_RECORD = 500  # what a torn record costs


class Mark(NamedTuple):
    """A line that is done, by its offset in bytes, its id and its reason."""

    offset: int
    id: str
    reason: str


def mark_done(lines: Iterable[tuple[Path, Mark]], how: str, calls: FileCalls = REAL_CALLS) -> None:
    """Record that lines of some segments are done; on the disk when this returns.

    Whoever calls this holds the folder's replay lock.
    """
    by_segment: dict[Path, list[Mark]] = {}
    for segment, mark in lines:
        by_segment.setdefault(segment, []).append(mark)
    for segment, marks in by_segment.items():
        _append(segment, marks, how, calls)


def _append(segment: Path, marks: Sequence[Mark], how: str, calls: FileCalls) -> None:
    path = cursor_path(segment)
    fresh = not path.exists()
    data = b"" if fresh or _ends_well(path) else b"\n"
    for first in range(0, len(marks), _MARKS_PER_RECORD):
        done = [list(mark) for mark in marks[first : first + _MARKS_PER_RECORD]]
        data += seal(orjson.dumps({"at": rfc3339(unix_us()), "how": how, "done": done}))
    file = AppendFile.open(path, create=False, calls=calls)
    try:
        file.append(data)
    finally:
        file.close()
    if fresh:
        sync_folder(segment.parent, calls)


def _ends_well(path: Path) -> bool:
    """Whether the last record is whole; another one must not be glued to a torn one."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def read_marks(segment: Path, start: int = 0) -> tuple[list[Mark], int]:
    """Return the marks recorded from byte `start` on, and up to which byte they were read."""
    marks: list[Mark] = []
    try:
        file = open_regular(cursor_path(segment))
    except FileNotFoundError:
        return [], start
    with file:
        file.seek(start)
        for record in file:
            if not record.endswith(b"\n"):
                break  # torn, or being written
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
