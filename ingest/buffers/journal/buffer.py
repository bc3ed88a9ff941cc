"""Hold accepted readings in a journal on the disk, and as many as fit in memory, until stored.

Promises what the memory buffer does, and: a block whose put has been awaited outlives the process;
what memory has no room for is on the disk only (spilled) and comes back from there, in order, as
memory comes free; so does what an earlier life left (recovered). Live blocks go first, the backlog
gets one batch in BACKLOG_TURN, and all of them while nothing live waits.
A block whose outcome somebody waits for is neither spilled nor journaled: nobody was promised it.
Does not: write files (journal*.py do), or know what becomes of a block.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from ingest.buffers.journal.entries import JournalRoom, LastEntry
from ingest.buffers.journal.format import HEAD_BYTES
from ingest.buffers.journal.index import Range, Segment
from ingest.buffers.journal.log import Journal
from ingest.buffers.memory import MemoryBuffer
from ingest.model.ack import Outcome
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.model.ports import BufferStats, JournalStats, Room
from ingest.system.clock import monotonic_s, unix_us

BACKLOG_TURN = 4
BACKLOG_ROWS_MAX = 300  # or one block: a batch while live posts come; they wait for the disk then
LIVE_S = 1.0  # after the last live post
SPILL_ENDS = 0.5  # of memory in use: then blocks are kept in memory again, and ranges stay few


class JournalBuffer(MemoryBuffer):
    """A bounded buffer on a journal: ports.Inlet and ports.Outlet in one.

    `rows_max` and `bytes_max` bound memory (beside it, a quarter of `bytes_max` may be on its way
    to the disk, and another one wait for room), `journal_bytes_max` the disk. Without `spills` a
    block must find room in memory too. Call `open` before anything else, and `close` at the end.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        rows_max: int,
        bytes_max: int,
        put_wait_s_max: float,
        journal_bytes_max: int,
        spills: bool = True,
    ) -> None:
        super().__init__(rows_max=rows_max, bytes_max=bytes_max, put_wait_s_max=put_wait_s_max)
        self.journal = journal
        self.book = journal.book
        self._journal_bytes_max = journal_bytes_max
        self._spills = spills
        if spills:  # who waits for an outcome needs memory; the others need not stand behind them
            self._awaited_queue = deque()
        self._spilling = False
        self._spill_bytes = 0  # of blocks on their way to the disk only
        self._on_way_bytes = 0  # of frames that have room on the disk and are not written yet
        self._in_hand_bytes = 0  # of blocks on their way to the disk and in memory
        self._backlog: deque[Block] = deque()  # read back
        self._backlog_rows = self._backlog_bytes = 0  # read back and not settled
        self._turns = 0
        self.untold_rows = 0  # kept, of posts that do not know yet: they count as at the door
        self._live_s = float("-inf")  # when the last live post, or replayed letter, was put
        self._rows_left = 0  # in memory at a drain's end, and in the journal
        self._rows_gone = 0  # on the disk only, in files that are not there any more
        self.loading: Range | None = None  # what the loader reads now
        self.wanted = asyncio.Event()  # the loader should look again
        journal.changed = self._journal_changed

    def open(self) -> None:
        """Take the journal's folder. Raises StartError."""
        self.journal.open()

    async def close(self) -> None:
        """Bring all that was begun to its end, and let go of the folder. Repeatable."""
        await self.journal.close()

    def _journal_changed(self) -> None:
        if self._bytes_queueing:
            self._admit()

    # The inlet

    async def reserve(self, rows: int, size_bytes: int, *, awaited: bool = False) -> Room:
        """Wait for room for one block, in memory or on the disk."""
        if not awaited and not self._shut and self.journal.broken is not None:
            raise JournalBroken(str(self.journal.broken))
        return await super().reserve(rows, size_bytes, awaited=awaited)

    def _may_wait(self, size_bytes: int) -> bool:
        """Memory is full whenever blocks are spilled, so who waits then has room beside it."""
        if not self._spills:
            return super()._may_wait(size_bytes)
        return self._bytes_queueing + size_bytes <= self._bytes_max // 4

    def _place(self, rows: int, size_bytes: int, *, awaited: bool) -> Room | None:
        if awaited:
            return super()._place(rows, size_bytes, awaited=True)
        frame = HEAD_BYTES + size_bytes
        if self.book.size_bytes + self._on_way_bytes + frame > self._journal_bytes_max:
            return None
        if self._spilling and self._memory_used() <= SPILL_ENDS:
            self._spilling = False
        spilled = self._spilling or not self._fits(rows, size_bytes)
        if spilled:
            on_way = self._spill_bytes + size_bytes
            if not self._spills or (self._spill_bytes and on_way > self._bytes_max // 4):
                return None
            self._spilling = True
            self._spill_bytes = on_way
        else:
            # A disk that hangs: what is stored meanwhile has left memory's count, but not memory.
            if self._in_hand_bytes and self._in_hand_bytes + size_bytes > self._bytes_max:
                return None
            self._in_hand_bytes += size_bytes
            self._book(rows, size_bytes)
        self._on_way_bytes += frame
        return JournalRoom(self, rows, size_bytes, spilled=spilled)

    def left_way(self, size_bytes: int, *, spilled: bool) -> None:
        """A block is on its way to the disk no longer."""
        self._on_way_bytes -= HEAD_BYTES + size_bytes
        if spilled:
            self._spill_bytes -= size_bytes
        else:
            self._in_hand_bytes -= size_bytes

    @property
    def gives_way(self) -> bool:
        """Whether what is read back is to hold up no live post: memory takes them all, that is.

        More than it takes is overload: then the rate counts, not who comes first.
        """
        spills = self._spilling and self._memory_used() > SPILL_ENDS
        overload = spills or self._bytes_queueing
        return not overload and monotonic_s() - self._live_s < LIVE_S

    def _put(self, block: Block, rows: int, size_bytes: int) -> None:
        self._live_s = monotonic_s()
        super()._put(block, rows, size_bytes)

    def spilled(self, segment: Segment, start: int, block: Block) -> None:
        """A block is on the disk only."""
        self._live_s = monotonic_s()
        self.book.on_disk(segment, start, block)
        self.wanted.set()
        self._journal_changed()  # the way to the disk is free again

    def _admit(self) -> None:
        super()._admit()
        self._admit_from(self._awaited_queue)

    def _unbook(self, rows: int, size_bytes: int) -> None:
        super()._unbook(rows, size_bytes)
        self.wanted.set()

    def _memory_used(self) -> float:
        rows = self._rows_held + self._rows_reserved
        return max(rows / self._rows_max, self._bytes / self._bytes_max)

    # The outlet

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""
        if not self._backlog:
            return super().first_received_s()
        first_s = self._backlog[0].received_s
        return min(first_s, self._blocks[0].received_s) if self._blocks else first_s

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, live ones or from the backlog."""
        if not self._backlog:
            return self._take_from(self._blocks, rows_max)
        self._turns += 1
        if self._blocks and self._turns % BACKLOG_TURN:
            return self._take_from(self._blocks, rows_max)
        return self._take_from(
            self._backlog, min(rows_max, BACKLOG_ROWS_MAX) if self.gives_way else rows_max
        )

    def settle(self, blocks: Sequence[Block]) -> None:
        """Forget blocks, in memory and on the disk; their room comes free."""
        for block in blocks:
            if block.reloaded:
                self._backlog_rows -= block.rows
                self._backlog_bytes -= len(block.tuples)
        self.journal.settle(blocks)
        super().settle(blocks)
        self.wanted.set()

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in their order."""
        old = [block for block in blocks if block.reloaded]
        if old:
            self._give_back_to(self._backlog, old)
            blocks = [block for block in blocks if not block.reloaded]
        super().give_back(blocks)

    def shut_inlet(self) -> None:
        """Let nothing in any more, from the disk neither."""
        super().shut_inlet()
        self.wanted.set()

    def stats(self) -> BufferStats:
        """Return what is held now, on the disk too."""
        stats = super().stats()
        book = self.book
        oldest_s = [stats.oldest_received_s] if stats.oldest_received_s is not None else []
        if self._backlog:
            oldest_s.append(self._backlog[0].received_s)
        if self.loading is not None:
            oldest_s.append(self.loading.oldest_s)
        waiting = (book.recovered, book.spilled, book.put_off)
        oldest_s += [ranges[0].oldest_s for ranges in waiting if ranges]
        on_disk = book.size_bytes + self._on_way_bytes
        return stats._replace(
            rows=stats.rows + book.rows - self.untold_rows,
            blocks_waiting=stats.blocks_waiting + len(self._backlog),
            oldest_received_s=min(oldest_s, default=None),
            rows_kept=book.rows + self._rows_left - self._rows_gone,
            disk_used=on_disk / self._journal_bytes_max if self._spills else None,
        )

    @property
    def levels(self) -> tuple[str, ...]:
        """The acknowledgements that it can give without the database, best first."""
        return ("durable", "buffered")

    @property
    def broken(self) -> bool:
        """Whether the disk takes nothing now, or does not say whether it does."""
        return self.journal.broken is not None or self.journal.hangs

    def journal_stats(self) -> JournalStats:
        """Return what the folder holds."""
        book = self.book
        return JournalStats(book.size_bytes, len(book.segments), self.journal.damaged)

    # What comes back from the disk

    def load_room(self) -> tuple[int, int] | None:
        """Return how many rows and bytes may be read back now; None if no room is left for any."""
        rows = min(self._rows_max // 4 - self._backlog_rows, self._rows_free())
        size = min(self._bytes_max // 4 - self._backlog_bytes, self._bytes_max - self._bytes)
        if rows > 0 and size > 0:
            return rows, size
        alone = not self._backlog_rows and self._rows_free() > 0 and self._bytes < self._bytes_max
        return (1, 1) if alone else None

    def _rows_free(self) -> int:
        return self._rows_max - self._rows_held - self._rows_reserved

    def load(self, blocks: Sequence[Block], *, newest_s: float) -> None:
        """Take blocks that were read back. They may exceed the room by one block.

        They were received by `newest_s` (monotonic), whatever the clock on the wall did since.
        """
        now_s, now_us = monotonic_s(), unix_us()
        for block in blocks:
            block.received_s = min(newest_s, now_s - (now_us - block.received_us) / 1e6)
            rows, size = block.rows, len(block.tuples)
            self._rows_held += rows
            self._rows_waiting += rows
            self._bytes += size
            self._backlog_rows += rows
            self._backlog_bytes += size
            self._backlog.append(block)
            self.book.loaded(rows, 1)
        self._wake_takers()

    # At a drain's end

    async def keep_rest(self) -> None:
        """Leave to the journal what waits, also what was not in it; tell who waits.

        What could not be written goes on waiting, to be set aside by other means. What is in files
        that somebody has removed is not in the journal: it is written again, or no longer kept.
        """
        gone = await self.journal.missing()
        book = self.book
        ranges = [*book.recovered, *book.spilled, *book.put_off]
        ranges += [self.loading] if self.loading is not None else []
        self._rows_gone = sum(each.rows for each in ranges if each.segment in gone)
        blocks = [*self._take_from(self._backlog, 1 << 62), *self._take_from(self._blocks, 1 << 62)]
        for block in blocks:
            if block.sequence and book.segment_of(block.sequence) in gone:
                block.sequence = 0
        last = [LastEntry(block) for block in blocks if not block.sequence]
        for each in last:
            self.journal.append(each)
        for each in last:
            await each.decided.wait()
        left = [block for block in blocks if not block.sequence]
        self.give_back(left)
        for block in blocks:
            if block.sequence:
                self._rows_left += block.rows
                if block.ack is not None and not block.ack.resolved:
                    block.ack.resolve(Outcome(set_aside=True))
