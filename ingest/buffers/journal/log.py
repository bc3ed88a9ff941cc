"""The journal as a buffer uses it: entries in, group by group, each with one write and one fsync.

While a thread writes a group and brings it to the disk, the next one gathers; whoever waits for a
group is told by one call into the loop. An fsync that failed is never tried again on its file: the
group is refused and a new file begun. While no file can be written the journal is `broken`, refuses
at once, and tries the disk every PROBE_S.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ingest.buffers.journal.folder import JournalStore, Written
from ingest.buffers.journal.format import HEAD_BYTES, HEADER_BYTES
from ingest.buffers.journal.index import Book, Segment
from ingest.buffers.journal.reader import is_believed
from ingest.buffers.journal.thread import Entry, JournalThread, Notes
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import REAL_CALLS, FileCalls
from ingest.system.logs import get_logger

PROBE_S = 2.0
NOTE_S = 0.01  # between notes of what is done, while groups are written
HANGS_S = 10.0  # a group or a removal that takes longer: posts are better refused
IDLE_S = 2.0  # then the last segment goes too if nothing of it is needed, so that its room is free
IDLE_SHARE_MIN = 1 / 64  # of segment_bytes; what is smaller may stay

log = get_logger("journal")


class Journal:
    """A folder of segments, for one event loop. `observe_sync_s` is told how long groups take."""

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        observe_sync_s: Callable[[float], None],
        calls: FileCalls = REAL_CALLS,
        probe_s: float = PROBE_S,
    ) -> None:
        self.book = Book()
        self.broken: JournalBroken | None = None
        self.damaged = 0
        self.changed: Callable[[], None] = lambda: None  # room came free, or broken changed
        self._store = JournalStore(folder, segment_bytes=segment_bytes, calls=calls)
        self._observe_sync_s = observe_sync_s
        self._probe_s = probe_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = JournalThread(self._store, self)
        self._is_open = False
        self._sequence = 1  # the next one
        self._decided = 0  # all up to this sequence have been told what became of them
        self._early: set[int] = set()  # settled before they were decided
        self._gathering: list[Entry] = []
        self._settled: list[int] = []
        self._leaving: list[Segment] = []
        self._noted_s = float("-inf")
        self._segment_bytes = segment_bytes
        self._idle: asyncio.TimerHandle | None = None
        self._busy = False
        self._busy_since_s = 0.0
        self._turn_due = False
        self._rested = asyncio.Event()

    def open(self) -> None:
        """Take the folder and begin; what earlier lives left is in `book`. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        for file, size in self._store.open():
            if not is_believed(file):
                self.damaged += 1
                log.error("journal_damaged", file=file.path.name, why="neither name nor header fit")
                continue
            segment = Segment(file, size, sealed=True)
            segment.unread = True
            self.book.add(segment)
            # More frames than bytes allow there are not: no sequence is given twice.
            self._sequence = max(self._sequence, file.first + size // HEAD_BYTES + 1)
        # Nor one that an earlier life gave, whose file somebody has taken away and may put back.
        self._sequence = max(self._sequence, unix_us())
        self._decided = self._sequence - 1
        self._thread.start(self._loop)
        self._is_open = True

    # Appending

    def append(self, entry: Entry) -> None:
        """Take an entry into the next group. Its block gets its sequence; the entry is told."""
        if self.broken is not None:
            entry.refused(self.broken)
            return
        entry.block.sequence = self._sequence
        self._sequence += 1
        self._gathering.append(entry)
        self._due()

    def settle(self, blocks: Sequence[Block]) -> None:
        """Blocks need nothing any more; those that are in no journal are passed over."""
        decided = self._decided
        for block in blocks:
            if block.sequence > decided:
                self._early.add(block.sequence)
            elif block.sequence:
                self._settled.append(block.sequence)
        if self._settled:
            self._due()

    def _due(self) -> None:
        """See to a turn: when this round of the loop is over, so that its posts share a group."""
        if not self._busy and not self._turn_due:
            assert self._loop is not None, "open it first"
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Give the thread a group, and what else there is to do."""
        self._turn_due = False
        if self._busy:
            return
        notes: Notes = []
        due = not self._gathering or monotonic_s() - self._noted_s >= NOTE_S
        if self._settled and due:
            self._noted_s = monotonic_s()
            settled, self._settled = self._settled, []
            settled.sort()
            for segment, ranges in self.book.settled(settled).items():
                if segment.may_go:
                    self.let_go(segment)
                    continue
                notes.append((segment.file, ranges))
                if not segment.undone:
                    self._idle_soon(segment.size)
        group, self._gathering = self._gathering, []
        leaving, self._leaving = self._leaving, []
        if not group and not notes and not leaving:
            self._rested.set()
            return
        self._busy, self._busy_since_s = True, monotonic_s()
        self._rested.clear()
        self._thread.work(group, notes, leaving)

    @property
    def hangs(self) -> bool:
        """Whether the disk has not answered for HANGS_S."""
        return self._busy and monotonic_s() - self._busy_since_s > HANGS_S

    def _idle_soon(self, size_bytes: int) -> None:
        if self._idle is None and self._loop is not None:
            self._idle = self._loop.call_later(IDLE_S, self._is_idle, size_bytes)

    def _is_idle(self, size_bytes: int) -> None:
        """If nothing of the last segment is needed: no group may come that would let it go.

        It must not have grown since it had `size_bytes`.
        """
        self._idle = None
        last = self.book.segments[-1] if self.book.segments else None
        if not self._is_open or last is None or last.sealed or last.undone:
            return
        if self._busy or self._turn_due or self._gathering or last.size != size_bytes:
            self._idle_soon(last.size)
        elif last.size >= IDLE_SHARE_MIN * self._segment_bytes:
            self._end_segment(last)

    def _end_segment(self, last: Segment) -> None:
        """Write the last segment no more. No group may be on its way to it."""
        self._thread.finish()
        last.sealed = True
        if last.may_go:
            self.let_go(last)

    def let_go(self, segment: Segment) -> None:
        """Remove a segment that `may_go`, in the next turn."""
        assert segment.may_go, "what is not settled stays"
        segment.leaving = True
        self._leaving.append(segment)
        self._due()

    def _let_go_again(self, segment: Segment) -> None:
        """What the disk did not let us remove still takes room: try once more."""
        segment.leaving = False
        if self._is_open:
            self.let_go(segment)

    # In the loop again

    def wrote(self, group: list[Entry], written: Written, took_s: float, rests: bool) -> None:
        """A group is on the disk: its entries are told, in their order."""
        self._observe_sync_s(took_s)
        book = self.book
        before = book.segments[-1] if book.segments else None
        segment = book.group(written.file)
        book.wrote(segment, len(group), written.end)
        at = written.start
        for entry in group:
            start, at = at, at + HEAD_BYTES + len(entry.block.tuples)
            entry.kept(segment, start)
        self._decide(group)
        if written.is_last:
            segment.sealed = True
        if before is not None and before.may_go:
            self.let_go(before)
        if rests:
            self.job_over([], [])

    def failed(self, group: list[Entry], error: Exception, goes_on: bool) -> None:
        """Nothing of a group is; unless it `goes_on`, nor will be of what comes."""
        log.error("journal_write_failed", error=repr(error), posts=len(group), again=goes_on)
        broken = JournalBroken(f"the journal could not be written: {error}")
        if not goes_on:
            self._break(broken)
            group = group + self._gathering
            self._gathering = []
        for entry in group:
            entry.block.sequence, sequence = 0, entry.block.sequence
            self._early.discard(sequence)
            self._decided = sequence
            entry.refused(broken)

    def _decide(self, group: list[Entry]) -> None:
        self._decided = group[-1].block.sequence
        if self._early:
            early = [each.block.sequence for each in group if each.block.sequence in self._early]
            self._early.difference_update(early)
            self._settled += early

    def job_over(self, leaving: list[Segment], gone: list[Segment]) -> None:
        """A turn is over; of the segments `leaving`, those `gone` are."""
        assert self._loop is not None, "open it first"
        for segment in leaving:
            if segment in gone:
                self.book.forget(segment)
            else:
                self._loop.call_later(self._probe_s, self._let_go_again, segment)
        self._busy = False
        if gone:
            self.changed()
        if self._gathering or self._settled or self._leaving:
            self._turn()
        else:
            self._rested.set()

    def _break(self, broken: JournalBroken) -> None:
        assert self._loop is not None, "open it first"
        if self.broken is None:
            self._loop.call_later(self._probe_s, self._probe)
        self.broken = broken
        last = self.book.segments[-1] if self.book.segments else None
        if last is not None and not last.sealed:  # the disk may be full of it
            self._end_segment(last)
        self.changed()

    def _probe(self) -> None:
        if self._is_open:
            self._thread.begin(self._sequence, self._probed)

    def _probed(self, well: bool) -> None:
        assert self._loop is not None, "open it first"
        if well:
            self.broken = None
            log.info("journal_writes_again")
            self.changed()
        elif self._is_open:
            self._loop.call_later(self._probe_s, self._probe)

    # The end

    async def missing(self) -> set[Segment]:
        """Return the segments that somebody has removed or moved; what is in them nobody finds.

        What is appended afterwards goes to a file that is there.
        """
        await self.rest()
        segments = list(self.book.segments)

        def look() -> set[Segment]:
            return {each for each in segments if not os.path.lexists(each.file.path)}

        gone = await asyncio.to_thread(look)
        gone = {each for each in gone if not each.leaving and each in self.book.segments}
        if gone:
            log.critical("journal_files_gone", files=len(gone))
            await self.rest()  # posts that came meanwhile: no file begins behind its first block
            self._thread.begin(self._sequence)
        return gone

    async def close(self) -> None:
        """Finish what was begun; remove the last segment if nothing of it is needed. Repeatable."""
        is_open, self._is_open = self._is_open, False
        if not is_open:
            return
        if self._idle is not None:
            self._idle.cancel()
        await self.rest()
        last = self.book.segments[-1] if self.book.segments else None
        if last is not None and not last.sealed:
            self._end_segment(last)
            await self.rest()
        self._thread.stop()

    async def rest(self) -> None:
        """Wait until there is nothing to do: all that was appended is decided."""
        while self._busy or self._turn_due or self._gathering or self._settled or self._leaving:
            self._rested.clear()
            await self._rested.wait()


assert HEADER_BYTES < HEAD_BYTES, "a segment's size bounds the number of its frames"
