"""Entries of the journal that several small posts share: one block, one frame.

Posts are added to an entry until the journal begins to write it, or a writer takes its block.
Does not: reserve room. The buffer has done that.
"""

from __future__ import annotations

from ingest.buffers.journal.entries import JournalingBuffer
from ingest.buffers.journal.index import Segment
from ingest.buffers.queue import BlockQueue
from ingest.buffers.shared_block import SharedBlock
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.model.ports import Told
from ingest.system.clock import monotonic_s


class SharedEntry:
    """Small posts that share one frame of the journal.

    With `told` their block is queued once it is on the disk, and then one call tells all waiters.
    Without `told` nobody waits, and the block was queued at once.
    """

    __slots__ = ("_buffer", "_told", "_waiters", "block", "shared")

    def __init__(
        self, buffer: JournalingBuffer, block: Block, rows_max: int, told: Told | None
    ) -> None:
        self._buffer = buffer
        self.shared = SharedBlock(block, rows_max)
        self._told = told
        self._waiters: list[object] = []
        self.block = block

    def add_waiter(self, waiter: object) -> None:
        """Remember a waiter: the one of the post that was just added."""
        self._waiters.append(waiter)

    def kept(self, segment: Segment, start: int) -> None:
        """The block is on the disk: with `told`, queue it for the writers and tell the waiters."""
        buffer, block = self._buffer, self.block
        size_bytes = self.shared.size_bytes
        buffer.unwritten.remove(size_bytes, spilled=False, frames=block.posts)
        buffer.live_put_s = monotonic_s()
        if self._told is not None:
            buffer.memory.accept(block, block.rows, size_bytes)
        buffer.journal.changed()
        if self._told is not None:
            self._told(self._take_waiters(), None)

    def refused(self, error: JournalBroken) -> None:
        """The block is not on the disk, so it is not kept, unless it was queued at once."""
        buffer, block = self._buffer, self.block
        block.seal()
        size_bytes = self.shared.size_bytes
        buffer.unwritten.remove(size_bytes, spilled=False, frames=block.posts)
        if self._told is not None:
            buffer.memory.free(block.rows, size_bytes)
            self._told(self._take_waiters(), error)
        else:
            buffer.journal.changed()

    def _take_waiters(self) -> list[object]:
        # The last entry stays until the next post comes: it must not keep clients that are gone.
        waiters, self._waiters = self._waiters, []
        return waiters


class SharedEntries:
    """The entries of a buffer that may still grow. `queue` has its live blocks (see buffer.py)."""

    def __init__(self, buffer: JournalingBuffer, queue: BlockQueue, rows_max: int) -> None:
        self._buffer = buffer
        self._queue = queue
        self._rows_max = rows_max
        self._durable: SharedEntry | None = None
        self._buffered: SharedEntry | None = None

    def add(self, block: Block, waiter: object, told: Told) -> None:
        """Add a post that waits until it is on the disk."""
        entry = self._durable
        if entry is not None and entry.shared.takes(block):
            entry.add_waiter(waiter)
            return
        entry = self._durable = SharedEntry(self._buffer, block, self._rows_max, told)
        entry.add_waiter(waiter)  # before the journal has it, which may refuse it at once
        self._buffer.journal.append(entry)

    def add_buffered(self, block: Block) -> None:
        """Add a post that does not wait. Writers may take it at once."""
        buffer = self._buffer
        buffer.live_put_s = monotonic_s()
        entry = self._buffered
        if entry is None or not self._queue.grow(entry.shared, block):
            self._buffered = SharedEntry(buffer, block, self._rows_max, None)
            buffer.journal.append(self._buffered)
            self._queue.append(block)
