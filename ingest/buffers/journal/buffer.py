"""The buffer on a journal: each block is on the disk, and in memory too if there is room.

A block without room in memory is *spilled*: it is only on the disk. A block that an earlier process
left is *recovered*. Spilled and recovered blocks are read back when memory comes free. They wait in
a queue of their own, the *backlog*. All other blocks are *live*. Writers take live blocks first;
but every fourth batch, and every batch while no live block waits, comes from the backlog.
A post with `ack=committed` has been promised nothing yet while it waits. So its block is not
written to the journal, and needs room in memory.

Promises: what the buffer in memory promises. When a post was told that its block is on the disk,
the block outlives the process.
Does not: write files (log.py and folder.py do), or know what becomes of a block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial
from math import inf

from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.journal.folder import Segment
from ingest.buffers.journal.loader import LIVE_BATCH_ROWS_MAX, Loader
from ingest.buffers.journal.log import Journal
from ingest.buffers.memory import COMPLETED, BlockQueue, MemoryBuffer, SharedBlock
from ingest.buffers.waiting import Decision, Place, WaitingPosts
from ingest.model.block import SHARED_ROWS_MAX, Block, Outcome, Reservation
from ingest.model.errors import JournalBroken, NotKept
from ingest.model.ledger import Ledger
from ingest.model.ports import BufferStats, JournalStats, Told, Work
from ingest.system.clock import monotonic_s

BACKLOG_EVERY = 4  # batches
LIVE_S = 1.0  # for so long after a live post more live posts are expected
# Spilling ends when so much of memory is in use. With more of it, ranges on the disk are short.
SPILL_ENDS_AT = 0.5


class JournalBuffer(MemoryBuffer):
    """A bounded buffer on a journal: implements ports.Buffer.

    `rows_max` and `bytes_max` bound memory. In addition a quarter of `bytes_max` may be on the way
    to the disk, and another quarter may wait for room. `journal_bytes_max` bounds the disk. Without
    `spills` each block needs room in memory. Call `open` first, and `close` at the end.
    """

    levels: tuple[str, ...] = ("durable", "buffered")

    def __init__(
        self,
        journal: Journal,
        counts: Ledger,
        *,
        rows_max: int,
        bytes_max: int,
        put_wait_s_max: float,
        journal_bytes_max: int,
        spills: bool = True,
        shared_rows_max: int = SHARED_ROWS_MAX,
    ) -> None:
        super().__init__(
            rows_max=rows_max,
            bytes_max=bytes_max,
            put_wait_s_max=put_wait_s_max,
            shared_rows_max=shared_rows_max,
        )
        self.journal = journal
        self.live_put_s = -inf  # when the last block of a post, or of a replay, came in
        self.unwritten = UnwrittenFrames(bytes_max)
        self._rows_unconfirmed = 0  # on the disk, but the tasks of their posts have not run since
        self._journal_bytes_max = journal_bytes_max
        self._spills = spills
        self._backlog = BlockQueue(self.writers)  # the live ones are in `queue`
        # The entries that may still grow.
        self._durable: SharedBlock | None = None
        self._buffered: SharedBlock | None = None
        self._batches = 0  # taken while there was a backlog
        # Another queue: a post whose block can be spilled must not wait for one that needs memory.
        self._waiting_for_memory = WaitingPosts(
            put_wait_s_max, may_wait=self._may_wait, oldest_s=self._oldest_s
        )
        self._spilling = False
        self._rows_left = 0  # of blocks in memory that `keep_rest` left to the journal
        self._rows_gone = 0  # only on the disk, in files that somebody has removed
        self.loader = Loader(journal, self.memory, self._backlog, counts, self.live_first)
        # Of reservations, made once; [1]: of spilled ones.
        self._parts = [
            (partial(self._put_in_journal, each), partial(self._unreserve, each))
            for each in (False, True)
        ]
        journal.changed, journal.kept, journal.refused = self._admit, self._kept, self._refused

    # Start and end

    def open(self) -> list[Work]:
        """Open the journal's folder; return the work that reads it while posts come in."""
        self.journal.open()
        return [self.loader.scan, self.loader.load]

    def shut_inlet(self) -> None:
        """Accept no post any more, and read nothing back."""
        super().shut_inlet()
        self._waiting_for_memory.shut_out()
        self.loader.shut()

    async def keep_rest(self) -> None:
        """Write all blocks that wait to the journal, and resolve their acks as set aside.

        Blocks that cannot be written go on waiting. If somebody has removed a file of the journal,
        its blocks that are in memory are written again; the others do not count as kept any more.
        """
        gone = await self.journal.missing()
        index = self.journal.index
        self._rows_gone = sum(each.rows for each in index.ranges() if each.segment in gone)
        blocks = [*self._backlog.take(1 << 62), *self.queue.take(1 << 62)]
        for block in blocks:
            if block.sequence and index.segment_of(block.sequence) in gone:
                block.sequence = 0
        for block in blocks:
            if not block.sequence:
                self.unwritten.add(len(block.tuples), spilled=False, frames=block.posts)
                self.journal.append(SharedBlock(block))
        await self.journal.wait_done()
        self.give_back([block for block in blocks if not block.sequence])
        for block in blocks:
            if block.sequence:
                self._rows_left += block.rows
                if block.ack is not None and not block.ack.resolved:
                    block.ack.resolve(Outcome(set_aside=True))

    async def close(self) -> None:
        """End what was begun, and close the folder. It may be called again."""
        self.loader.close()
        await self.journal.close()

    # The inlet

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Keep a block at once if there is room and no other post waits for room: see ports.Inlet.

        It may become a part of another block. While blocks are spilled, each has its own frame.
        """
        waiting, memory, journal = self.waiting, self.memory, self.journal
        rows, size_bytes = block.rows, len(block.tuples)
        if (
            waiting.posts
            or waiting.shut
            or self._spilling
            or journal.broken is not None
            or self._disk_bytes + HEAD_BYTES + size_bytes > self._journal_bytes_max
            or not memory.fits(rows, size_bytes)
            or not self.unwritten.take(size_bytes, spilled=False)
        ):
            return False
        memory.add(rows, size_bytes)
        if told is None:
            self._add_buffered(block)
        else:
            self._add_durable(block, waiter, told)
        return True

    def _add_durable(self, block: Block, waiter: object, told: Told) -> None:
        """Add a post that waits until it is on the disk."""
        last = self._durable
        if last is not None and last.takes(block):
            last.waiters.append(waiter)
            return
        entry = self._durable = SharedBlock(block, rows_max=self.shared_rows_max, told=told)
        entry.waiters.append(waiter)  # before the journal has it, which may refuse it at once
        self.journal.append(entry)

    def _add_buffered(self, block: Block) -> None:
        """Add a post that does not wait. Writers may take it at once."""
        self.live_put_s = monotonic_s()
        if not self.queue.grow(self._buffered, block):
            self._buffered = SharedBlock(block, rows_max=self.shared_rows_max)
            self.journal.append(self._buffered)
            self.queue.append(block)

    def _rooms(self, awaited: bool) -> tuple[WaitingPosts, Place]:
        waiting = self.waiting
        if awaited:
            return self._waiting_for_memory if self._spills else waiting, self.place
        if self.journal.broken is not None and not waiting.shut:
            raise JournalBroken(str(self.journal.broken))
        return waiting, self._place_in_journal

    def _may_wait(self, size_bytes: int) -> bool:
        """Whether there is memory for one more post that waits."""
        memory = self.memory  # with spills posts also wait while it is full: so they have a bound
        size_max = memory.bytes_max // 4 if self._spills else memory.bytes_max - memory.size_bytes
        return self._bytes_waiting + size_bytes <= size_max

    @property
    def _bytes_waiting(self) -> int:
        return self.waiting.size_bytes + self._waiting_for_memory.size_bytes

    def _put(self, block: Block, durable: bool) -> Awaitable[None]:
        """Take a block that is not journaled."""
        self.live_put_s = monotonic_s()
        return super()._put(block, durable)

    def _place_in_journal(self, rows: int, size_bytes: int) -> Reservation | None:
        """Reserve room on the disk, and in memory unless the block is spilled; or return None."""
        memory = self.memory
        if self._disk_bytes + HEAD_BYTES + size_bytes > self._journal_bytes_max:
            return None
        if self._spilling and memory.used <= SPILL_ENDS_AT:
            self._spilling = False
        spilled = self._spilling or not memory.fits(rows, size_bytes)
        if (spilled and not self._spills) or not self.unwritten.take(size_bytes, spilled=spilled):
            return None
        if spilled:
            self._spilling = True
        else:
            memory.add(rows, size_bytes)
        return Reservation(rows, size_bytes, *self._parts[spilled])

    def _put_in_journal(self, spilled: bool, block: Block, durable: bool) -> Awaitable[None]:
        if not (durable or spilled):
            self.live_put_s = monotonic_s()
            self.journal.append(SharedBlock(block))
            self.queue.append(block)
            return COMPLETED
        decision = Decision(block.rows, self._confirm)
        entry = SharedBlock(block, told=self._decided, spilled=spilled)
        entry.waiters.append(decision)
        self.journal.append(entry)
        return decision

    def _decided(self, decisions: Sequence[Decision], error: NotKept | None) -> None:
        for each in decisions:
            if error is None:
                # The balance counts these rows in the receiver until the task of the post runs.
                # The buffer must not count them as well.
                self._rows_unconfirmed += each.rows
            each.end(error)

    def _confirm(self, rows: int) -> None:
        self._rows_unconfirmed -= rows

    def _unreserve(self, spilled: bool, rows: int, size_bytes: int, frames: int = 1) -> None:
        self.unwritten.add(-size_bytes, spilled=spilled, frames=-frames)
        if spilled:
            self._admit()
        else:
            self.memory.free(rows, size_bytes)

    @property
    def _disk_bytes(self) -> int:
        return self.journal.index.size_bytes + self.unwritten.size_bytes

    def _kept(self, entry: SharedBlock, segment: Segment, start: int) -> None:
        """A block is on the disk: queue it for the writers, or leave it there if spilled."""
        block = entry.block
        self.unwritten.add(-entry.size_bytes, spilled=entry.spilled, frames=-block.posts)
        self.live_put_s = monotonic_s()
        if entry.spilled:
            self.journal.index.on_disk(segment, start, block)
            self.loader.read_wanted.set()
        elif entry.told is not None:
            self.queue.append(block)
        self._admit()
        entry.tell(None)

    def _refused(self, entry: SharedBlock, error: JournalBroken) -> None:
        """A block is not on the disk, so it is not kept, unless it was queued at once."""
        block = entry.block
        block.seal()
        if entry.told is not None:
            self._unreserve(entry.spilled, block.rows, entry.size_bytes, block.posts)
        else:
            self.unwritten.add(-entry.size_bytes, spilled=False, frames=-block.posts)
            self._admit()
        entry.tell(error)

    def _memory_freed(self) -> None:
        self._admit()
        self.loader.read_wanted.set()

    def _admit(self) -> None:
        """Grant room to posts that wait, as long as there is room."""
        for each in (self.waiting, self._waiting_for_memory):
            if each.posts:
                each.admit()

    # The outlet

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""
        if not self._backlog.blocks:
            return self.queue.first_received_s()
        return _earliest(self.queue.first_received_s(), self._backlog.first_received_s())

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order: live ones, or blocks of the backlog."""
        if not self._backlog.blocks:
            return self.queue.take(rows_max)
        self._batches += 1
        if self.queue.blocks and self._batches % BACKLOG_EVERY:
            return self.queue.take(rows_max)
        if self.live_first():
            rows_max = min(rows_max, LIVE_BATCH_ROWS_MAX)
        return self._backlog.take(rows_max)

    def settle(self, blocks: Sequence[Block]) -> None:
        """Drop blocks that were taken; their room in memory and on the disk comes free."""
        self.journal.settle(blocks)
        live, old = self._split(blocks)
        rows, size_bytes = self.queue.settle(live)
        old_rows, old_bytes = self._backlog.settle(old)
        self.loader.backlog_bytes -= old_bytes
        self.memory.free(rows + old_rows, size_bytes + old_bytes)

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in order of receipt."""
        live, old = self._split(blocks)
        self.queue.give_back(live)
        self._backlog.give_back(old)

    def _split(self, blocks: Sequence[Block]) -> tuple[Sequence[Block], Sequence[Block]]:
        """Return the live ones of these blocks, and those that were read back from the disk."""
        if not self._backlog.rows:
            return blocks, ()
        live = [block for block in blocks if not block.reloaded]
        return live, [block for block in blocks if block.reloaded]

    def stats(self) -> BufferStats:
        """Return what is in the buffer now, blocks that are only on the disk included."""
        live, backlog, memory = self.queue, self._backlog, self.memory
        kept = self.journal.index.rows
        return BufferStats(
            rows=live.rows + backlog.rows + kept - self._rows_unconfirmed,
            rows_max=memory.rows_max,
            size_bytes=memory.size_bytes + self._bytes_waiting,
            bytes_max=memory.bytes_max,
            rows_waiting=self.writers.rows,
            blocks_waiting=len(live.blocks) + len(backlog.blocks),
            posts_waiting=len(self.waiting.posts),
            oldest_received_s=self._oldest_s(),
            rows_taken=live.rows + backlog.rows - self.writers.rows,
            rows_kept=kept + self._rows_left - self._rows_gone,
            disk_used=self._disk_bytes / self._journal_bytes_max if self._spills else None,
        )

    def _oldest_s(self) -> float | None:
        on_disk_s = self.journal.index.oldest_s()
        return _earliest(self.queue.oldest_s(), self._backlog.oldest_s(), on_disk_s)

    @property
    def broken(self) -> str:
        """Why the journal cannot be written now: the error, or that the disk does not answer."""
        return str(
            self.journal.broken or ("the disk does not answer" if self.journal.hangs else "")
        )

    def journal_stats(self) -> JournalStats:
        """Return what is in the folder."""
        index = self.journal.index
        return JournalStats(index.size_bytes, len(index.segments), self.journal.damaged)

    # What is read back from the disk

    def live_first(self) -> bool:
        """Whether reading back must not delay live posts.

        That is so while live posts come and memory has room for all of them. Without room there is
        overload, and then the rate counts, not the order.
        """
        spills = self._spilling and self.memory.used > SPILL_ENDS_AT
        return not (spills or self._bytes_waiting) and monotonic_s() - self.live_put_s < LIVE_S


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

    def take(self, size_bytes: int, *, spilled: bool) -> bool:
        """Count the frame of a block of `size_bytes`; return False if it has to wait."""
        block_bytes = self._block_bytes[spilled]
        if block_bytes and block_bytes + size_bytes > self._bytes_max[spilled]:
            return False
        self._block_bytes[spilled] += size_bytes  # as `add` does
        self.size_bytes += HEAD_BYTES + size_bytes
        return True

    def add(self, size_bytes: int, *, spilled: bool, frames: int = 1) -> None:
        """Count blocks, or with negative numbers do not count them any more.

        `frames`: one for each post, also if posts share a frame.
        """
        self._block_bytes[spilled] += size_bytes
        self.size_bytes += frames * HEAD_BYTES + size_bytes


def _earliest(*times_s: float | None) -> float | None:
    return min((each for each in times_s if each is not None), default=None)
