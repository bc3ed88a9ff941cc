"""The journal's thread: it does one job after the other, and reports each one to the event loop.

Promises: each failure is reported too, so no post waits for ever. The next job is done all the
same.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from ingest.buffers.journal.folder import LOG_S, GroupPlace, JournalFolder
from ingest.buffers.journal.index import Segment
from ingest.buffers.journal.reader import SegmentFile
from ingest.buffers.shared_block import SharedBlock
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

CLOSE_S_MAX = 5.0  # the disk may hang; the thread is a daemon, so the process can still end
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

log = get_logger("journal")

Notes = list[tuple[SegmentFile, list[tuple[int, int]]]]


class JobObserver(Protocol):
    """It gets the reports of the thread, in the event loop and in the order of the jobs."""

    def wrote(
        self, group: list[SharedBlock], written: GroupPlace, took_s: float, is_all: bool
    ) -> None:
        """A group is on the disk. `is_all`: the job is over, and `job_over` is not called."""

    def failed(self, group: list[SharedBlock], error: Exception, goes_on: bool) -> None:
        """A group is not on the disk. `goes_on`: another file has been begun."""

    def job_over(self, removing: list[Segment], gone: list[Segment]) -> None:
        """A job is over. Of the segments `removing`, those in `gone` have been removed."""


class JournalThread:
    """The thread of one journal's folder. Only the method `stop` waits for it."""

    def __init__(self, folder: JournalFolder, observer: JobObserver) -> None:
        self._folder = folder
        self._observer = observer
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

    def begin(self, sequence: int, report: Callable[[bool], None] | None = None) -> None:
        """Begin another segment. `report` is called with whether that was possible."""

        def begin() -> None:
            begun = self._can_begin(sequence)
            if report is not None:
                self._call_in_loop(report, begun)

        self._jobs.put(begin)

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

    def _work(self, group: list[SharedBlock], notes: Notes, removing: list[Segment]) -> None:
        report, observer = self._call_in_loop, self._observer
        is_all = not notes and not removing  # then one report is enough
        if group:
            began_s = monotonic_s()
            try:
                written = self._folder.write([entry.block for entry in group])
            except Exception as error:  # any error: posts wait for a report
                report(observer.failed, group, error, self._try_another(error, group))
            else:
                report(observer.wrote, group, written, monotonic_s() - began_s, is_all)
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
            report(observer.job_over, removing, gone)

    def _try_another(self, error: Exception, group: list[SharedBlock]) -> bool:
        """Begin a new file, unless the disk is full; return whether that was possible."""
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
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
