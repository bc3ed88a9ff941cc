"""The journal as a buffer uses it. It writes entries in groups, with one fsync for each group.

An entry has one block: of one post, or of small posts that share a frame. Posts are added to it
until the journal begins to write it, or a writer takes its block.
While a thread writes one group, the next one is gathered. When a group is on the disk, one call
into the event loop reports it to all its entries.
After an fsync has failed, nothing more is written to that file. The kernel may have dropped data
that it could not write, and reports this only once. The group is refused, and a new file is begun,
unless the disk is full (folder.py gives the old file up). While no file can be written the journal
is `broken`: it refuses entries at once, and tries the disk again every PROBE_S.
Promises: each failure is reported too, so no post waits for ever.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.journal.folder import LOG_S, GroupPlace, JournalFolder, JournalIndex, Segment
from ingest.buffers.journal.segments import HEADER_BYTES, SegmentFile, is_plausible
from ingest.buffers.memory import SharedBlock
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import NO_SPACE, REAL_CALLS, FileCalls
from ingest.system.logs import Occasionally, get_logger

CLOSE_S_MAX = 5.0  # the disk may hang; the thread is a daemon, so the process can still end
PROBE_S = 2.0
NOTE_S = 0.01  # between two notes of settled blocks, while groups are written
HANGS_S = 10.0  # if a job takes longer, posts are refused instead of waiting for the disk
IDLE_S = 2.0  # after so long the last segment is removed too if it is not needed, to free space
IDLE_SHARE_MIN = 1 / 64  # of segment_bytes; a smaller segment is not worth a removal

assert HEADER_BYTES < HEAD_BYTES, "a segment's size bounds the number of its frames"

log = get_logger("journal")
Notes = list[tuple[SegmentFile, list[tuple[int, int]]]]


class Journal:
    """A folder of segments, for one event loop. `observe_sync_s` gets the time of each group.

    `version`: of new segments, see segments.py.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        version: int,
        observe_sync_s: Callable[[float], None],
        calls: FileCalls = REAL_CALLS,
        probe_s: float = PROBE_S,
    ) -> None:
        self.index = JournalIndex()
        self.broken: JournalBroken | None = None
        self.damaged = 0
        # Set by the buffer. `changed`: room came free, or `broken` has another value. One of the
        # other two is called for each entry: its frame is on the disk and begins at that place of
        # the segment, or it is not in the journal.
        self.changed: Callable[[], None] = lambda: None
        self.kept: Callable[[SharedBlock, Segment, int], None] = lambda *_: None
        self.refused: Callable[[SharedBlock, JournalBroken], None] = lambda *_: None
        self._folder = JournalFolder(
            folder, segment_bytes=segment_bytes, version=version, calls=calls
        )
        self._observe_sync_s = observe_sync_s
        self._probe_s = probe_s
        self._loop: asyncio.AbstractEventLoop  # set by open
        self._thread = _JournalThread(self._folder, self)
        self._is_open = False
        self._sequence = 1  # of the next block
        self._decided = 0  # up to this sequence all blocks are on the disk, or refused
        self._settled_early: set[int] = set()  # sequences above that
        self._gathering: list[SharedBlock] = []
        self._settled: list[int] = []
        self._removing: list[Segment] = []
        self._noted_s = float("-inf")
        self._segment_bytes = segment_bytes
        self._idle: asyncio.TimerHandle | None = None
        self._busy = False
        self._busy_since_s = 0.0
        self._job_due = False
        self._all_done = asyncio.Event()

    def open(self) -> None:
        """Lock the folder and begin. `index` then has the segments found. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        for file, size in self._folder.open():
            if not is_plausible(file):
                self.damaged += 1
                log.error("journal_damaged", file=file.path.name, why="neither name nor header fit")
                continue
            self.index.add(Segment(file, size, sealed=True, unread=True))
            # The size bounds the number of frames. So none of its sequences is given again.
            self._sequence = max(self._sequence, file.first + size // HEAD_BYTES + 1)
        # Somebody may move a file away and put it back later. Sequences begin at the time of the
        # wall clock, so those in such a file are smaller than all new ones.
        self._sequence = max(self._sequence, unix_us())
        self._decided = self._sequence - 1
        self._thread.start(self._loop)
        self._is_open = True

    # Appending

    def append(self, entry: SharedBlock) -> None:
        """Add an entry to the next group. Its block gets a sequence."""
        if self.broken is not None:
            self.refused(entry, self.broken)
            return
        entry.block.sequence = self._sequence
        self._sequence += 1
        self._gathering.append(entry)
        self._schedule_job()

    def settle(self, blocks: Sequence[Block]) -> None:
        """Note that blocks are not needed any more. Those without a sequence are not in a file."""
        decided = self._decided
        for block in blocks:
            if block.sequence > decided:
                self._settled_early.add(block.sequence)
            elif block.sequence:
                self._settled.append(block.sequence)
        if self._settled:
            self._schedule_job()

    def _schedule_job(self) -> None:
        """Start a job at the end of this round of the event loop. Its posts share a group."""
        if not self._busy and not self._job_due:
            self._job_due = True
            self._loop.call_soon(self._start_job)

    def _start_job(self) -> None:
        """Give the thread the gathered group, notes of settled blocks, and segments to remove."""
        self._job_due = False
        if self._busy:
            return
        notes: Notes = []
        due = not self._gathering or monotonic_s() - self._noted_s >= NOTE_S
        if self._settled and due:
            self._noted_s = monotonic_s()
            settled, self._settled = self._settled, []
            settled.sort()
            for segment, ranges in self.index.settled(settled).items():
                if segment.is_removable:
                    self.remove(segment)
                    continue
                notes.append((segment.file, ranges))
                if not segment.undone:
                    self._idle_soon(segment.size)
        group, self._gathering = self._gathering, []
        removing, self._removing = self._removing, []
        if not group and not notes and not removing:
            self._all_done.set()
            return
        for entry in group:
            entry.block.seal()
        self._busy, self._busy_since_s = True, monotonic_s()
        self._all_done.clear()
        self._thread.work(group, notes, removing)

    @property
    def hangs(self) -> bool:
        """Whether the disk has not answered for HANGS_S."""
        return self._busy and monotonic_s() - self._busy_since_s > HANGS_S

    def _idle_soon(self, size_bytes: int) -> None:
        if self._idle is None:
            self._idle = self._loop.call_later(IDLE_S, self._is_idle, size_bytes)

    def _is_idle(self, size_bytes: int) -> None:
        """Remove the last segment if it is not needed, and has not grown since `size_bytes`.

        Otherwise it would stay until it is full, and there may be no posts for days.
        """
        self._idle = None
        last = self.index.last
        if not self._is_open or last is None or last.sealed or last.undone:
            return
        if self._busy or self._job_due or self._gathering or last.size != size_bytes:
            self._idle_soon(last.size)
        elif last.size >= IDLE_SHARE_MIN * self._segment_bytes:
            self._end_segment(last)

    def _end_segment(self, last: Segment) -> None:
        """Write no more to the last segment. Call it only while no group is being written."""
        self._thread.finish()
        last.sealed = True
        if last.is_removable:
            self.remove(last)

    def remove(self, segment: Segment) -> None:
        """Have a segment removed by the next job."""
        assert segment.is_removable, "a segment stays while a block of it is not settled"
        segment.removing = True
        self._removing.append(segment)
        self._schedule_job()

    def _remove_again(self, segment: Segment) -> None:
        """Try again to remove a segment."""
        segment.removing = False
        if self._is_open:
            self.remove(segment)

    # Reports of the thread, in the event loop and in the order of the jobs

    def wrote(
        self, group: list[SharedBlock], written: GroupPlace, took_s: float, is_all: bool
    ) -> None:
        """A group is on the disk: report it to its entries, in their order.

        `is_all`: the job is over, and the thread does not report that too.
        """
        self._observe_sync_s(took_s)
        index = self.index
        before = index.last
        segment = index.wrote(written.file, len(group), written.end)
        at = written.start
        for entry in group:
            start, at = at, at + HEAD_BYTES + len(entry.block.tuples)
            self.kept(entry, segment, start)
        self._decided = group[-1].block.sequence
        if self._settled_early:
            early = [
                each.block.sequence for each in group if each.block.sequence in self._settled_early
            ]
            self._settled_early.difference_update(early)
            self._settled += early
        if written.is_last:
            segment.sealed = True
        if before is not None and before.is_removable:
            self.remove(before)
        if is_all:
            self.job_over([], [])

    def failed(self, group: list[SharedBlock], error: Exception, goes_on: bool) -> None:
        """A group is not on the disk. `goes_on`: another file was begun; if not, we are broken."""
        posts = sum(entry.block.posts for entry in group)
        log.error("journal_write_failed", error=repr(error), posts=posts, again=goes_on)
        broken = JournalBroken(f"the journal could not be written: {error}")
        if not goes_on:
            self._break(broken)
            group = group + self._gathering
            self._gathering = []
        for entry in group:
            entry.block.sequence, sequence = 0, entry.block.sequence
            self._settled_early.discard(sequence)
            self._decided = sequence
            self.refused(entry, broken)

    def job_over(self, removing: list[Segment], gone: list[Segment]) -> None:
        """A job is over. Of the segments `removing`, those in `gone` have been removed."""
        for segment in removing:
            if segment in gone:
                self.index.forget(segment)
            else:
                self._loop.call_later(self._probe_s, self._remove_again, segment)
        self._busy = False
        if gone:
            self.changed()
        self._start_job()

    def _break(self, broken: JournalBroken) -> None:
        if self.broken is None:
            self._loop.call_later(self._probe_s, self._probe)
        self.broken = broken
        last = self.index.last
        if last is not None and not last.sealed:  # to free room: the disk may be full
            self._end_segment(last)
        self.changed()

    def _probe(self) -> None:
        if self._is_open:
            self._thread.begin(self._sequence, self._probed)

    def _probed(self, works: bool) -> None:
        if works:
            self.broken = None
            log.info("journal_writes_again")
            self.changed()
        elif self._is_open:
            self._loop.call_later(self._probe_s, self._probe)

    # The end

    async def missing(self) -> set[Segment]:
        """Return the segments that somebody has removed or moved: the next start cannot read them.

        After that, a new file is begun for the blocks that are appended.
        """
        await self.wait_done()
        segments = list(self.index.segments)

        def find() -> set[Segment]:
            return {each for each in segments if not os.path.lexists(each.file.path)}

        gone = await asyncio.to_thread(find)
        gone = {each for each in gone if not each.removing and each in self.index.segments}
        if gone:
            log.critical("journal_files_gone", files=len(gone))
            # Posts may have come meanwhile. Write them first: no block in a file may have a
            # sequence below the one in the file's name.
            await self.wait_done()
            self._thread.begin(self._sequence)
        return gone

    async def close(self) -> None:
        """End what was begun; remove the last segment if it is not needed. May be called again."""
        is_open, self._is_open = self._is_open, False
        if not is_open:
            return
        if self._idle is not None:
            self._idle.cancel()
        await self.wait_done()
        last = self.index.last
        if last is not None and not last.sealed:
            self._end_segment(last)
            await self.wait_done()
        self._thread.stop()

    async def wait_done(self) -> None:
        """Wait until there is nothing to do. Then each appended block is on the disk or refused."""
        while self._busy or self._job_due or self._gathering or self._settled or self._removing:
            self._all_done.clear()
            await self._all_done.wait()


class _JournalThread:
    """The thread of a journal's folder. It does one job after the other, also after a failed one.

    It reports each one to the journal, in the event loop. Only the method `stop` waits for it.
    """

    def __init__(self, folder: JournalFolder, journal: Journal) -> None:
        self._folder = folder
        self._journal = journal
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._call_in_loop: Callable[..., object] = lambda *_: None
        self._occasionally = Occasionally(LOG_S)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread. It reports its jobs in `loop`."""
        self._call_in_loop = loop.call_soon_threadsafe
        self._thread.start()

    def work(self, group: list[SharedBlock], notes: Notes, removing: list[Segment]) -> None:
        """Write a group, then note which blocks are settled, then remove segments."""
        self._jobs.put(partial(self._work, group, notes, removing))

    def finish(self) -> None:
        """Write no more to the current segment."""
        self._jobs.put(self._folder.finish)

    def begin(self, sequence: int, report: Callable[[bool], None] = lambda _: None) -> None:
        """Begin another segment. `report` is called with whether that was possible."""
        self._jobs.put(partial(self._begin, sequence, report))

    def stop(self) -> None:
        """Do the jobs that are queued, close the folder, and end. Wait at most CLOSE_S_MAX."""
        self._jobs.put(self._folder.close)
        self._jobs.put(None)
        self._thread.join(CLOSE_S_MAX)

    # In the thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a bug: the next job must be done all the same
                log.critical("journal_job_failed", exc_info=True)

    def _begin(self, sequence: int, report: Callable[[bool], None]) -> None:
        self._call_in_loop(report, self._can_begin(sequence))

    def _work(self, group: list[SharedBlock], notes: Notes, removing: list[Segment]) -> None:
        report, journal = self._call_in_loop, self._journal
        is_all = not notes and not removing  # then one report is enough
        if group:
            began_s = monotonic_s()
            try:
                written = self._folder.write([entry.block for entry in group])
            except Exception as error:  # any error: posts wait for a report
                report(journal.failed, group, error, self._try_another(error, group))
            else:
                report(journal.wrote, group, written, monotonic_s() - began_s, is_all)
                if is_all:
                    return
        gone: list[Segment] = []
        try:
            for file, ranges in notes:
                self._folder.note(file, ranges)
            for each in removing:
                if self._folder.remove(each.file, damaged=each.damaged):
                    gone.append(each)
        finally:
            report(journal.job_over, removing, gone)

    def _try_another(self, error: Exception, group: list[SharedBlock]) -> bool:
        """Begin a new file, unless the disk is full; return whether that was possible."""
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return False
        return self._can_begin(group[-1].block.sequence + 1)

    def _can_begin(self, sequence: int) -> bool:
        try:
            self._folder.probe(sequence)
        except Exception as error:  # any error: the journal waits for a report
            if self._occasionally.due("probe") is not None:
                log.warning("journal_still_not_writable", error=str(error))
            return False
        return True
