"""Where dead letters are, as commands and the dashboard see it: read, searched, marked as done.

    folder_store.py   the files of a state folder
    stream/store.py   the messages of a stream

Promises: what is read has passed its checksum. An id that is there twice is listed once.
Does not: know which of the two it works with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from ingest.dead_letters.reader import LiveLetter, Selection, Tally
from ingest.model.ledger import DeadLetterStats
from ingest.model.ports import DeadLetters

IDS_COUNTED_MAX = 1_000_000  # beyond that, an id that is there twice is listed twice
PART_LETTERS = 1_000
PART_BYTES = 4 * 1024**2

Parts = AsyncIterator[list[LiveLetter]]  # at most PART_LETTERS and about PART_BYTES each


class Extent(NamedTuple):
    """How much there is, with what is done but not removed yet. `stream` is empty for files."""

    files: int
    size_bytes: int
    stream: str = ""
    empty: bool = False  # nothing at all is there


class Section(Protocol):
    """Letters that are near to each other: one file, or some places of a stream.

    `cut`: what is older in it is left out, and so are all older sections.
    """

    @property
    def cut(self) -> bool:
        """Whether older letters are left out."""

    def read(self, where: Selection, tally: Tally) -> Parts:
        """Yield its letters in parts, oldest first."""


class LetterStore(Protocol):
    """The live letters of one place. Every method raises IngestError, or OSError."""

    def oldest(self, where: Selection, tally: Tally) -> Parts:
        """Yield the live letters in parts, oldest first. An id may be there twice."""

    def sections(self, bytes_max: int | None = None) -> AsyncIterator[Section]:
        """Yield the sections, the newest first. All but the last `bytes_max` bytes are left out."""

    def held(self, wait_s_max: float | None = None) -> AbstractAsyncContextManager[None]:
        """Keep other replays away, if letters could be marked wrongly otherwise.

        Raises IngestError if that is not possible within `wait_s_max` (None: some seconds).
        """

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record that letters are done. When this returns, that outlives a power cut."""

    async def extent(self) -> Extent:
        """Return how much there is."""


class ReadableDeadLetters(DeadLetters, Protocol):
    """The dead letters of a process that shows them, too."""

    @property
    def letters(self) -> LetterStore:
        """The live letters."""

    def stats(self) -> DeadLetterStats:
        """Return the figures of the last look. Never blocks."""


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
    async for section in store.sections(bytes_max):
        if len(found) >= count and number - len(found) >= more_max:
            whole = False
            break
        its = deque[LiveLetter](maxlen=count - len(found))
        async for live in once(section.read(where, tally), seen):
            its.append(live)
            number += 1
        found += reversed(its)
        whole = whole and not section.cut
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
