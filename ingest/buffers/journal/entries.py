"""The journal's entries as a JournalBuffer makes them: they are told what became of a block."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from ingest.buffers.journal.index import Segment
from ingest.buffers.memory import DONE, MemoryRoom
from ingest.model.block import Block
from ingest.model.errors import JournalBroken

if TYPE_CHECKING:
    from ingest.buffers.journal.buffer import JournalBuffer


class JournalRoom(MemoryRoom):
    """A reservation, and then an entry of the journal: told what became of its block."""

    __slots__ = ("_decided", "_done", "_early", "_error", "_owner", "_spilled", "_untold", "block")

    def __init__(self, buffer: JournalBuffer, rows: int, size_bytes: int, *, spilled: bool) -> None:
        self._buffer = self._owner = buffer
        self._rows = rows
        self._size_bytes = size_bytes
        self._spilled = spilled
        self._early = False  # handed to the writers before it is on the disk
        self._decided = False
        self._untold = 0  # rows that are kept, and still count as at the door
        self._error: JournalBroken | None = None
        self._done: asyncio.Future[None] | None = None
        self.block: Block

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over; with `durable`, or without room in memory, wait for the disk."""
        buffer = self._owner
        assert self._buffer is not None, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        self._buffer = None
        self.block = block
        if durable or self._spilled:
            self._done = asyncio.get_running_loop().create_future()
            buffer.journal.append(self)
            return self._wait()
        self._early = True
        buffer.journal.append(self)
        buffer._put(block, self._rows, self._size_bytes)
        return DONE

    async def _wait(self) -> None:
        """Wait for the group, whoever else has gone: it is under way, and is kept or not."""
        cancelled = False
        while not self._decided:
            assert self._done is not None, "made by put"
            try:
                await self._done
            except asyncio.CancelledError:
                cancelled = True
                self._done = asyncio.get_running_loop().create_future()
        self._owner.untold_rows -= self._untold
        if cancelled and (task := asyncio.current_task()) is not None:
            task.uncancel()
            task.cancel()  # strikes at the next await: what is kept is counted first
        if self._error is not None:
            raise JournalBroken(str(self._error))

    def release(self) -> None:
        """Give the room back, in memory and on the disk."""
        if self._buffer is not None:
            self._buffer = None
            self._unbook()

    def _unbook(self) -> None:
        owner = self._owner
        owner.left_way(self._size_bytes, spilled=self._spilled)
        if self._spilled:
            owner.journal.changed()
        else:
            owner._unbook(self._rows, self._size_bytes)

    def kept(self, segment: Segment, start: int) -> None:
        """The block is on the disk: now it may go to the writers, or stay there."""
        owner = self._owner
        owner.left_way(self._size_bytes, spilled=self._spilled)
        if self._spilled:
            owner.spilled(segment, start, self.block)
        elif self._early:
            owner._journal_changed()
        else:
            owner._put(self.block, self._rows, self._size_bytes)
        self._decided = True
        done = self._done
        if done is not None:
            self._untold = self.block.rows
            owner.untold_rows += self._untold
            if not done.done():
                done.set_result(None)

    def refused(self, error: JournalBroken) -> None:
        """Nothing is kept, unless in memory already: that is what `buffered` means."""
        if self._early:
            self._owner.left_way(self._size_bytes, spilled=False)
            self._owner._journal_changed()
        else:
            self._unbook()
        self._error = error
        self._decided = True
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class LastEntry:
    """What only memory held when the service stopped: an entry of the journal."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.decided = asyncio.Event()

    def kept(self, segment: Segment, start: int) -> None:
        """It is on the disk."""
        self.decided.set()

    def refused(self, error: JournalBroken) -> None:
        """It is not; its sequence says so."""
        self.decided.set()
