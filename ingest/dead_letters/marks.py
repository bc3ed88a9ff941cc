"""Marks: which lines of a segment are done. They are in a file beside it, the cursor.

    {"at":"..","how":"replayed","done":[[offset,"id","reason"],..],"sum":".."}

A segment is never edited; marks are appended to its cursor. A mark counts only for a line that has
its id at its offset. A cut or altered record is ignored. Then its lines are live and are replayed
again, which the table's key makes harmless.
Everything here blocks, and raises OSError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest.dead_letters.files import cursor_path
from ingest.dead_letters.format import seal, unseal
from ingest.system.clock import rfc3339, unix_us
from ingest.system.files import REAL_CALLS, AppendFile, FileCalls, open_regular, sync_folder

_MARKS_PER_RECORD = 500  # a cut record loses at most so many


class Mark(NamedTuple):
    """A line that is done: its offset in bytes, its id and its reason."""

    offset: int
    id: str
    reason: str


def mark_done(lines: Iterable[tuple[Path, Mark]], how: str, calls: FileCalls = REAL_CALLS) -> None:
    """Record that lines of some segments are done. When this returns, that is on the disk.

    The caller has the replay lock.
    """
    by_segment: dict[Path, list[Mark]] = {}
    for segment, mark in lines:
        by_segment.setdefault(segment, []).append(mark)
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
