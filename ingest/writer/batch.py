"""Batches: when a batch is closed, and how many rows it may have.

A batch for which a post waits until its commit is closed as soon as no other is written. If the one
before had readings of others too, it is closed APART_S after that one: else one such client would
have PostgreSQL commit the readings of all others a few at a time. Nobody waits for the commit of
any other batch. It is closed once `rows_min` rows wait, or `linger_s` after its first block was
received; but not sooner than `linger_s` after the batch before, unless ROWS_AT_ONCE wait.
Blocks are never split. If more rows wait, a batch takes all of them, up to a cap. The cap is halved
after a slow or failed write, and doubled after a quick one. Large batches are faster: batches of
100 rows reach 200,000 rows/s, and batches of 5,000 a million.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ingest.model.block import Block
from ingest.model.ports import Outlet
from ingest.system.clock import monotonic_s

# Larger batches spare PostgreSQL some CPU, but hold the event loop: with 0.1 s and 5,000 rows the
# p99 of durable singles was 1.7 times that with 500, and with 1,000 rows it is not higher.
ROWS_AT_ONCE = 1_000
APART_S = 0.01  # a batch costs PostgreSQL some 0.25 ms, however few rows it has


class Batch(NamedTuple):
    """Blocks for one write. `trigger` is what closed the batch: one of ledger.TRIGGERS."""

    blocks: list[Block]
    rows: int
    trigger: str


class BatchCap:
    """How many rows a batch may have now, from `rows_min` to `rows_max`. All writers share it.

    A write may take `write_s_max`. If one comes near to that, the next batches are smaller. A write
    that takes longer is cut off: its time is lost, and each of its posts has used one try.
    """

    def __init__(self, rows_min: int, rows_max: int, *, write_s_max: float) -> None:
        self.rows_min = rows_min
        self.rows_max = rows_max
        self.rows = rows_max
        self._write_s_max = write_s_max

    def written(self, rows: int, took_s: float) -> None:
        """Double the cap after a quick write. After a slow one allow half of its `rows`."""
        if took_s > self._write_s_max / 2:
            self.shrink(rows)
        elif took_s < self._write_s_max / 8 and self.rows < self.rows_max:
            self.rows = min(self.rows * 2, self.rows_max)

    def shrink(self, rows: int) -> None:
        """Allow half of `rows`, which a failed or slow write had."""
        self.rows = max(self.rows_min, min(self.rows, rows // 2))

    def halved(self, blocks: list[Block], rows: int) -> list[list[Block]]:
        """Return the halves of a piece of a batch, the last one first.

        A piece of one block, or of at most `rows_min` rows, stays whole.
        """
        if len(blocks) == 1 or rows <= self.rows_min:
            return [blocks]
        first, second = halves(blocks)
        return [second, first]


class Gatherer:
    """Gathers batches from an outlet, for one writer at a time. Writers wait in order."""

    def __init__(self, outlet: Outlet, cap: BatchCap, *, linger_s: float) -> None:
        self._outlet = outlet
        self._cap = cap
        self._linger_s = linger_s
        self._gathering = asyncio.Lock()
        self._last_s = float("-inf")  # when the last batch was closed
        self._had_others = False  # it had readings for whose commit nobody waits
        # A small buffer must not be full before. A row has at most some 1,024 bytes.
        room = outlet.stats()
        self._rows_at_once = min(ROWS_AT_ONCE, room.rows_max // 4, room.bytes_max // 4 // 1024)

    async def gather(self) -> Batch | None:
        """Wait for a batch; return None once the outlet is shut and empty. Safe to cancel."""
        async with self._gathering:
            trigger = await self._closed()
            self._last_s = monotonic_s()
            blocks = self._outlet.take(self._cap.rows)
            self._had_others = any(block.ack is None for block in blocks)
        if not blocks:
            return None
        return Batch(blocks, sum(block.rows for block in blocks), trigger)

    async def _closed(self) -> str:
        """Wait until the batch may be closed; return what has closed it."""
        outlet, cap = self._outlet, self._cap
        at_once = max(cap.rows_min, min(self._rows_at_once, cap.rows))
        trigger = "backlog"  # the rows waited for a writer
        if outlet.rows_waiting < at_once:
            await outlet.wait_rows(1)
            if self._had_others:
                apart_s = min(self._linger_s, APART_S)
                await asyncio.sleep(max(0.0, self._last_s + apart_s - monotonic_s()))
            await self._linger(cap.rows_min, outlet.first_received_s())
            await self._linger(at_once, self._last_s)
            trigger = "count" if outlet.rows_waiting >= cap.rows_min else "time"
        if outlet.shut:
            return "drain"
        return "commit" if outlet.commit_awaited else trigger

    async def _linger(self, rows: int, since_s: float | None) -> None:
        """Wait for so many rows, or a post that waits for its commit, until `linger_s` is over."""
        left_s = (since_s or 0.0) + self._linger_s - monotonic_s()
        if left_s > 0 and not self._outlet.commit_awaited:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._outlet.wait_rows(rows)


def halves(blocks: list[Block]) -> tuple[list[Block], list[Block]]:
    """Cut between two blocks, as near as possible to half of the rows. Needs two blocks."""
    half = sum(block.rows for block in blocks) / 2
    rows = 0
    for cut, block in enumerate(blocks[:-1], start=1):
        rows += block.rows
        if rows + blocks[cut].rows / 2 >= half:
            return blocks[:cut], blocks[cut:]
    return blocks[:-1], blocks[-1:]


def in_pieces(blocks: Sequence[Block], rows_max: int) -> list[list[Block]]:
    """Return the blocks in pieces of at most `rows_max` rows, the last one first.

    A block that has more is a piece of its own.
    """
    pieces: list[list[Block]] = []
    rows = rows_max
    for block in blocks:
        rows += block.rows
        if rows > rows_max:
            pieces.append([])
            rows = block.rows
        pieces[-1].append(block)
    return pieces[::-1]


def isolated(blocks: list[Block]) -> list[Block]:
    """Mark blocks: their next write looks for the rows that the database refuses."""
    for block in blocks:
        block.isolate = True
    return blocks
