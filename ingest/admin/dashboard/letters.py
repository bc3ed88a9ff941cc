"""Dead letters for the page: lists the newest ones, shows one in full, replays and discards.

The list is read from the newest on, at most LOOK_BYTES_MAX, for one request at a time. The newest
letters are what a user of the page needs first; `ingest dlq` shows all of them.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from ingest.dead_letters.format import reading_object
from ingest.dead_letters.manual_replay import Item, ManualReplay, item_of_letter
from ingest.dead_letters.store import (
    EVERYTHING,
    LetterStore,
    LiveLetter,
    Selection,
    Tally,
    counted,
    device_of,
    first,
    newest,
)
from ingest.formats.post import Rules
from ingest.model.errors import (
    BrokerAway,
    BrokerRefused,
    DeadLettersBroken,
    IngestError,
    Refused,
    ReplayStopped,
)
from ingest.model.ports import Sink
from ingest.system.clock import rfc3339_or_us
from ingest.system.waiting import in_slices

LISTED_MAX = 200
LOOK_BYTES_MAX = 4 * 1024**2  # some 10,000 letters, 0.1 s in a thread
ACT_LETTERS_MAX = 5_000
ACT_BYTES_MAX = 16 * 1024**2
COUNT_BYTES_MAX = 64 * 1024**2
# Decoded in one round of the event loop, in about a millisecond: at most so many letters, and so
# many bytes unless one letter has more.
ROUND_LETTERS_MAX = 100
ROUND_BYTES_MAX = 64 * 1024
TEXT_CHARACTERS_MAX = 300  # of an original in the list
LOCK_WAIT_S_MAX = 5.0


class Letters:
    """The dead letters of one service. `make_sink` returns None while there is no database."""

    def __init__(
        self,
        store: LetterStore,
        rules: Rules,
        make_sink: Callable[[], Sink | None],
    ) -> None:
        self._store = store
        self._rules = rules
        self._make_sink = make_sink
        self._reading = asyncio.Lock()  # one at a time: many would take the GIL from the event loop

    async def listed(
        self, where: Selection = EVERYTHING, count: int = LISTED_MAX
    ) -> dict[str, Any]:
        """Return the newest live letters that are wanted, with shortened texts. Raises Refused."""
        count = max(1, min(count, LISTED_MAX))
        async with self._read():
            found = await newest(self._store, where, count, bytes_max=LOOK_BYTES_MAX)
            described = await asyncio.to_thread(
                lambda: [_described(each) for each in found.letters]
            )
        return {"letters": described, "looked_at_all": found.whole and not found.more}

    async def in_full(self, id_: str) -> dict[str, Any]:
        """Return one live letter in full. Raises Refused `not_found`."""
        where = Selection(ids=frozenset([id_.encode()]))
        async with self._read():
            found = await first(self._store, where, 1, ACT_BYTES_MAX)
            if not found:
                raise Refused("not_found", "there is no such live dead letter (any more)")
            return await asyncio.to_thread(_described, found[0], 1_000_000)

    async def counted(self, where: Selection) -> dict[str, Any]:
        """Return how many live letters match; at least that many if not `all`. Raises Refused."""
        async with self._read():
            number, whole = await counted(self._store, where, COUNT_BYTES_MAX)
        return {"matching": number, "all": whole}

    async def discard(self, where: Selection, most: int = ACT_LETTERS_MAX) -> dict[str, Any]:
        """Mark letters as done without writing them to the table, oldest first. Raises Refused.

        At most `most` and ACT_LETTERS_MAX at once. So what came after the user was asked is kept.
        """
        letters = await self._locked(where, lambda found: self._mark(found, "discarded"), most)
        return {"discarded": len(letters)}

    async def replay(
        self, where: Selection = EVERYTHING, most: int = ACT_LETTERS_MAX
    ) -> dict[str, Any]:
        """Validate letters again and write them to the table, oldest first. Raises Refused.

        At most `most` and ACT_LETTERS_MAX at once. Letters that are refused again are reported and
        kept. So are those `not_allowed` that were passed over: see Selection.for_replay.
        """
        sink = self._make_sink()
        if sink is None:
            raise Refused("starting", "the service has not seen its database yet")
        done: list[Item] = []

        async def note(items: Sequence[Item]) -> None:
            done.extend(items)

        where = where.for_replay()
        by_hand = ManualReplay(
            sink=sink, rules=self._rules, done=note, any_device=where.not_allowed
        )
        stopped, tally = "", Tally()

        async def send(letters: list[LiveLetter]) -> None:
            nonlocal stopped
            try:
                async for some in in_slices(rounds(letters)):
                    await by_hand.run(map(item_of_letter, some))
            except ReplayStopped as error:
                stopped = str(error)
            finally:
                await self._mark([each.source for each in done if each.source], "replayed")

        try:
            letters = await self._locked(where, send, most, tally)
        finally:
            await sink.close()
        summary = by_hand.summary
        return {
            "asked": len(letters),
            "replayed": summary.letters,
            "new": summary.new,
            "duplicate": summary.duplicate,
            "refused": summary.refused,
            "not_allowed_left": tally.not_allowed,
            "refusals": [
                {"id": each.id, "code": each.code, "message": each.message}
                for each in summary.refusals
            ],
            "stopped": stopped,
        }

    async def _locked(
        self,
        where: Selection,
        act: Callable[[list[LiveLetter]], Awaitable[None]],
        most: int,
        tally: Tally | None = None,
    ) -> list[LiveLetter]:
        """Find letters and call `act` with them while nobody else may mark them."""
        try:
            async with self._store.held(LOCK_WAIT_S_MAX):
                with _readable():
                    count = min(most, ACT_LETTERS_MAX)
                    letters = await first(self._store, where, count, ACT_BYTES_MAX, tally)
                await act(letters)
        except IngestError as error:
            if isinstance(error, Refused):
                raise
            raise Refused("busy", str(error), retry_after_s=5) from error
        return letters

    async def _mark(self, letters: Sequence[LiveLetter], how: str) -> None:
        if not letters:
            return
        try:
            await self._store.mark_done(letters, how)
        except (DeadLettersBroken, BrokerAway, BrokerRefused) as error:
            raise Refused("disk_low", "the letters could not be marked as done") from error

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[None]:
        async with self._reading:
            with _readable():
                yield


@contextmanager
def _readable() -> Iterator[None]:
    """Turn errors of reading into refusals."""
    try:
        yield
    except OSError as error:
        why = f"the dead letters cannot be read: {error.strerror}"
        raise Refused("disk_low", why) from error
    except (BrokerAway, BrokerRefused) as error:
        raise Refused("busy", f"the dead letters: {error}", retry_after_s=5) from error


def rounds(letters: Sequence[LiveLetter]) -> Iterator[list[LiveLetter]]:
    """Divide letters into those of one round each."""
    some: list[LiveLetter] = []
    size = 0
    for live in letters:
        size += len(live.line)
        if some and (size > ROUND_BYTES_MAX or len(some) == ROUND_LETTERS_MAX):
            yield some
            some, size = [], len(live.line)
        some.append(live)
    if some:
        yield some


def _described(live: LiveLetter, characters_max: int = TEXT_CHARACTERS_MAX) -> dict[str, Any]:
    letter = live.letter
    original = _text(letter.original)
    return {
        "id": live.id,
        "reason": letter.reason,
        "code": letter.code,
        "message": letter.message[:characters_max],
        "field": letter.field,
        "sender": letter.sender,
        "attempts": letter.attempts,
        "received_at": rfc3339_or_us(letter.received_us),
        "failed_at": rfc3339_or_us(live.failed_us),
        "device": device_of(letter),
        "reading": reading_object(letter.reading) if letter.reading is not None else None,
        "original": original[:characters_max] if original is not None else None,
        "cut": original is not None and len(original) > characters_max,
    }


def _text(original: bytes | None) -> str | None:
    if original is None:
        return None
    try:
        return original.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(original).decode()
