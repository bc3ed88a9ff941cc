"""What a buffer appends to its journal: an entry has a block, and learns what became of it.

Promises: the wait of a post ends when it is decided whether its block is on the disk. It does not
end earlier, even if the post is cancelled.
Does not: write, or hold blocks. What an entry asks of its buffer stands in `JournalingBuffer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from ingest.buffers.bounded_memory import DONE, BoundedMemory
from ingest.buffers.journal.format import HEAD_BYTES
from ingest.buffers.journal.index import Segment
from ingest.buffers.journal.log import Journal
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.system.clock import monotonic_s


class JournalingBuffer(Protocol):
    """What a reservation with room in the journal asks of its buffer."""

    journal: Journal
    memory: BoundedMemory
    unwritten: UnwrittenFrames
    rows_unconfirmed: int  # on the disk, of posts whose tasks have not run since
    live_put_s: float  # when the last block came in

    def keep_spilled(self, segment: Segment, start: int, block: Block) -> None:
        """A block is on the disk and not in memory; its frame begins at `start`."""


class UnwrittenFrames:
    """Counts frames from the reservation of their room on the disk until they are written.

    Of their blocks at most `bytes_max` are in memory, and at most a quarter of that is spilled. A
    larger block may be there alone. The first bound is needed if the disk hangs: writers may store
    a block before it is written here. The memory counts it no longer, but it is still there.
    """

    def __init__(self, bytes_max: int) -> None:
        self.size_bytes = 0  # of the frames
        self._bytes_max = {False: bytes_max, True: bytes_max // 4}  # of blocks, True: spilled ones
        self._block_bytes = {False: 0, True: 0}

    def add(self, size_bytes: int, *, spilled: bool) -> bool:
        """Count the frame of a block of `size_bytes`; False if it has to wait."""
        block_bytes = self._block_bytes[spilled]
        if block_bytes and block_bytes + size_bytes > self._bytes_max[spilled]:
            return False
        self._block_bytes[spilled] += size_bytes
        self.size_bytes += HEAD_BYTES + size_bytes
        return True

    def remove(self, size_bytes: int, *, spilled: bool) -> None:
        """A frame is written, or will not be."""
        self._block_bytes[spilled] -= size_bytes
        self.size_bytes -= HEAD_BYTES + size_bytes


class JournalReservation:
    """Room for one block in the journal, and in memory unless it is `spilled`.

    With `put` it becomes the journal's entry of that block.
    """

    __slots__ = (
        *("_buffer", "_decided", "_error", "_ready", "_rows", "_size_bytes", "_spilled", "_used"),
        "block",
    )

    def __init__(
        self, buffer: JournalingBuffer, rows: int, size_bytes: int, *, spilled: bool
    ) -> None:
        self._buffer = buffer
        self._rows = rows
        self._size_bytes = size_bytes
        self._spilled = spilled
        self._used = False
        self._decided = False
        self._error: JournalBroken | None = None
        # Of the post that waits. None: it does not wait, and the writers have its block at once.
        self._ready: asyncio.Future[None] | None = None
        self.block: Block

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over; with `durable`, or without room in memory, wait for the disk."""
        assert not self._used, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        self._used = True
        self.block = block
        buffer = self._buffer
        if durable or self._spilled:
            self._ready = asyncio.get_running_loop().create_future()
            buffer.journal.append(self)
            return self._wait()
        buffer.live_put_s = monotonic_s()
        buffer.journal.append(self)
        buffer.memory.accept(block, self._rows, self._size_bytes)
        return DONE

    async def _wait(self) -> None:
        """Wait until it is decided, also if cancelled: the write is under way and cannot stop."""
        cancelled = False
        while not self._decided:
            assert self._ready is not None, "made by put"
            try:
                await self._ready
            except asyncio.CancelledError:
                cancelled = True
                self._ready = asyncio.get_running_loop().create_future()
        if cancelled and (task := asyncio.current_task()) is not None:
            # Cancel again at the next await: before it the caller counts what was kept.
            task.uncancel()
            task.cancel()
        if self._error is not None:
            raise JournalBroken(str(self._error))
        self._buffer.rows_unconfirmed -= self.block.rows

    def release(self) -> None:
        """Give the room back, in memory and on the disk; does nothing after put or again."""
        if not self._used:
            self._used = True
            self._unreserve()

    def _unreserve(self) -> None:
        buffer = self._buffer
        buffer.unwritten.remove(self._size_bytes, spilled=self._spilled)
        if self._spilled:
            buffer.journal.changed()
        else:
            buffer.memory.free(self._rows, self._size_bytes)

    def kept(self, segment: Segment, start: int) -> None:
        """The block is on the disk: let the writers have it, or leave it there if spilled."""
        buffer = self._buffer
        buffer.unwritten.remove(self._size_bytes, spilled=self._spilled)
        buffer.live_put_s = monotonic_s()
        if self._spilled:
            buffer.keep_spilled(segment, start, self.block)
        elif self._ready is not None:
            buffer.memory.accept(self.block, self._rows, self._size_bytes)
        buffer.journal.changed()
        if self._ready is not None:
            # The balance counts these rows in the receiver until the post has seen that they are
            # kept. If the buffer counted them too they would be counted twice.
            buffer.rows_unconfirmed += self.block.rows
        self._decide()

    def refused(self, error: JournalBroken) -> None:
        """The block is not on the disk. Nothing of it is kept, unless the writers have it."""
        if self._ready is None:
            self._buffer.unwritten.remove(self._size_bytes, spilled=False)
            self._buffer.journal.changed()
        else:
            self._unreserve()
        self._error = error
        self._decide()

    def _decide(self) -> None:
        self._decided = True
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)


class _LastEntry:
    """An entry for a block that only memory held when the service stopped."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.decided = asyncio.Event()

    def kept(self, segment: Segment, start: int) -> None:
        """It is on the disk."""
        self.decided.set()

    def refused(self, error: JournalBroken) -> None:
        """It is not on the disk: its sequence is 0 now."""
        self.decided.set()


async def append_last(journal: Journal, blocks: Sequence[Block]) -> None:
    """Append blocks that only memory holds; return when it is decided whether they are kept."""
    entries = [_LastEntry(block) for block in blocks]
    for each in entries:
        journal.append(each)
    for each in entries:
        await each.decided.wait()
