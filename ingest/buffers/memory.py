"""The buffer in memory: it keeps accepted blocks until a writer has stored them.

Promises: it never has more than `rows_max` rows and `bytes_max` bytes. Blocks, and posts that wait
for room, are served first in, first out. A post waits at most `put_wait_s_max`. A wait that is
cancelled loses nothing. A block that a writer has taken keeps its room until it is settled. So
there is always room to give it back.
Does not: outlive the process, read the rows of a block, or know what becomes of the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence

from ingest.buffers.bounded_memory import COMPLETED, BoundedMemory
from ingest.buffers.queue import BlockQueue, WaitingWriters
from ingest.buffers.shared_block import SharedBlock
from ingest.buffers.waiting import Place, WaitingPosts
from ingest.model.block import SHARED_ROWS_MAX, Block, Reservation
from ingest.model.ports import BufferStats, JournalStats, Sizes, Told, Work


class MemoryInlet(ABC):
    """The inlet of a buffer: its memory, and the posts that wait for room in it."""

    def __init__(self, rows_max: int, bytes_max: int, put_wait_s_max: float) -> None:
        self.waiting = WaitingPosts(
            put_wait_s_max, may_wait=self._may_wait, oldest_s=self._oldest_s
        )
        self.memory = BoundedMemory(rows_max, bytes_max, self._memory_freed)

    async def reserve(
        self, rows: int, size_bytes: int, *, awaited: bool = False, sender: str = ""
    ) -> Reservation:
        """Wait for room for one block of `rows` rows and `size_bytes` bytes: see ports.Inlet.

        Raises BufferFull after `put_wait_s_max`, or at once if the bodies of waiting posts take too
        much memory. Raises Stopping once the buffer is shut.
        """
        waiting, place = self._rooms(awaited)
        return await waiting.wait(rows, size_bytes, place, sender=sender)

    def reserve_all(self, sizes: Sizes, *, awaited: bool = False) -> list[Reservation] | None:
        """Reserve room for all blocks of a post at once: see ports.Inlet."""
        waiting, place = self._rooms(awaited)
        return waiting.place_all(sizes, place)

    def _rooms(self, awaited: bool) -> tuple[WaitingPosts, Place]:
        """Return where a post waits, and what reserves its room."""
        return self.waiting, self.place

    def place(self, rows: int, size_bytes: int) -> Reservation | None:
        """Reserve room in memory; return None if there is none now."""
        if not self.memory.take(rows, size_bytes):
            return None
        return Reservation(rows, size_bytes, self._put, self.memory.free)

    @abstractmethod
    def _put(self, block: Block, rows: int, size_bytes: int, durable: bool) -> Awaitable[None]:
        """Take a block, for which so much room was reserved."""

    @abstractmethod
    def _oldest_s(self) -> float | None:
        """Return when the oldest block was received, by the monotonic clock."""

    def _may_wait(self, size_bytes: int) -> bool:
        """Whether there is memory for one more post that waits."""
        memory = self.memory
        return memory.size_bytes + self.waiting.size_bytes + size_bytes <= memory.bytes_max

    def _memory_freed(self) -> None:
        self.waiting.admit()


class MemoryBuffer(MemoryInlet):
    """A bounded first-in-first-out buffer of blocks: implements ports.Buffer."""

    levels: tuple[str, ...] = ("buffered",)

    def __init__(
        self,
        *,
        rows_max: int,
        bytes_max: int,
        put_wait_s_max: float,
        shared_rows_max: int = SHARED_ROWS_MAX,
    ) -> None:
        super().__init__(rows_max, bytes_max, put_wait_s_max)
        self.shared_rows_max = shared_rows_max
        self._last: SharedBlock | None = None
        self.writers = WaitingWriters()
        self.queue = BlockQueue(self.writers)

    @property
    def broken(self) -> bool:
        """Whether the buffer has lost a part that it needs: memory it always has."""
        return False

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
        waiting, memory = self.waiting, self.memory
        if waiting.posts or waiting.shut or not memory.take(block.rows, len(block.tuples)):
            return False
        if not self.queue.grow(self._last, block):
            self._last = SharedBlock(block, self.shared_rows_max)
            self.queue.append(block)
        return True

    def append(self, block: Block) -> None:
        """Add a block that has come already, even if there is no room for it."""
        self.memory.add(block.rows, len(block.tuples))
        self.queue.append(block)

    def _put(self, block: Block, rows: int, size_bytes: int, durable: bool) -> Awaitable[None]:
        self.queue.append(block)
        self.memory.trim(block, rows, size_bytes)
        return COMPLETED

    def shut_inlet(self) -> None:
        """Accept no post any more. Waiting posts get Stopping; writers take what is left."""
        self.waiting.shut_out()
        self.writers.shut_out()

    # The outlet

    @property
    def rows_waiting(self) -> int:
        """Rows that writers may take now."""
        return self.writers.rows

    @property
    def commit_awaited(self) -> bool:
        """Whether a post waits until a block that writers may take is committed."""
        return self.writers.awaited > 0

    @property
    def shut(self) -> bool:
        """Whether no block will come in any more."""
        return self.waiting.shut

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""
        return self.queue.first_received_s()

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows may be taken, or `commit_awaited`, or the buffer is shut."""
        await self.writers.wait_rows(rows)

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""
        return self.queue.take(rows_max)

    def settle(self, blocks: Sequence[Block]) -> None:
        """Drop blocks that were taken; their room comes free."""
        self.memory.free(*self.queue.settle(blocks))

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in order of receipt."""
        self.queue.give_back(blocks)

    def stats(self) -> BufferStats:
        """Return what is in the buffer now, blocks that writers have taken included."""
        memory, rows = self.memory, self.queue.rows
        return BufferStats(
            rows=rows,
            rows_max=memory.rows_max,
            size_bytes=memory.size_bytes + self.waiting.size_bytes,
            bytes_max=memory.bytes_max,
            rows_waiting=self.writers.rows,
            blocks_waiting=len(self.queue.blocks),
            posts_waiting=len(self.waiting.posts),
            oldest_received_s=self._oldest_s(),
            rows_taken=rows - self.writers.rows,
        )

    def _oldest_s(self) -> float | None:
        return self.queue.oldest_s()

    def journal_stats(self) -> JournalStats:
        """Return zeros: there is no journal."""
        return JournalStats()
