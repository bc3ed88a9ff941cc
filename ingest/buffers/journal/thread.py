"""The journal's thread: groups, notes and removals, one job after the other, and the loop is told.

Whatever fails there is told too: nobody waits for ever, and the next job is done all the same.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from ingest.buffers.journal.folder import JournalStore, Written
from ingest.buffers.journal.index import Segment
from ingest.buffers.journal.reader import SegmentFile
from ingest.model.block import Block
from ingest.model.errors import JournalBroken
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

CLOSE_S_MAX = 5.0  # a disk may hang; the thread is a daemon
TOLD_S = 60.0  # between lines that say that the disk still takes nothing
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

log = get_logger("journal")

Notes = list[tuple[SegmentFile, list[tuple[int, int]]]]


class Entry(Protocol):
    """What is appended: a block, and who is told what became of it."""

    block: Block

    def kept(self, segment: Segment, start: int) -> None:
        """Its frame is on the disk, and begins at `start`."""

    def refused(self, error: JournalBroken) -> None:
        """Nothing of it is kept in the journal."""


class Teller(Protocol):
    """Who is told in the loop, in the order of the jobs."""

    def wrote(self, group: list[Entry], written: Written, took_s: float, rests: bool) -> None:
        """A group is on the disk; `rests`: that was all of its job."""

    def failed(self, group: list[Entry], error: Exception, goes_on: bool) -> None:
        """Nothing of a group is; `goes_on`: another file has been begun."""

    def job_over(self, leaving: list[Segment], gone: list[Segment]) -> None:
        """A job is over; of the segments `leaving`, those `gone` are."""


class JournalThread:
    """The thread of one journal's store. Nothing here waits but `stop`."""

    def __init__(self, store: JournalStore, teller: Teller) -> None:
        self._store = store
        self._teller = teller
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._tell: Callable[..., object] = lambda *_: None
        self._occasionally = Occasionally(TOLD_S)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; `loop` is told."""
        self._tell = loop.call_soon_threadsafe
        self._thread.start()

    def work(self, group: list[Entry], notes: Notes, leaving: list[Segment]) -> None:
        """Write a group, then note what is done, then remove segments."""
        self._jobs.put(partial(self._work, group, notes, leaving))

    def finish(self) -> None:
        """Write the current segment no more."""
        self._jobs.put(self._store.finish)

    def begin(self, sequence: int, told: Callable[[bool], None] | None = None) -> None:
        """Begin another segment; `told` whether one can be begun."""

        def begin() -> None:
            begun = self._can_begin(sequence)
            if told is not None:
                self._tell(told, begun)

        self._jobs.put(begin)

    def stop(self) -> None:
        """Do what was asked for, close the store, end; wait for it for CLOSE_S_MAX."""
        self._jobs.put(self._store.close)
        self._jobs.put(None)
        self._thread.join(CLOSE_S_MAX)

    # In the thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a bug: the next job must be done all the same
                log.critical("journal_job_failed", exc_info=True)

    def _work(self, group: list[Entry], notes: Notes, leaving: list[Segment]) -> None:
        tell, teller = self._tell, self._teller
        rests = not notes and not leaving  # then one call into the loop does for both
        if group:
            began_s = monotonic_s()
            try:
                written = self._store.write([entry.block for entry in group])
            except Exception as error:  # whatever it is, nobody must wait for ever
                tell(teller.failed, group, error, self._try_another(error, group))
            else:
                tell(teller.wrote, group, written, monotonic_s() - began_s, rests)
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
            tell(teller.job_over, leaving, gone)

    def _try_another(self, error: Exception, group: list[Entry]) -> bool:
        """After a failure that is not for lack of room: return whether a new file can be begun."""
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return False
        return self._can_begin(group[-1].block.sequence + 1)

    def _can_begin(self, sequence: int) -> bool:
        try:
            self._store.probe(sequence)
        except Exception as error:  # whatever it is, who waits for an answer is to get one
            if self._occasionally.due("probe") is not None:
                log.warning("journal_still_not_writable", error=str(error))
            return False
        return True
