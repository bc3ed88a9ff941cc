"""Reads a dead-letter folder: its live letters, oldest first.

Promises: lines that are cut or altered, and files that cannot be read, are skipped and counted in a
Tally. Each letter that is yielded has passed its checksum. One line at a time is in memory.
Does not: take a lock or change anything. Everything here blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from ingest.dead_letters.files import CURSOR_SUFFIX, segments
from ingest.dead_letters.format import (
    ID_AT,
    ID_CHARACTERS,
    LINE_BYTES_MAX,
    REASON_AT,
    BadLine,
    Line,
    decode_line,
)
from ingest.dead_letters.marks import Mark, read_marks
from ingest.model.codes import NOT_ALLOWED
from ingest.model.letter import Letter
from ingest.system.files import open_regular


class LiveLetter(NamedTuple):
    """A letter that is not done, with its place: bytes `offset` to `end` of the file `path`."""

    path: Path
    offset: int
    end: int
    id: str
    failed_us: int
    letter: Letter
    line: bytes

    @property
    def mark(self) -> Mark:
        """The mark that says that this line is done."""
        return Mark(self.offset, self.id, self.letter.reason)

    @property
    def found_at(self) -> tuple[str, str]:
        """What has the letter, and where, for a person."""
        return "file", f"{self.path}, byte {self.offset}"


@dataclass
class Tally:
    """What was skipped while reading: cut last lines, altered lines, unreadable files.

    `end` is where the last whole line of the segment that was read last ends. `messages` is how
    many messages of a stream were read. `not_allowed` letters were passed over: see Selection.
    """

    torn: int = 0
    altered: int = 0
    unreadable: list[str] = field(default_factory=list)
    end: int = 0
    messages: int = 0
    not_allowed: int = 0

    @property
    def damaged(self) -> bool:
        """Whether anything was skipped."""
        return bool(self.torn or self.altered or self.unreadable)


class Selection(NamedTuple):
    """Which letters are wanted; None means any. `since_us` is the earliest failed_at.

    `ids` are ids in full, as they are written in the lines. `device_prefix` is the beginning of the
    devices that are wanted; `device` is one in full, since a name may have any character.
    `id_prefixes` are beginnings of ids; one of them must fit. Without `not_allowed`
    letters with this code are passed over, and counted in a Tally.
    """

    reasons: tuple[str, ...] | None = None
    code: str | None = None
    device: str | None = None
    since_us: int | None = None
    ids: frozenset[bytes] | None = None
    device_prefix: str | None = None
    id_prefixes: tuple[bytes, ...] | None = None
    not_allowed: bool = True

    def for_replay(self) -> Selection:
        """Return the same with letters `not_allowed` only if their code is asked for.

        Else who may post for one device could plant readings of another one, with the next replay.
        """
        return self._replace(not_allowed=self.code == NOT_ALLOWED)

    def wants(self, line_id: str, failed_us: int, letter: Letter) -> bool:
        """Whether all conditions but those for ids are met. An empty id never meets them."""
        return (
            bool(line_id)
            and (self.reasons is None or letter.reason in self.reasons)
            and (self.code is None or letter.code == self.code)
            and self._wants_device(letter)
            and (self.since_us is None or failed_us >= self.since_us)
        )

    def _wants_device(self, letter: Letter) -> bool:
        if self.device is None and self.device_prefix is None:
            return True
        device = device_of(letter)
        return (
            device is not None
            and self.device in (None, device)
            and device.startswith(self.device_prefix or "")
        )


EVERYTHING = Selection()


def device_of(letter: Letter) -> str | None:
    """Return the device of a letter, if its bytes name one."""
    if letter.reading is not None:
        return letter.reading.device_id
    return device_in(letter.original or b"")


def device_in(original: bytes) -> str | None:
    """Return the device of an item's bytes, if they name one."""
    try:
        item = orjson.loads(original)
    except ValueError:
        return None
    device = item.get("device_id") if isinstance(item, dict) else None
    return device if isinstance(device, str) else None


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
        try:
            found = sieve.wanted(line)
        except BadLine:
            tally.altered += 1
            continue
        if found is not None:
            yield LiveLetter(segment, offset, offset + len(line), *found, line)


class Sieve:
    """Finds the wanted letters among many lines."""

    def __init__(self, where: Selection, tally: Tally | None = None) -> None:
        self._where = where
        self._tally = tally or Tally()
        self._reasons = tuple(f'{reason}"'.encode() for reason in where.reasons or ())
        self._code = b"" if where.code is None else _code_field(where.code)

    def wanted(self, line: bytes) -> Line | None:
        """Return what a line has, None if it is not wanted. Raises BadLine.

        Most lines are sorted out without being parsed, so a search among millions is cheap.
        """
        where = self._where
        if (self._reasons and not line.startswith(self._reasons, REASON_AT)) or (
            self._code not in line
        ):
            return None
        if where.ids is not None and line[ID_AT : ID_AT + ID_CHARACTERS] not in where.ids:
            return None
        if where.id_prefixes is not None and not line.startswith(where.id_prefixes, ID_AT):
            return None
        found = decode_line(line)
        if not where.wants(*found):
            return None
        if not where.not_allowed and found.letter.code == NOT_ALLOWED:
            self._tally.not_allowed += 1
            return None
        return found


def _code_field(code: str) -> bytes:
    """Return bytes that every line with this code contains. Other lines may contain them too."""
    return b'"code":' + orjson.dumps(code.encode("utf-8", "replace").decode())


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
