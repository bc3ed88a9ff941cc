"""The dead letters of a stream, as commands and the dashboard see them.

A letter is done when its message is deleted, so there are no marks and there is no lock: a letter
that two replays write at the same time is one row, because of the table's key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ingest.broker.messages import StoredMessage, StreamMessages
from ingest.broker.roles import DEAD_LETTER_SUBJECT, DEAD_LETTERS
from ingest.dead_letters.store import (
    PART_BYTES,
    PART_LETTERS,
    Extent,
    LiveLetter,
    Parts,
    Selection,
    Sieve,
    Tally,
)
from ingest.system.words import counted

SECTION_PLACES = 1_000  # of the newest section; each older one has twice as many, up to:
SECTION_PLACES_MAX = 64_000
ALL_REASONS = f"{DEAD_LETTER_SUBJECT}*"
_STREAM = Path(DEAD_LETTERS)


class StreamLetter(LiveLetter):
    """A letter of a stream: `path` is the stream's name, `offset` the place of its message."""

    @property
    def found_at(self) -> tuple[str, str]:
        """What has the letter, and where, for a person."""
        return "stream", f"{self.path}, message {self.offset}"


class StreamLetterStore:
    """Implements LetterStore."""

    def __init__(self, messages: StreamMessages) -> None:
        self._messages = messages

    async def oldest(self, where: Selection, tally: Tally) -> Parts:
        """Yield the live letters; see LetterStore.

        The broker leaves out messages that are damaged on its disk, without a word. It counts them,
        so that their number is known if all were read and none came meanwhile.
        """
        before, read = await self._messages.state(), tally.messages
        async for part in letters_between(self._messages, where, tally):
            yield part
        if _subject_of(where) != ALL_REASONS:
            return
        after, read = await self._messages.state(), tally.messages - read
        if after.last_place == before.last_place and after.messages > read:
            missing = counted(after.messages - read, "message")
            tally.unreadable.append(f"{missing} of {DEAD_LETTERS}, damaged on the broker's disk")

    async def newest(
        self, where: Selection, tally: Tally, bytes_max: int | None = None
    ) -> AsyncIterator[tuple[Parts, bool]]:
        """Yield sections of places, the newest first; see LetterStore."""
        state = await self._messages.state()
        if not state.messages:
            return
        first, last = state.first_place, state.last_place
        if bytes_max is not None:
            mean_bytes = max(1, state.size_bytes // state.messages)
            start = await self._start_of_last(max(1, bytes_max // mean_bytes), first, last)
            parts = letters_between(self._messages, where, tally, start=start, end=last)
            yield parts, start > first
            return
        places = SECTION_PLACES
        while last >= first:
            start = max(first, last - places + 1)
            yield letters_between(self._messages, where, tally, start=start, end=last), False
            last, places = start - 1, min(2 * places, SECTION_PLACES_MAX)

    async def _start_of_last(self, count: int, first: int, last: int) -> int:
        """Return the place from which there are at most `count` messages, between two places."""
        while first < last:
            middle = (first + last) // 2
            found = await self._messages.read(middle, ALL_REASONS, messages_max=1)
            if found and found[0].behind >= count:
                first = found[0].place + 1
            else:
                last = middle
        return first

    @asynccontextmanager
    async def held(self, wait_s_max: float | None = None) -> AsyncIterator[None]:
        """Do nothing: deleting is never wrong twice; see LetterStore."""
        yield

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Delete the messages; see LetterStore."""
        await self._messages.delete(each.offset for each in letters)

    async def extent(self) -> Extent:
        """Return the size of the stream."""
        state = await self._messages.state()
        return Extent(0, state.size_bytes, DEAD_LETTERS, empty=not state.messages)


async def letters_between(
    messages: StreamMessages,
    where: Selection,
    tally: Tally,
    *,
    start: int = 1,
    end: int | None = None,
) -> Parts:
    """Yield the wanted letters of some places in parts, oldest first."""
    sieve = Sieve(where, tally)
    subject = _subject_of(where)
    place = start
    while end is None or place <= end:
        most = PART_LETTERS if end is None else min(PART_LETTERS, end - place + 1)
        stored = await messages.read(place, subject, messages_max=most, bytes_max=PART_BYTES)
        if not stored:
            return
        place = stored[-1].place + 1
        if end is not None:
            stored = [each for each in stored if each.place <= end]
        yield await asyncio.to_thread(letters_of, stored, sieve)


def _subject_of(where: Selection) -> str:
    if where.reasons is not None and len(where.reasons) == 1:
        return DEAD_LETTER_SUBJECT + where.reasons[0]
    return ALL_REASONS


def letters_of(stored: Sequence[StoredMessage], sieve: Sieve) -> list[LiveLetter]:
    """Return the wanted letters of some messages."""
    found: list[LiveLetter] = []
    sieve.tally.messages += len(stored)
    for message in stored:
        line = sieve.wanted(message.data)
        if line is not None:
            at = message.place
            found.append(StreamLetter(_STREAM, at, at + 1, *line, message.data))
    return found
