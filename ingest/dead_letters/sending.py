"""Sends dead letters through the buffer again, one block at a time, for the automatic replays.

Promises: a block is sent only while the buffer has space and the database answers. The outcome is
that of the whole block. It never waits longer than the service runs.
Does not: search for letters, or remove them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ingest.dead_letters.reader import LiveLetter
from ingest.model.ack import Ack, Outcome
from ingest.model.block import Block
from ingest.model.ledger import Ledger
from ingest.model.letter import Letter
from ingest.model.ports import BufferStats, Reservation
from ingest.model.reading import name_fault
from ingest.model.rows import encode_reading
from ingest.system.clock import monotonic_s

REPLAY_PAUSE_S = 1.0  # between two searches for letters to replay
LOOK_S = 1.0  # while a block has no outcome: pause between checks for full dead letters
TS_US_MAX = 253_402_300_800_000_000  # the year 10000


class Rooms(Protocol):
    """The part of an inlet that blocks are sent into."""

    async def reserve(self, rows: int, size_bytes: int, *, awaited: bool = False) -> Reservation:
        """Wait for room; see ports.Inlet."""


class BlockSender:
    """Sends blocks into `inlet`, one at a time. `letters_full`: this pauses the writes."""

    def __init__(
        self,
        *,
        inlet: Rooms,
        outlet_stats: Callable[[], BufferStats],
        ledger: Ledger,
        database_up: Callable[[], bool],
        letters_full: Callable[[], bool],
    ) -> None:
        self._inlet = inlet
        self._outlet_stats = outlet_stats
        self._ledger = ledger
        self._database_up = database_up
        self._letters_full = letters_full
        self._given_up: Ack | None = None  # of a block for which `send` stopped waiting

    async def send(self, letters: Sequence[LiveLetter], stopping: asyncio.Event) -> Outcome | None:
        """Send one block and wait for its outcome. Return None if the service stops before.

        Return None too if writes are paused because the dead letters are full. To discard some of
        them an operator needs the replay lock. The block itself is still written later. Its letters
        are not marked, so they are sent once more; the table's key makes that harmless.
        If the database refuses rows now, the writer dead-letters them with that reason.
        """
        readings = [each.letter.reading for each in letters if each.letter.reading is not None]
        tuples = b"".join(map(encode_reading, readings))
        reservation = await self._inlet.reserve(len(readings), len(tuples), awaited=True)
        ack = Ack()
        block = Block(
            tuples,
            len(readings),
            received_s=monotonic_s(),
            received_us=min(each.letter.received_us for each in letters),
            newest_ts_us=max(each.ts_us for each in readings),
            items=[each.letter.item for each in letters],
            ack=ack,
            replayed=True,
        )
        block.doubtful = True  # an earlier write of it may have been committed
        await reservation.put(block)
        self._ledger.replayed += block.rows
        stop = asyncio.create_task(stopping.wait())
        waiting = asyncio.create_task(ack.wait())
        both = (stop, waiting)
        try:
            ended: set[asyncio.Task[Any]] = set()
            while not ended and not self._letters_full():
                ended, _ = await asyncio.wait(
                    both, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            stop.cancel()
            waiting.cancel()
        if ack.resolved:
            return await ack.wait()
        self._given_up = ack
        return None

    def may_send(self) -> bool:
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
