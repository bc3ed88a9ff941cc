"""Where dead letters are, as commands and the dashboard see it: read, searched, marked as done.

    folder/store.py    the files of a state folder
    roles/letters.py   the messages of a stream

Promises: what is read has passed its checksum. An id that is there twice is listed once.
Does not: know which of the two it works with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson

from ingest.dead_letters.format import ID_AT, ID_CHARACTERS, REASON_AT, BadLine, Line, decode_line
from ingest.model.codes import NOT_ALLOWED
from ingest.model.reading import Letter

IDS_COUNTED_MAX = 1_000_000  # beyond that, an id that is there twice is listed twice
PART_LETTERS = 1_000
PART_BYTES = 4 * 1024**2


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


class Sieve:
    """Finds the wanted letters among many lines. `tally` counts lines that are altered."""

    def __init__(self, where: Selection, tally: Tally | None = None) -> None:
        self._where = where
        self.tally = Tally() if tally is None else tally
        self._reasons = tuple(f'{reason}"'.encode() for reason in where.reasons or ())
        self._code = b"" if where.code is None else _code_field(where.code)

    def wanted(self, line: bytes) -> Line | None:
        """Return what a line has, None if it is not wanted or altered.

        Most lines are sorted out without being parsed, so a search among millions is cheap.
        """
        where = self._where
        if (
            (self._reasons and not line.startswith(self._reasons, REASON_AT))
            or self._code not in line
            or (where.ids is not None and line[ID_AT : ID_AT + ID_CHARACTERS] not in where.ids)
            or (where.id_prefixes is not None and not line.startswith(where.id_prefixes, ID_AT))
        ):
            return None
        try:
            found = decode_line(line)
        except BadLine:
            self.tally.altered += 1
            return None
        if not where.wants(*found):
            return None
        if not where.not_allowed and found.letter.code == NOT_ALLOWED:
            self.tally.not_allowed += 1
            return None
        return found


def _code_field(code: str) -> bytes:
    """Return bytes that every line with this code contains. Other lines may contain them too."""
    return b'"code":' + orjson.dumps(code.encode("utf-8", "replace").decode())


Parts = AsyncIterator[list[LiveLetter]]  # at most PART_LETTERS and about PART_BYTES each


class Extent(NamedTuple):
    """How much there is, with what is done but not removed yet. `stream` is empty for files."""

    files: int
    size_bytes: int
    stream: str = ""
    empty: bool = False  # nothing at all is there


class LetterStore(Protocol):
    """The live letters of one place. Every method raises IngestError, or OSError."""

    def oldest(self, where: Selection, tally: Tally) -> Parts:
        """Yield the live letters in parts, oldest first. An id may be there twice."""

    def newest(
        self, where: Selection, tally: Tally, bytes_max: int | None = None
    ) -> AsyncIterator[tuple[Parts, bool]]:
        """Yield sections, the newest first: the letters of one file, or of some places of a stream.

        The letters of a section are yielded in parts, oldest first. All but the last `bytes_max`
        bytes are left out; the flag says whether older letters than those of a section are.
        """

    def held(self, wait_s_max: float | None = None) -> AbstractAsyncContextManager[None]:
        """Keep other replays away, if letters could be marked wrongly otherwise.

        Raises IngestError if that is not possible within `wait_s_max` (None: some seconds).
        """

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record that letters are done. When this returns, that outlives a power cut."""

    async def extent(self) -> Extent:
        """Return how much there is."""


class Newest(NamedTuple):
    """The newest letters, newest first; how many more were counted; whether all was looked at."""

    letters: list[LiveLetter]
    more: int
    whole: bool


async def newest(
    store: LetterStore,
    where: Selection,
    count: int,
    *,
    tally: Tally | None = None,
    more_max: int = 0,
    bytes_max: int | None = None,
) -> Newest:
    """Find the newest letters, each id once. It stops when it has counted `more_max` more."""
    tally = tally if tally is not None else Tally()
    seen: set[tuple[str, str]] = set()
    found: list[LiveLetter] = []
    number = 0
    whole = True
    async for parts, cut in store.newest(where, tally, bytes_max):
        if len(found) >= count and number - len(found) >= more_max:
            whole = False
            break
        its = deque[LiveLetter](maxlen=count - len(found))
        async for live in once(parts, seen):
            its.append(live)
            number += 1
        found += reversed(its)
        whole = whole and not cut
    return Newest(found, number - len(found), whole)


async def once(parts: Parts, seen: set[tuple[str, str]] | None = None) -> AsyncIterator[LiveLetter]:
    """Yield each letter once: two processes may have written the same one."""
    seen = set() if seen is None else seen
    async for part in parts:
        for live in part:
            key = (live.id, live.letter.reason)
            if key not in seen:
                if len(seen) < IDS_COUNTED_MAX:
                    seen.add(key)
                yield live


async def first(
    store: LetterStore, where: Selection, count: int, bytes_max: int, tally: Tally | None = None
) -> list[LiveLetter]:
    """Return letters for an action, oldest first, with every copy of an id."""
    found: list[LiveLetter] = []
    size = 0
    async for part in store.oldest(where, tally or Tally()):
        for live in part:
            found.append(live)
            size += len(live.line)
            if len(found) >= count or size >= bytes_max:
                return found
    return found


async def counted(store: LetterStore, where: Selection, bytes_max: int) -> tuple[int, bool]:
    """Return how many letters match, and whether all of them were counted."""
    found = size = 0
    async for part in store.oldest(where, Tally()):
        found += len(part)
        size += sum(len(live.line) for live in part)
        if size >= bytes_max:
            return found, False
    return found, True
