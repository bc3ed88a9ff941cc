"""Hold accepted readings in memory until a writer has stored them.

Promises: never more than `rows_max` readings and `bytes_max` bytes; first in, first out, for posts
that wait for room as well; a post waits at most `put_wait_s_max`; nothing is lost when a wait is
cancelled. Room comes free only when blocks are settled, so giving blocks back cannot overflow.
Does not: survive the process, look inside a block, or know what becomes of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Generator, Sequence

from ingest.model.block import Block
from ingest.model.errors import BufferFull, Stopping
from ingest.model.ports import BufferStats, JournalStats, Room
from ingest.system.clock import monotonic_s

RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 1.0, 30.0


class MemoryBuffer:
    """A bounded first-in-first-out buffer of blocks: ports.Inlet and ports.Outlet in one."""

    def __init__(self, *, rows_max: int, bytes_max: int, put_wait_s_max: float) -> None:
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._put_wait_s_max = put_wait_s_max
        self._blocks: deque[Block] = deque()
        self._rows_waiting = 0  # in _blocks
        self._rows_held = 0  # in _blocks or taken, not settled
        self._rows_reserved = 0  # promised to a post, not put yet
        self._bytes = 0  # held and reserved
        self._bytes_queueing = 0  # of the posts in _queue
        self._queue: deque[_Post] = deque()
        self._awaited_queue = self._queue  # of those who wait for an outcome too: the same line
        self._takers: list[tuple[int, asyncio.Future[None]]] = []
        self._taken: dict[int, float] = {}  # id of a block: when it was received
        self._taken_oldest_s: float | None = None
        self._taken_changed = False  # _taken_oldest_s is out of date
        self._shut = False

    @property
    def levels(self) -> tuple[str, ...]:
        """The acknowledgements that it can give without the database, best first."""
        return ("buffered",)

    @property
    def broken(self) -> bool:
        """Whether what it needs to keep readings has failed; memory does not."""
        return False

    def journal_stats(self) -> JournalStats:
        """Return what a journal's folder holds: nothing, there is none."""
        return JournalStats()

    async def close(self) -> None:
        """Let go of everything outside of memory: nothing."""

    # The inlet

    async def reserve(self, rows: int, size_bytes: int, *, awaited: bool = False) -> Room:
        """Wait for room for one block of `rows` readings and `size_bytes` bytes.

        Raises BufferFull after `put_wait_s_max`, or at once if the waiting posts' bytes are at the
        bound too; Stopping once the buffer is shut.
        """
        if self._shut:
            raise Stopping("the buffer is shut")
        queue = self._awaited_queue if awaited else self._queue
        if not queue:
            room = self._place(rows, size_bytes, awaited=awaited)
            if room is not None:
                return room
        if self._put_wait_s_max <= 0 or not self._may_wait(size_bytes):
            raise BufferFull(self._retry_after_s())
        post = _Post(rows, size_bytes, awaited)
        queue.append(post)
        self._bytes_queueing += size_bytes
        try:
            async with asyncio.timeout(self._put_wait_s_max):
                return await post.granted
        except TimeoutError:
            self._leave(post)
            if self._shut:
                raise Stopping("the buffer is shut") from None
            raise BufferFull(self._retry_after_s()) from None
        except asyncio.CancelledError:
            self._leave(post)
            raise

    def _may_wait(self, size_bytes: int) -> bool:
        """Whether there is room for one more body that waits: it is memory too."""
        return self._bytes + self._bytes_queueing + size_bytes <= self._bytes_max

    def _place(self, rows: int, size_bytes: int, *, awaited: bool) -> Room | None:
        """Book room for a block and return it; None if there is none now."""
        if not self._fits(rows, size_bytes):
            return None
        self._book(rows, size_bytes)
        return MemoryRoom(self, rows, size_bytes)

    def _fits(self, rows: int, size_bytes: int) -> bool:
        return (
            self._rows_held + self._rows_reserved + rows <= self._rows_max
            and self._bytes + size_bytes <= self._bytes_max
        )

    def _book(self, rows: int, size_bytes: int) -> None:
        self._rows_reserved += rows
        self._bytes += size_bytes

    def _leave(self, post: _Post) -> None:
        """Take back what a post that no longer waits had: its place, or room just granted."""
        queue = self._awaited_queue if post.awaited else self._queue
        if post in queue:
            queue.remove(post)
            self._bytes_queueing -= post.size_bytes
            self._admit()  # it may have been the one that was too large for the room there is
        elif not post.granted.cancelled() and post.granted.exception() is None:
            post.granted.result().release()

    def _unbook(self, rows: int, size_bytes: int) -> None:
        self._rows_reserved -= rows
        self._bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        """Grant room to who may have some now."""
        self._admit_from(self._queue)

    def _admit_from(self, queue: deque[_Post]) -> None:
        """Grant room to the posts at the head of the queue; nobody overtakes."""
        while queue:
            post = queue[0]
            room = None
            gone = post.granted.done()  # cancelled, and its task has not run since
            if not gone:
                room = self._place(post.rows, post.size_bytes, awaited=post.awaited)
                if room is None:
                    return
            queue.popleft()
            self._bytes_queueing -= post.size_bytes
            if room is not None:
                post.granted.set_result(room)

    def _put(self, block: Block, rows: int, size_bytes: int) -> None:
        """Let the writers have a block, in the place of its reservation."""
        self._rows_reserved -= rows
        self._bytes -= size_bytes - len(block.tuples)
        self._blocks.append(block)
        self._rows_held += block.rows
        self._rows_waiting += block.rows
        if self._takers:
            self._wake_takers()
        if self._bytes_queueing:  # the block may be smaller than its reservation
            self._admit()

    def _retry_after_s(self) -> float:
        """Half the age of what we hold: the longer the database is away, the later to come back."""
        oldest_s = self.stats().oldest_received_s
        age_s = monotonic_s() - oldest_s if oldest_s is not None else 0.0
        return min(max(age_s / 2, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)

    # The outlet

    @property
    def rows_waiting(self) -> int:
        """Rows that may be taken now."""
        return self._rows_waiting

    @property
    def shut(self) -> bool:
        """Whether no block will ever come in any more."""
        return self._shut

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""
        return self._blocks[0].received_s if self._blocks else None

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows wait or the buffer is shut."""
        if self._rows_waiting >= rows or self._shut:
            return
        taker = (rows, asyncio.get_running_loop().create_future())
        self._takers.append(taker)
        try:
            await taker[1]
        finally:
            if taker in self._takers:
                self._takers.remove(taker)

    def _wake_takers(self) -> None:
        for taker in self._takers[:]:
            if self._rows_waiting >= taker[0] or self._shut:
                self._takers.remove(taker)
                if not taker[1].done():
                    taker[1].set_result(None)

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""
        return self._take_from(self._blocks, rows_max)

    def _take_from(self, blocks: deque[Block], rows_max: int) -> list[Block]:
        taken: list[Block] = []
        rows = 0
        while blocks and (not taken or rows + blocks[0].rows <= rows_max):
            block = blocks.popleft()
            rows += block.rows
            taken.append(block)
            self._taken[id(block)] = block.received_s
        self._rows_waiting -= rows
        self._taken_changed = True
        return taken

    def settle(self, blocks: Sequence[Block]) -> None:
        """Forget blocks; their room comes free."""
        for block in blocks:
            self._rows_held -= block.rows
            self._bytes -= len(block.tuples)
            del self._taken[id(block)]
        self._taken_changed = True
        self._admit()

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in their order; behind older ones of another writer."""
        self._give_back_to(self._blocks, blocks)

    def _give_back_to(self, waiting: deque[Block], blocks: Sequence[Block]) -> None:
        front: list[Block] = []
        for block in blocks:
            while waiting and waiting[0].received_s < block.received_s:
                front.append(waiting.popleft())
            front.append(block)
            self._rows_waiting += block.rows
            del self._taken[id(block)]
        waiting.extendleft(reversed(front))
        self._taken_changed = True
        self._wake_takers()

    def shut_inlet(self) -> None:
        """Let nothing in any more: waiting posts get Stopping, takers get what is left."""
        self._shut = True
        for post in [*self._queue, *self._awaited_queue]:
            if not post.granted.done():
                post.granted.set_exception(Stopping("the buffer is shut"))
        self._queue.clear()
        self._awaited_queue.clear()
        self._bytes_queueing = 0
        self._wake_takers()

    def stats(self) -> BufferStats:
        """Return what is held now; the oldest may be with a writer."""
        if self._taken_changed:  # once per write: a refused post asks, and there may be many
            self._taken_oldest_s = min(self._taken.values(), default=None)
            self._taken_changed = False
        oldest_s = self._taken_oldest_s
        if self._blocks and (oldest_s is None or self._blocks[0].received_s < oldest_s):
            oldest_s = self._blocks[0].received_s
        return BufferStats(
            rows=self._rows_held,
            rows_max=self._rows_max,
            size_bytes=self._bytes + self._bytes_queueing,
            bytes_max=self._bytes_max,
            rows_waiting=self._rows_waiting,
            blocks_waiting=len(self._blocks),
            posts_waiting=len(self._queue),
            oldest_received_s=oldest_s,
            rows_taken=self._rows_held - self._rows_waiting,
        )


class _Post:
    """A post that waits for room."""

    __slots__ = ("awaited", "granted", "rows", "size_bytes")

    def __init__(self, rows: int, size_bytes: int, awaited: bool) -> None:
        self.rows = rows
        self.size_bytes = size_bytes
        self.awaited = awaited
        self.granted: asyncio.Future[Room] = asyncio.get_running_loop().create_future()


class MemoryRoom:
    """A reservation, used once: put, or release."""

    __slots__ = ("_buffer", "_rows", "_size_bytes")

    def __init__(self, buffer: MemoryBuffer, rows: int, size_bytes: int) -> None:
        self._buffer: MemoryBuffer | None = buffer
        self._rows = rows
        self._size_bytes = size_bytes

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over, at once: there is nothing to wait for."""
        buffer = self._buffer
        assert buffer is not None, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        self._buffer = None
        buffer._put(block, self._rows, self._size_bytes)
        return DONE

    def release(self) -> None:
        """Give the room back; does nothing after put or a second time."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer._unbook(self._rows, self._size_bytes)


class _Done:
    """What may be awaited and is done already; costs no coroutine."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


DONE = _Done()
