"""The buffer in memory: it keeps accepted blocks until a writer has stored them.

Promises: it never has more than `rows_max` rows and `bytes_max` bytes. Blocks, and posts that wait
for room, are served first in, first out. A post waits at most `put_wait_s_max`. A wait that is
cancelled loses nothing. A block that a writer has taken keeps its room until it is settled. So
there is always room to give it back.
Does not: outlive the process, read the rows of a block, or know what becomes of the block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from ingest.buffers.bounded_memory import COMPLETED, BoundedMemory
from ingest.buffers.queue import BlockQueue
from ingest.buffers.shared_block import SharedBlock
from ingest.buffers.waiting import WaitingPosts, WaitingWriters
from ingest.model.block import SHARED_ROWS_MAX, Block
from ingest.model.ports import BufferStats, JournalStats, Reservation, Sizes, Told, Work


class MemoryBuffer:
    """A bounded first-in-first-out buffer of blocks: implements ports.Buffer."""

    levels: tuple[str, ...] = ("buffered",)
    broken = False

    def __init__(
        self,
        *,
        rows_max: int,
        bytes_max: int,
        put_wait_s_max: float,
        shared_rows_max: int = SHARED_ROWS_MAX,
    ) -> None:
        self._shared_rows_max = shared_rows_max
        self._last: SharedBlock | None = None
        self._writers = WaitingWriters()
        self._queue = BlockQueue(self._writers)
        self._waiting = WaitingPosts(
            put_wait_s_max, may_wait=self._may_wait, oldest_s=self._queue.oldest_s
        )
        self._memory = BoundedMemory(rows_max, bytes_max, self._waiting.admit)

    def open(self) -> list[Work]:
        """Return no work: memory needs none."""
        return []

    async def keep_rest(self) -> None:
        """Do nothing: no block here outlives the process."""

    async def close(self) -> None:
        """Do nothing: there are no files."""

    # The inlet

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Keep a block at once if there is room and no other post waits for room: see ports.Inlet.

        It may become a part of the last block.
        """
        assert told is None, "nothing here outlives the process"
        waiting, memory = self._waiting, self._memory
        if waiting.posts or waiting.shut or not memory.take(block.rows, len(block.tuples)):
            return False
        if not self._queue.grow(self._last, block):
            self._last = SharedBlock(block, self._shared_rows_max)
            self._queue.append(block)
        return True

    def append(self, block: Block) -> None:
        """Add a block that has come already, even if there is no room for it."""
        self._memory.add(block.rows, len(block.tuples))
        self._queue.append(block)

    async def reserve(
        self, rows: int, size_bytes: int, *, awaited: bool = False, sender: str = ""
    ) -> Reservation:
        """Wait for room for one block of `rows` rows and `size_bytes` bytes.

        Raises BufferFull after `put_wait_s_max`, or at once if the bodies of waiting posts take too
        much memory. Raises Stopping once the buffer is shut.
        """
        return await self._waiting.wait(rows, size_bytes, self._place, sender=sender)

    def reserve_all(self, sizes: Sizes, *, awaited: bool = False) -> list[Reservation] | None:
        """Reserve room for all blocks of a post at once: see ports.Inlet."""
        return self._waiting.place_all(sizes, self._place)

    def _place(self, rows: int, size_bytes: int) -> Reservation | None:
        if not self._memory.take(rows, size_bytes):
            return None
        return Reservation(rows, size_bytes, self._put, self._memory.free)

    def _put(self, block: Block, rows: int, size_bytes: int, _durable: bool) -> Awaitable[None]:
        self._queue.append(block)
        self._memory.trim(block, rows, size_bytes)
        return COMPLETED

    def _may_wait(self, size_bytes: int) -> bool:
        """Whether there is memory for one more post that waits."""
        memory = self._memory
        return memory.size_bytes + self._waiting.size_bytes + size_bytes <= memory.bytes_max

    @property
    def used(self) -> float:
        """The share of the bounds that is in use, without posts that wait for room."""
        return self._memory.used

    def shut_inlet(self) -> None:
        """Accept no post any more. Waiting posts get Stopping; writers take what is left."""
        self._waiting.shut_out()
        self._writers.shut_out()

    # The outlet

    @property
    def rows_waiting(self) -> int:
        """Rows that writers may take now."""
        return self._writers.rows

    @property
    def shut(self) -> bool:
        """Whether no block will come in any more."""
        return self._waiting.shut

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""
        return self._queue.first_received_s()

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows may be taken, or the buffer is shut."""
        await self._writers.wait_rows(rows)

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""
        return self._queue.take(rows_max)

    def settle(self, blocks: Sequence[Block]) -> None:
        """Drop blocks that were taken; their room comes free."""
        self._memory.free(*self._queue.settle(blocks))

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in order of receipt."""
        self._queue.give_back(blocks)

    def stats(self) -> BufferStats:
        """Return what is in the buffer now, blocks that writers have taken included."""
        memory, rows = self._memory, self._queue.rows
        return BufferStats(
            rows=rows,
            rows_max=memory.rows_max,
            size_bytes=memory.size_bytes + self._waiting.size_bytes,
            bytes_max=memory.bytes_max,
            rows_waiting=self._writers.rows,
            blocks_waiting=len(self._queue.blocks),
            posts_waiting=len(self._waiting.posts),
            oldest_received_s=self._queue.oldest_s(),
            rows_taken=rows - self._writers.rows,
        )

    def journal_stats(self) -> JournalStats:
        """Return zeros: there is no journal."""
        return JournalStats()
