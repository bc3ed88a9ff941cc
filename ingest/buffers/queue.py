"""A queue of blocks, first in, first out, and the writers that wait for rows of it.

Promises: a block that was taken counts until it is settled. Blocks that are given back are in the
order of their receipt again, even if several writers give blocks back.
Does not: have a bound. The buffer has one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from ingest.buffers.shared_block import SharedBlock
from ingest.model.block import Block


class WaitingWriters:
    """Writers that wait for rows; `rows` may be taken from all queues of the buffer together.

    Posts wait for the commit of `awaited` blocks of these. A queue changes both, and calls `wake`
    after it has added some.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.awaited = 0
        self.waits: list[tuple[int, asyncio.Future[None]]] = []  # of how many rows
        self._shut = False

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows or an awaited block may be taken, or no more rows will come."""
        if self._is_over(rows):
            return
        wait = (rows, asyncio.get_running_loop().create_future())
        self.waits.append(wait)
        try:
            await wait[1]
        finally:
            if wait in self.waits:
                self.waits.remove(wait)

    def _is_over(self, rows: int) -> bool:
        return self.rows >= rows or self.awaited > 0 or self._shut

    def wake(self) -> None:
        """Wake the writers whose wait is over."""
        for wait in self.waits[:]:
            if self._is_over(wait[0]):
                self.waits.remove(wait)
                if not wait[1].done():
                    wait[1].set_result(None)

    def shut_out(self) -> None:
        """Let no writer wait any more: no more rows will come."""
        self._shut = True
        self.wake()


class BlockQueue:
    """Blocks in the order of receipt. `writers` counts those that may be taken."""

    def __init__(self, writers: WaitingWriters) -> None:
        self.blocks: deque[Block] = deque()
        self.rows = 0  # in `blocks`, or taken and not settled
        self._writers = writers
        self._received_s: dict[int, float] = {}  # of each block taken, by its id
        self._taken_oldest_s: float | None = None
        self._taken_changed = False  # since `_taken_oldest_s` was computed

    def append(self, block: Block) -> None:
        """Add a block, which writers may take from now on."""
        rows = block.rows
        writers = self._writers
        self.blocks.append(block)
        self.rows += rows
        writers.rows += rows
        if block.ack is not None:
            writers.awaited += 1
        if writers.waits:
            writers.wake()

    def grow(self, last: SharedBlock | None, block: Block) -> bool:
        """Add a block to `last`. Returns False if `last` is not at the end, or takes no more."""
        blocks = self.blocks
        if last is None or not blocks or blocks[-1] is not last.block or not last.takes(block):
            return False
        rows = block.rows
        self.rows += rows
        self._writers.rows += rows
        if self._writers.waits:
            self._writers.wake()
        return True

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""
        blocks = self.blocks
        taken: list[Block] = []
        rows = 0
        while blocks and (not taken or rows + blocks[0].rows <= rows_max):
            block = blocks.popleft()
            block.seal()
            rows += block.rows
            taken.append(block)
            self._received_s[id(block)] = block.received_s
            if block.ack is not None:
                self._writers.awaited -= 1
        self._writers.rows -= rows
        self._taken_changed = True
        return taken

    def settle(self, blocks: Sequence[Block]) -> tuple[int, int]:
        """Drop blocks that were taken; return how many rows and bytes they had."""
        rows = size_bytes = 0
        for block in blocks:
            rows += block.rows
            size_bytes += len(block.tuples)
            del self._received_s[id(block)]
        self.rows -= rows
        self._taken_changed = True
        return rows, size_bytes

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front; older ones of another writer stay before them."""
        waiting = self.blocks
        front: list[Block] = []
        for block in blocks:
            while waiting and waiting[0].received_s < block.received_s:
                front.append(waiting.popleft())
            front.append(block)
            self._writers.rows += block.rows
            if block.ack is not None:
                self._writers.awaited += 1
            del self._received_s[id(block)]
        waiting.extendleft(reversed(front))
        self._writers.wake()

    def first_received_s(self) -> float | None:
        """Return when the first block that waits was received, by the monotonic clock."""
        return self.blocks[0].received_s if self.blocks else None

    def oldest_s(self) -> float | None:
        """Return when the oldest block was received, blocks that were taken included."""
        # Each refused post asks this, thousands a second. So the minimum is computed only after
        # blocks were taken or settled.
        if self._taken_changed:
            self._taken_oldest_s = min(self._received_s.values(), default=None)
            self._taken_changed = False
        oldest_s = self._taken_oldest_s
        if self.blocks and (oldest_s is None or self.blocks[0].received_s < oldest_s):
            return self.blocks[0].received_s
        return oldest_s
