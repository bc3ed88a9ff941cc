"""The entries that a buffer appends to its journal. Each has one block.

The journal calls `kept` or `refused` of an entry when it is known whether the block is on the disk.
Promises: the wait of a post does not end before that, even if the post is cancelled.
Does not: write files, or queue blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ingest.buffers.bounded_memory import COMPLETED, BoundedMemory
from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.journal.index import Segment
from ingest.buffers.journal.log import Journal
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.system.clock import monotonic_s


class JournalingBuffer(Protocol):
    """The parts of their buffer that the entries use."""

    journal: Journal
    memory: BoundedMemory
    unwritten: UnwrittenFrames
    rows_unconfirmed: int  # they are on the disk, but the tasks of their posts have not run since
    live_put_s: float  # when the last block came in

    def keep_spilled(self, segment: Segment, start: int, block: Block) -> None:
        """Note that a block is on the disk and not in memory; its frame begins at `start`."""


class UnwrittenFrames:
    """Counts the bytes of frames that have room on the disk reserved and are not written yet.

    Their blocks may have `bytes_max` bytes, and spilled ones a quarter of that. A single block may
    be larger. The first bound is needed when the disk hangs: the database may have stored a block
    before it is written here. `BoundedMemory` then does not count it any more, but it still needs
    memory.
    """

    def __init__(self, bytes_max: int) -> None:
        self.size_bytes = 0  # of the frames
        self._bytes_max = {False: bytes_max, True: bytes_max // 4}  # of blocks; True: spilled
        self._block_bytes = {False: 0, True: 0}

    def add(self, size_bytes: int, *, spilled: bool) -> bool:
        """Count the frame of a block of `size_bytes`; return False if it has to wait."""
        block_bytes = self._block_bytes[spilled]
        if block_bytes and block_bytes + size_bytes > self._bytes_max[spilled]:
            return False
        self._block_bytes[spilled] += size_bytes
        self.size_bytes += HEAD_BYTES + size_bytes
        return True

    def remove(self, size_bytes: int, *, spilled: bool, frames: int = 1) -> None:
        """Do not count blocks any more: they were written, or will not be.

        `frames`: how often `add` was called for them: for each post, also if posts share a frame.
        """
        self._block_bytes[spilled] -= size_bytes
        self.size_bytes -= frames * HEAD_BYTES + size_bytes


class JournalReservation:
    """Room for one block in the journal, and in memory unless it is `spilled`.

    After `put` it is also the journal's entry for the block.
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
        # Of the post that waits. None if it does not wait: writers may take its block at once.
        self._ready: asyncio.Future[None] | None = None
        self.block: Block

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over. If it is `durable`, or spilled, wait until it is on the disk."""
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
        return COMPLETED

    async def _wait(self) -> None:
        """Wait until it is decided, even if cancelled: a write under way cannot be stopped."""
        cancelled = False
        while not self._decided:
            assert self._ready is not None, "made by put"
            try:
                await self._ready
            except asyncio.CancelledError:
                cancelled = True
                self._ready = asyncio.get_running_loop().create_future()
        if cancelled and (task := asyncio.current_task()) is not None:
            # Cancel again at the next await. Before that the caller counts what was kept.
            task.uncancel()
            task.cancel()
        if self._error is not None:
            raise JournalBroken(str(self._error))
        self._buffer.rows_unconfirmed -= self.block.rows

    def release(self) -> None:
        """Give the room back. Does nothing after `put`, or when called again."""
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
        """The block is on the disk: queue it for the writers, or leave it there if spilled."""
        buffer = self._buffer
        buffer.unwritten.remove(self._size_bytes, spilled=self._spilled)
        buffer.live_put_s = monotonic_s()
        if self._spilled:
            buffer.keep_spilled(segment, start, self.block)
        elif self._ready is not None:
            buffer.memory.accept(self.block, self._rows, self._size_bytes)
        buffer.journal.changed()
        if self._ready is not None:
            # The balance counts these rows in the receiver until the task of the post runs. The
            # buffer must not count them as well.
            buffer.rows_unconfirmed += self.block.rows
        self._decide()

    def refused(self, error: JournalBroken) -> None:
        """The block is not on the disk, so it is not kept, unless it was queued in `put`."""
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


@dataclass
class _LastEntry:
    """An entry for a block that is only in memory when the service stops."""

    block: Block

    def kept(self, segment: Segment, start: int) -> None:
        """Do nothing: the block has a sequence."""

    def refused(self, error: JournalBroken) -> None:
        """Do nothing: the sequence of the block is 0 again."""


async def append_last(journal: Journal, blocks: Sequence[Block]) -> None:
    """Append blocks that are only in memory. Those that are not kept have the sequence 0 then."""
    for block in blocks:
        journal.append(_LastEntry(block))
    await journal.wait_done()
