"""The automatic replay: sends some dead letters through the buffer again.

It takes the letters with the reasons `retries_exhausted` and `drained`, because nothing is wrong
with them; those of earlier processes too. It sends one block at a time, slower than live readings,
and only while the buffer has space and the database answers. Where the letters are, and who else
may replay them now, its source knows: folder/store.py or roles/letters.py.
Values of one moment that a declared table takes become one row again; those at the border of two
blocks may become a row, and rows of `readings`.
A letter is done after the outcome of its block is known. If the process is killed in between, the
letter is sent twice, and the table's key makes the second time harmless.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ingest.dead_letters.store import LiveLetter, Selection
from ingest.model.block import Ack, Block, Outcome
from ingest.model.errors import (
    BrokerAway,
    BrokerRefused,
    BufferFull,
    DeadLettersBroken,
    Stopping,
)
from ingest.model.ledger import Ledger
from ingest.model.placed_rows import place_readings
from ingest.model.ports import BufferStats, Inlet
from ingest.model.reading import DRAINED, EXHAUSTED, Letter, name_fault
from ingest.model.tables import Tables
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.logs import get_logger
from ingest.system.waiting import backoff_s, first_of

REPLAYED = Selection(reasons=(EXHAUSTED, DRAINED))
BLOCK_ROWS_MAX = 500  # small beside a live batch, so it delays live readings little
FAILURES_MAX = 3  # failed blocks in a row: then the cause is the database, not the blocks
UNLOCKED_S_MIN = 0.02  # pause between blocks, in which a replay by hand can take the lock
REPLAY_PAUSE_S = 1.0  # between two searches for letters to replay
PAUSE_S_MAX = 300.0  # longest pause while letters keep failing
LOOK_S = 1.0  # while a block has no outcome: pause between checks for full dead letters
TS_US_MAX = 253_402_300_800_000_000  # the year 10000


class ReplaySource(Protocol):
    """The letters of one place that the replay takes, whose reasons are those of REPLAYED.

    Every method raises DeadLettersBroken, BrokerAway, BrokerRefused or OSError.
    """

    def search(self) -> AbstractAsyncContextManager[bool]:
        """Begin to go through all letters; give False if there are none that we may replay."""

    def block(self, rows_max: int) -> AbstractAsyncContextManager[list[LiveLetter] | None]:
        """Give the next letters, which nobody else replays while the block runs.

        None: there are no more, or somebody else replays them now.
        """

    async def sent(self, stored: Sequence[LiveLetter], *, well: bool) -> None:
        """Note that those of the last block are done. `well`: none of it failed again."""


class Replayer:
    """The replay of one process. `run` ends soon after `stopping` is set; it is never cancelled.

    It sends at most `rows_per_s`, one block at a time, and searches for letters every `pause_s`.
    `tables` are the declared ones.
    """

    def __init__(
        self,
        source: ReplaySource,
        *,
        inlet: Inlet,
        outlet_stats: Callable[[], BufferStats],
        ledger: Ledger,
        database_up: Callable[[], bool],
        tables: Tables,
        post_rows_max: int,
        rows_per_s: int,
        pause_s: float,
    ) -> None:
        self._source = source
        self._inlet = inlet
        self._outlet_stats = outlet_stats
        self._ledger = ledger
        self._database_up = database_up
        self._tables = tables
        self._given_up: Ack | None = None  # of a block for which `_send` stopped waiting
        self._rows_per_s = rows_per_s
        self._pause_s = pause_s
        self._rows_max = min(BLOCK_ROWS_MAX, post_rows_max, rows_per_s)
        self._log = get_logger()

    async def run(self, stopping: asyncio.Event) -> None:
        """Search for letters every `pause_s`, less often while they keep failing."""
        failures = 0
        pause_s = 0.0
        while not await sleep_unless(stopping, pause_s):
            went_well = True
            try:
                if self._may_send():
                    went_well = await self._replay_all(stopping)
            except (BufferFull, Stopping):
                pass  # no space now: live readings come first
            except (DeadLettersBroken, BrokerAway, BrokerRefused, OSError) as error:
                went_well = False
                self._log.warning("replay_failed", why=str(error))
            pause_s = self._pause_s
            failures = 0 if went_well else failures + 1
            if failures:
                pause_s += backoff_s(failures, first_s=pause_s, cap_s=PAUSE_S_MAX)

    async def _replay_all(self, stopping: asyncio.Event) -> bool:
        """Replay all letters there are; return False if some of them failed again."""
        failed = failed_in_a_row = 0
        async with self._source.search() as goes_on:
            # Live readings and a replay by hand come first.
            while goes_on and not stopping.is_set() and self._may_send():
                began_s = monotonic_s()
                async with self._source.block(self._rows_max) as letters:
                    if letters is None or stopping.is_set():
                        break
                    well = await self._replay_some(letters, stopping)
                if well is None:
                    break
                failed += not well
                failed_in_a_row = 0 if well else failed_in_a_row + 1
                if failed_in_a_row >= FAILURES_MAX:
                    break
                spare_s = began_s + len(letters) / self._rows_per_s - monotonic_s()
                await sleep_unless(stopping, max(spare_s, UNLOCKED_S_MIN))
        return not failed

    async def _replay_some(
        self, letters: Sequence[LiveLetter], stopping: asyncio.Event
    ) -> bool | None:
        """Replay a block; return False if it failed again, None if its outcome is not known."""
        good = [each for each in letters if fits_a_row(each.letter)]
        if len(good) < len(letters):
            self._log.warning("dead_letters_not_readings", lines=len(letters) - len(good))
        stored: Sequence[LiveLetter] = ()
        if good:
            readings = [each.letter.reading for each in good if each.letter.reading is not None]
            tuples, order = place_readings(readings, self._tables)
            good = [good[each] for each in order]
            outcome = await self._send(good, tuples, stopping)
            if outcome is None:
                return None
            if not outcome.set_aside:  # else all of them are letters again, with their reason
                live = outcome.coming_back
                stored = [each for row, each in enumerate(good) if row not in live]
        well = len(stored) == len(good)
        await self._source.sent(stored, well=well)
        if good:
            self._log.info("replayed", rows=len(stored), set_aside_again=not well)
        return well

    async def _send(
        self, letters: Sequence[LiveLetter], tuples: bytes, stopping: asyncio.Event
    ) -> Outcome | None:
        """Send one block and wait for its outcome. Return None if the service stops before.

        Return None too if the database goes away or writes are paused: that may last, and to
        discard some letters an operator needs the replay lock. The block itself is still written
        later. Its letters are not marked, so they are sent once more; the table's key makes that
        harmless.
        If the database refuses rows now, the writer dead-letters them with that reason.
        """
        reservation = await self._inlet.reserve(len(letters), len(tuples), awaited=True)
        ack = Ack()
        block = Block(
            tuples,
            len(letters),
            received_s=monotonic_s(),
            received_us=min(each.letter.received_us for each in letters),
            newest_ts_us=max(r.ts_us for each in letters if (r := each.letter.reading)),
            items=[each.letter.item for each in letters],
            ack=ack,
            replayed=True,
        )
        block.doubtful = True  # an earlier write of it may have been committed
        await reservation.put(block)
        self._ledger.replayed += block.rows
        while not (ack.resolved or stopping.is_set()) and self._database_up():
            await first_of(ack.wait(), stopping.wait(), within_s=LOOK_S)
        if ack.resolved:
            return await ack.wait()
        self._given_up = ack
        return None

    def _may_send(self) -> bool:
        """Whether the database is open, no block is pending, and half of the buffer is free."""
        stats = self._outlet_stats()
        return (
            self._database_up()
            and (self._given_up is None or self._given_up.resolved)
            and stats.rows * 2 < stats.rows_max
            and stats.size_bytes * 2 < stats.bytes_max
        )


def fits_a_row(letter: Letter) -> bool:
    """Whether the letter has a reading that fits a row. Somebody may have edited the line."""
    reading = letter.reading
    return (
        reading is not None
        and abs(reading.ts_us) < TS_US_MAX
        and math.isfinite(reading.value)
        and name_fault(reading.device_id) is None
        and name_fault(reading.metric) is None
    )
