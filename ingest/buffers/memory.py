"""The buffer in memory: it keeps accepted blocks until a writer has stored them.

Small posts are added to the last block, until a writer takes it.
Promises: it never has more than `rows_max` rows and `bytes_max` bytes. Blocks, and posts that wait
for room, are served first in, first out. A wait that is cancelled loses nothing. A block that a
writer has taken keeps its room until it is settled. So there is always room to give it back; and
blocks that several writers give back are in the order of their receipt again.
Does not: outlive the process, read the rows of a block, or know what becomes of the block.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence

from ingest.buffers.waiting import Place, WaitingPosts
from ingest.model.block import SHARED_BYTES_MAX, SHARED_ROWS_MAX, Block, Reservation
from ingest.model.errors import NotKept
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
    def _put(self, block: Block, durable: bool) -> Awaitable[None]:
        """Take a block, for which room was reserved."""

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
    def broken(self) -> str:
        """Why the buffer has lost a part that it needs: memory it always has."""
        return ""

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

    def _put(self, block: Block, durable: bool) -> Awaitable[None]:
        self.queue.append(block)
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
        """Whether a post waits for the commit of a block, and no writer has blocks now."""
        return self.writers.awaited > 0 and not self.writers.rows_taken

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


class BoundedMemory:
    """Room for blocks. It calls `freed` when room came free."""

    def __init__(self, rows_max: int, bytes_max: int, freed: Callable[[], None]) -> None:
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.rows = 0  # of blocks that are not settled, and of reservations
        self.size_bytes = 0  # of the same
        self._freed = freed

    @property
    def used(self) -> float:
        """The share of the bounds that is in use."""
        return max(self.rows / self.rows_max, self.size_bytes / self.bytes_max)

    def fits(self, rows: int, size_bytes: int) -> bool:
        """Whether there is room for a block."""
        return self.rows + rows <= self.rows_max and self.size_bytes + size_bytes <= self.bytes_max

    def add(self, rows: int, size_bytes: int) -> None:
        """Count room as in use, even if there is not enough."""
        self.rows += rows
        self.size_bytes += size_bytes

    def take(self, rows: int, size_bytes: int) -> bool:
        """Count room as in use if there is enough; return whether there was."""
        # What `fits` and `add` do, without two calls for each post.
        if self.rows + rows > self.rows_max or self.size_bytes + size_bytes > self.bytes_max:
            return False
        self.rows += rows
        self.size_bytes += size_bytes
        return True

    def free(self, rows: int, size_bytes: int) -> None:
        """Count room as free: a reservation is released, or blocks are settled."""
        self.rows -= rows
        self.size_bytes -= size_bytes
        self._freed()


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
        self._writers.rows_taken += rows
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
        self._writers.rows_taken -= rows
        if self._writers.waits:
            self._writers.wake()
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
            self._writers.rows_taken -= block.rows
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


class WaitingWriters:
    """Writers that wait for rows; `rows` may be taken from all queues of the buffer together.

    Posts wait for the commit of `awaited` blocks of these. Writers have taken `rows_taken`, which
    are not settled. A queue changes the three, and calls `wake` after it.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.awaited = 0
        self.rows_taken = 0
        self.waits: list[tuple[int, asyncio.Future[None]]] = []  # of how many rows
        self._shut = False

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows may be taken, a commit is awaited, or no more rows will come."""
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
        # While a batch is written, posts that wait for their commit gather for the next one. With a
        # batch for each idle writer, those of 512 connections had half as many rows.
        is_commit_awaited = self.awaited > 0 and not self.rows_taken
        return self.rows >= rows or is_commit_awaited or self._shut

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


class SharedBlock:
    """A block that may grow, its size in bytes, and who waits until it is kept.

    `told` gets the waiters of all its posts. With it the block is queued for the writers once it is
    kept, and before they are told. None: nobody waits; the block was queued at once. `spilled`: it
    has no room in memory, and will only be in the journal.
    """

    __slots__ = ("block", "bytes_max", "rows_max", "size_bytes", "spilled", "told", "waiters")

    def __init__(
        self,
        block: Block,
        rows_max: int = 0,
        bytes_max: int = SHARED_BYTES_MAX,
        *,
        told: Told | None = None,
        spilled: bool = False,
    ) -> None:
        self.block = block
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.size_bytes = len(block.tuples)
        self.told = told
        self.spilled = spilled
        self.waiters: list[object] = []  # in the order of their posts

    def takes(self, block: Block) -> bool:
        """Add a post's block to this one. Returns False if it is sealed, or would be too large."""
        size_bytes = self.size_bytes + len(block.tuples)
        own = self.block
        if own.sealed or own.rows + block.rows > self.rows_max or size_bytes > self.bytes_max:
            return False
        own.add(block)
        self.size_bytes = size_bytes
        return True

    def tell(self, error: NotKept | None) -> None:
        """Tell the waiters that the block is kept, or why it is not."""
        # A list that is not kept: nobody's request may stay in memory because of a block.
        waiters, self.waiters = self.waiters, []
        if self.told is not None:
            self.told(waiters, error)


class _Completed:
    """An awaitable that is complete already. It costs less than a coroutine that only returns."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


COMPLETED = _Completed()
