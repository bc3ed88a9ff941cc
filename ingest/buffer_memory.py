"""A buffer that holds accepted readings in memory until a writer has stored them.

Promises: never more than `rows_max` readings and `bytes_max` bytes; first in, first out, also for
posts that wait for room; a post waits at most `put_wait_s_max`; nothing is lost when a wait is
cancelled. Room comes free only when blocks are settled, so giving blocks back cannot overflow.
Does not: survive the process, look inside a block, or know what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ingest.block import Block
from ingest.block_queue import BlockQueue
from ingest.ports import BufferStats, JournalStats, Reservation, Work
from ingest.reservation import MemoryReservation
from ingest.waiting import WaitingPosts, WaitingWriters


class MemoryBuffer:
    """A bounded first-in-first-out buffer of blocks: implements ports.Buffer."""

    levels: tuple[str, ...] = ("buffered",)
    broken = False

    def __init__(self, *, rows_max: int, bytes_max: int, put_wait_s_max: float) -> None:
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._rows = 0  # of blocks that are not settled, and reserved
        self._bytes = 0  # the same
        self._queue = BlockQueue()
        self._waiting = WaitingPosts(
            put_wait_s_max, may_wait=self._may_wait, oldest_s=self._queue.oldest_s
        )
        self._writers = WaitingWriters()

    def open(self) -> list[Work]:
        """Do nothing: memory needs no preparation and no work in the background."""
        return []

    async def keep_rest(self) -> None:
        """Keep nothing: what memory holds ends with the process."""

    async def close(self) -> None:
        """Do nothing: there is nothing outside of memory."""

    # The inlet

    async def reserve(self, rows: int, size_bytes: int, *, awaited: bool = False) -> Reservation:
        """Wait for room for one block of `rows` readings and `size_bytes` bytes.

        Raises BufferFull after `put_wait_s_max`, or at once if the waiting posts' bytes are at the
        bound too; Stopping once the buffer is shut.
        """
        waiting = self._waiting
        if not (waiting.posts or waiting.shut):
            reservation = self._place(rows, size_bytes)
            if reservation is not None:
                return reservation
        return await waiting.wait(rows, size_bytes, self._place)

    def _may_wait(self, size_bytes: int) -> bool:
        """Whether there is memory for one more post that waits."""
        return self._bytes + self._waiting.size_bytes + size_bytes <= self._bytes_max

    def _place(self, rows: int, size_bytes: int) -> Reservation | None:
        """Reserve room for a block; None if there is not enough now."""
        if self._rows + rows > self._rows_max or self._bytes + size_bytes > self._bytes_max:
            return None
        self._rows += rows
        self._bytes += size_bytes
        return MemoryReservation(self, rows, size_bytes)

    def unreserve(self, rows: int, size_bytes: int) -> None:
        """Room that was reserved is free again."""
        self._rows -= rows
        self._bytes -= size_bytes
        self._waiting.admit()

    def accept(self, block: Block, rows: int, size_bytes: int) -> None:
        """Let the writers have a block; `rows` and `size_bytes` were reserved for it."""
        queue = self._queue
        self._rows -= rows - block.rows
        self._bytes -= size_bytes - len(block.tuples)
        queue.blocks.append(block)
        queue.rows_waiting += block.rows
        if self._writers.waits:
            self._writers.wake(queue.rows_waiting)
        if self._waiting.posts:  # the block may be smaller than its reservation
            self._waiting.admit()

    # The outlet

    @property
    def rows_waiting(self) -> int:
        """Rows that may be taken now."""
        return self._queue.rows_waiting

    @property
    def shut(self) -> bool:
        """Whether no block will ever come in any more."""
        return self._waiting.shut

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""
        return self._queue.first_received_s()

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows wait or the buffer is shut."""
        if self._queue.rows_waiting < rows and not self._waiting.shut:
            await self._writers.wait(rows)

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""
        return self._queue.take(rows_max)

    def settle(self, blocks: Sequence[Block]) -> None:
        """Forget blocks; their room comes free."""
        rows, size_bytes = self._queue.settle(blocks)
        self.unreserve(rows, size_bytes)

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in their order; behind older ones of another writer."""
        self._queue.give_back(blocks)
        self._writers.wake(self._queue.rows_waiting)

    def shut_inlet(self) -> None:
        """Let nothing in any more: waiting posts get Stopping, writers get what is left."""
        self._waiting.shut_out()
        self._writers.wake(inf)

    def stats(self) -> BufferStats:
        """Return what is held now; a writer may have taken the oldest."""
        queue = self._queue
        return BufferStats(
            rows=queue.rows,
            rows_max=self._rows_max,
            size_bytes=self._bytes + self._waiting.size_bytes,
            bytes_max=self._bytes_max,
            rows_waiting=queue.rows_waiting,
            blocks_waiting=len(queue.blocks),
            posts_waiting=len(self._waiting.posts),
            oldest_received_s=queue.oldest_s(),
            rows_taken=queue.rows_taken,
        )

    def journal_stats(self) -> JournalStats:
        """Return that there is no journal."""
        return JournalStats()
