"""Finds out whose fault a failure of class 42 is: that of some rows, or an operator's.

A row's policy (row-level security) and a trigger that finds no table for a row fail with the same
SQLSTATEs as a missing privilege or a broken trigger. If the table takes other rows at the same
time, it is the fault of the rows that it refuses.
Promises: only a few rows of each batch are tried, so a broken table costs little.
Does not: store a row, or judge how many rows may be refused; the circuit breaker does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from ingest.model.block import Block
from ingest.model.ledger import Ledger
from ingest.model.ports import Sink
from ingest.model.rows import row_offsets
from ingest.system.clock import monotonic_s
from ingest.writer.batch import Gatherer
from ingest.writer.breaker import CircuitBreaker
from ingest.writer.database_state import DatabaseState
from ingest.writer.hand import Hand

SAMPLES_MAX = 16  # rows of different posts, and as many of the largest post
BATCHES_MAX = 5
OTHERS_S = 1.0  # if no row of a batch goes through: time for rows of others to arrive
LOOK_S = 0.05  # between two looks whether another writer has stored rows

_T = TypeVar("_T")


class FaultFinder:
    """Asks for one writer."""

    def __init__(
        self,
        *,
        sink: Sink,
        gatherer: Gatherer,
        database_state: DatabaseState,
        breaker: CircuitBreaker,
        ledger: Ledger,
    ) -> None:
        self._sink = sink
        self._gatherer = gatherer
        self._database_state = database_state
        self._breaker = breaker
        self._ledger = ledger

    async def are_rows_at_fault(self, blocks: Sequence[Block], hand: Hand) -> bool:
        """Whether the table takes other rows, or an operator has given up on these.

        All rows of a batch may come from one sender. So the posts behind them are tried too. These
        are taken from the outlet into `hand`. Raises WriteFailed if the database does
        not answer.
        """
        if self._breaker.is_released(blocks):
            return True
        committed = self._ledger.committed
        for _ in range(BATCHES_MAX):
            if await self._sink.takes_any(sample_rows(blocks)):
                return True
            blocks = await self._take_more(committed)
            hand.blocks += blocks
            if self._ledger.committed > committed:
                return True  # another writer has stored rows meanwhile
            if not blocks:
                return False
        return False

    async def _take_more(self, committed: int) -> list[Block]:
        """Take one more batch. If none waits, and writes are not paused, wait a moment for one.

        Ends early if another writer stores rows.
        """
        until_s = monotonic_s() + OTHERS_S
        while self._ledger.committed == committed and monotonic_s() < until_s:
            try:
                async with asyncio.timeout(LOOK_S):
                    batch = await self._gatherer.gather()
            except TimeoutError:
                if not self._database_state.is_open:
                    return []
                continue
            if batch is None:
                return []
            self._ledger.batch_gathered(batch.trigger, batch.rows)
            return batch.blocks
        return []


def sample_rows(blocks: Sequence[Block]) -> list[bytes]:
    """Return a few encoded rows: of posts spread over all of them, and of the largest post."""
    largest = max(blocks, key=lambda block: block.rows)
    rows = [block.tuples[: row_offsets(block.tuples)[1]] for block in _spread(blocks)]
    ends = _spread(list(pairwise(row_offsets(largest.tuples)))[1:])
    return rows + [largest.tuples[start:end] for start, end in ends]


def _spread(items: Sequence[_T]) -> list[_T]:
    """Return at most SAMPLES_MAX of the items, the first and the last among them."""
    last = len(items) - 1
    if last < SAMPLES_MAX:
        return list(items)
    return [items[last * step // (SAMPLES_MAX - 1)] for step in range(SAMPLES_MAX)]
