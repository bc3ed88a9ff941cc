"""The journal as a buffer uses it: entries in, group by group, each with one write and one fsync.

While a thread writes a group and brings it to the disk, the next one gathers; whoever waits for a
group is told by one call into the loop. An fsync that failed is never tried again on its file: the
group is refused and a new file begun. While no file can be written the journal is `broken`, refuses
at once, and tries the disk every PROBE_S.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from ingest.block import Block
from ingest.clock import monotonic_s
from ingest.errors import JournalBroken
from ingest.files import REAL_CALLS, FileCalls
from ingest.journal_book import Book, Segment
from ingest.journal_format import HEAD_BYTES, HEADER_BYTES
from ingest.journal_reader import SegmentFile
from ingest.journal_store import JournalStore, Written
from ingest.logs import Occasionally, get_logger

PROBE_S = 2.0
NOTE_S = 0.01  # between notes of what is done, while groups are written
CLOSE_S_MAX = 5.0  # a disk may hang; the thread is a daemon
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

log = get_logger("journal")


class Entry(Protocol):
    """What is appended: a block, and who is told what became of it."""

    block: Block

    def kept(self, segment: Segment, start: int) -> None:
        """Its frame is on the disk, and begins at `start`."""

    def refused(self, error: JournalBroken) -> None:
        """Nothing of it is kept in the journal."""


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
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._sequence = 1  # the next one
        self._decided = 0  # all up to this sequence have been told what became of them
        self._early: set[int] = set()  # settled before they were decided
        self._gathering: list[Entry] = []
        self._settled: list[int] = []
        self._leaving: list[Segment] = []
        self._noted_s = float("-inf")
        self._occasionally = Occasionally(60.0)
        self._busy = False
        self._turn_due = False
        self._rested = asyncio.Event()

    def open(self) -> None:
        """Take the folder and begin; what earlier lives left is in `book`. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        for file, size in self._store.open():
            segment = Segment(file, size, sealed=True)
            segment.unread = True
            self.book.add(segment)
            # More frames than bytes allow there are not: no sequence is given twice.
            self._sequence = max(self._sequence, file.first + size // HEAD_BYTES + 1)
        self._decided = self._sequence - 1
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

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
        group, self._gathering = self._gathering, []
        notes: list[tuple[SegmentFile, list[tuple[int, int]]]] = []
        if self._settled and (not group or monotonic_s() - self._noted_s >= NOTE_S):
            self._noted_s = monotonic_s()
            settled, self._settled = self._settled, []
            settled.sort()
            for segment, ranges in self.book.settled(settled).items():
                if segment.may_go:
                    self.let_go(segment)
                else:
                    notes.append((segment.file, ranges))
        leaving, self._leaving = self._leaving, []
        if not group and not notes and not leaving:
            self._rested.set()
            return
        self._busy = True
        self._rested.clear()
        self._jobs.put(partial(self._work, group, notes, leaving))

    def let_go(self, segment: Segment) -> None:
        """Remove a segment that `may_go`, in the next turn."""
        assert segment.may_go, "what is not settled stays"
        segment.leaving = True
        self._leaving.append(segment)
        self._due()

    def _let_go_again(self, segment: Segment) -> None:
        """What the disk did not let us remove still takes room: try once more."""
        segment.leaving = False
        if self._thread is not None:
            self.let_go(segment)

    # In the thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a bug: the next job must be done all the same
                log.critical("journal_job_failed", exc_info=True)

    def _work(
        self,
        group: list[Entry],
        notes: list[tuple[SegmentFile, list[tuple[int, int]]]],
        leaving: list[Segment],
    ) -> None:
        assert self._loop is not None, "open it first"
        tell = self._loop.call_soon_threadsafe
        rests = not notes and not leaving  # then one call into the loop does for both
        if group:
            began_s = monotonic_s()
            try:
                written = self._store.write([entry.block for entry in group])
            except Exception as error:  # whatever it is, nobody must wait for ever
                tell(self._failed, group, error, self._try_another(error, group))
            else:
                tell(self._wrote, group, written, monotonic_s() - began_s, rests)
                if rests:
                    return
        gone: list[Segment] = []
        try:
            for file, ranges in notes:
                self._store.note(file, ranges)
            for each in leaving:
                if self._store.remove(each.file, damaged=each.damaged):
                    gone.append(each)
        finally:
            tell(self._rest, leaving, gone)

    def _try_another(self, error: Exception, group: list[Entry]) -> bool:
        """After a failure that is not for lack of room: return whether a new file can be begun."""
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return False
        return self._can_create(group[-1].block.sequence + 1)

    def _begin(self, sequence: int) -> None:
        self._can_create(sequence)

    def _can_create(self, sequence: int) -> bool:
        try:
            self._store.probe(sequence)
        except Exception as error:  # whatever it is, who waits for an answer is to get one
            if self._occasionally.due("probe") is not None:
                log.warning("journal_still_not_writable", error=str(error))
            return False
        return True

    # In the loop again

    def _wrote(self, group: list[Entry], written: Written, took_s: float, rests: bool) -> None:
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
        if before is not None and before.may_go:
            self.let_go(before)
        if rests:
            self._rest([], [])

    def _failed(self, group: list[Entry], error: Exception, goes_on: bool) -> None:
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

    def _rest(self, leaving: list[Segment], gone: list[Segment]) -> None:
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
        self.changed()

    def _probe(self) -> None:
        assert self._loop is not None, "open it first"
        if self._thread is not None:
            tell = self._loop.call_soon_threadsafe
            sequence = self._sequence

            def probe() -> None:
                tell(self._probed, self._can_create(sequence))

            self._jobs.put(probe)

    def _probed(self, well: bool) -> None:
        assert self._loop is not None, "open it first"
        if well:
            self.broken = None
            log.info("journal_writes_again")
            self.changed()
        elif self._thread is not None:
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
        if gone:
            log.critical("journal_files_gone", files=len(gone))
            await self.rest()  # posts that came meanwhile: no file begins behind its first block
            self._jobs.put(partial(self._begin, self._sequence))
        return gone

    async def close(self) -> None:
        """Finish what was begun; remove the last segment if nothing of it is needed. Repeatable."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await self.rest()
        last = self.book.segments[-1] if self.book.segments else None
        self._jobs.put(self._store.finish)
        if last is not None and not last.sealed:
            last.sealed = True
            if last.may_go:
                self.let_go(last)
                await self.rest()
        self._jobs.put(self._store.close)
        self._jobs.put(None)
        thread.join(CLOSE_S_MAX)

    async def rest(self) -> None:
        """Wait until there is nothing to do: all that was appended is decided."""
        while self._busy or self._turn_due or self._gathering or self._settled or self._leaving:
            self._rested.clear()
            await self._rested.wait()


assert HEADER_BYTES < HEAD_BYTES, "a segment's size bounds the number of its frames"
