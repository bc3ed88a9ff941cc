"""Gather blocks into batches: when a batch closes, and how large it may be.

A batch closes once `rows_min` readings wait, or `linger_s` after the first of them was received.
Blocks are never split. Under backlog a batch takes all that waits, up to a cap that halves after
trouble and doubles with each clean write (batches of 100 reach 200 k rows/s, of 5,000 a million).
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from ingest.model.block import Block
from ingest.model.ports import Outlet
from ingest.system.clock import monotonic_s


class Batch(NamedTuple):
    """Blocks for one write, and what closed it: count, time, backlog or drain."""

    blocks: list[Block]
    rows: int
    trigger: str


class BatchCap:
    """How many rows a batch may have now, `rows_min` to `rows_max`; all writers share it.

    `write_s_max` is what a write may take. A batch that came near it is followed by smaller ones:
    one that exceeds it costs all of that time, and a try of each of its posts.
    """

    def __init__(self, rows_min: int, rows_max: int, *, write_s_max: float) -> None:
        self.rows_min = rows_min
        self.rows_max = rows_max
        self.rows = rows_max
        self._write_s_max = write_s_max

    def written(self, rows: int, took_s: float) -> None:
        """Allow twice as many after a quick clean write, half of `rows` after a slow one."""
        if took_s > self._write_s_max / 2:
            self.shrink(rows)
        elif took_s < self._write_s_max / 8 and self.rows < self.rows_max:
            self.rows = min(self.rows * 2, self.rows_max)

    def shrink(self, rows: int) -> None:
        """Allow half of `rows`, the size that met trouble."""
        self.rows = max(self.rows_min, min(self.rows, rows // 2))


class Gatherer:
    """Gathers batches from an outlet, for one writer at a time, in the order of arrival."""

    def __init__(self, outlet: Outlet, cap: BatchCap, *, linger_s: float) -> None:
        self._outlet = outlet
        self._cap = cap
        self._linger_s = linger_s
        self._gathering = asyncio.Lock()

    async def gather(self) -> Batch | None:
        """Wait for a batch. None once the outlet is shut and empty. Safe to cancel."""
        async with self._gathering:
            outlet = self._outlet
            if outlet.rows_waiting >= self._cap.rows_min:
                trigger = "backlog"  # it was waiting for a writer, not the other way round
            else:
                await outlet.wait_rows(1)
                trigger = await self._linger()
            if outlet.shut:
                trigger = "drain"
            blocks = outlet.take(self._cap.rows)
        if not blocks:
            return None
        return Batch(blocks, sum(block.rows for block in blocks), trigger)

    async def _linger(self) -> str:
        first_s = self._outlet.first_received_s()
        if first_s is None:
            return "drain"
        if self._outlet.rows_waiting < self._cap.rows_min:
            left_s = first_s + self._linger_s - monotonic_s()
            if left_s <= 0:
                return "time"
            try:
                async with asyncio.timeout(left_s):
                    await self._outlet.wait_rows(self._cap.rows_min)
            except TimeoutError:
                return "time"
        return "count"


def halves(blocks: list[Block]) -> tuple[list[Block], list[Block]]:
    """Cut between two blocks, as near to half of the rows as that allows; needs two blocks."""
    half = sum(block.rows for block in blocks) / 2
    rows = 0
    for cut, block in enumerate(blocks[:-1], start=1):
        rows += block.rows
        if rows + blocks[cut].rows / 2 >= half:
            return blocks[:cut], blocks[cut:]
    return blocks[:-1], blocks[-1:]
