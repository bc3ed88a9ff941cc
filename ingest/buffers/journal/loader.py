"""The loader reads back blocks that are only on the disk: recovered and spilled ones.

`scan` reads the segments that were there at the start. It counts the blocks in them that are not
settled, and cuts off the torn tail of the last segment. `load` reads blocks into memory when there
is room. Both work in a thread, in small steps.

Promises: damage does not stop it. Blocks that are whole are loaded, and the file is set aside.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ingest.buffers.journal.folder import Range, Segment
from ingest.buffers.journal.log import Journal
from ingest.buffers.journal.segments import HEADER_BYTES, SegmentReader, SegmentScan
from ingest.buffers.memory import BlockQueue, BoundedMemory
from ingest.model.block import Block
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s, process_cpu_s, sleep_unless, unix_us
from ingest.system.logs import get_logger

READ_BYTES_MAX = 1 << 18
# While live posts come, their fsync waits for the disk behind the commits of blocks that were read
# back. So these commits are small, with pauses between them. The p99 over 5 s was 2.4 to 2.8 times
# the normal one with batches of 1,000 rows, and 2.2 times with 300.
LIVE_READ_BYTES_MAX = 1 << 16
LIVE_BATCH_ROWS_MAX = 300  # or one block
BUSY_MAX = 0.2  # of a core, used by this process; above it the pauses become longer
PAUSE_S_MIN, PAUSE_S_MAX = 0.001, 0.005  # after 300 rows: at least 50,000 rows a second
READ_AGAIN_S = 5.0
READS_MAX = 3  # so many failures in a row count as damage; reading is still tried again

log = get_logger("journal")

_T = TypeVar("_T")


class Loader:
    """The loader of one buffer, and the queue of the blocks that it has read back, the backlog.

    `live_first` says whether reading back must not delay live posts. `scan` and `load` end soon
    after `stopping` is set.
    """

    def __init__(
        self,
        journal: Journal,
        memory: BoundedMemory,
        backlog: BlockQueue,
        counts: Ledger,
        live_first: Callable[[], bool],
    ) -> None:
        self.read_wanted = asyncio.Event()  # there may be something to read back, or room for it
        self.backlog_bytes = 0  # of blocks that were read back and are not settled
        self._is_shut = False
        self._journal = journal
        self._index = journal.index
        self._memory = memory
        self._backlog = backlog
        self._counts = counts
        self._live_first = live_first
        self._reader: SegmentReader | None = None
        self._stepping = asyncio.Lock()
        self._began_s = monotonic_s()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-reader")
        self._pause_s = 0.0
        self._measured_s = self._cpu_s = 0.0  # when the CPU time was read last, and its value

    async def _step(self, work: Callable[[], _T]) -> _T:
        """Do one small step in the thread. Then pause as long, to leave time for live posts."""
        async with self._stepping:
            began_s = monotonic_s()
            done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            await asyncio.sleep(monotonic_s() - began_s)
            return done

    # Blocks of earlier processes

    async def scan(self, stopping: asyncio.Event) -> None:
        """Read the segments that were there at the start, and count the blocks in them."""
        self._thread.submit(int)  # starts the thread now: later a limit of threads may be reached
        unread = [each for each in self._index.segments if each.unread]
        # The last one is first: its tail can be cut off only while no other segment follows it.
        left, last = [*unread[-1:], *unread[:-1]], unread[-1:]
        for tries in range(1, READS_MAX + 1):
            left = await self._scan_all(left, last, stopping, gives_up=tries == READS_MAX)
            if not left or await sleep_unless(stopping, READ_AGAIN_S):
                return

    async def _scan_all(
        self, segments: list[Segment], last: list[Segment], stopping: asyncio.Event, gives_up: bool
    ) -> list[Segment]:
        """Scan segments; return those that could not be read."""
        newest: Range | None = None
        again: list[Segment] = []
        for segment in segments:
            is_last = segment in last
            try:
                found = await self._scan_segment(segment, stopping, is_last, gives_up)
            except OSError as error:
                log.error("journal_read_failed", file=segment.file.path.name, error=str(error))
                again.append(segment)
                continue
            if stopping.is_set():
                return []
            if is_last:
                newest = found
            elif found is not None:
                self._recovered(found)
        if newest is not None:
            self._recovered(newest)
        return again

    async def _scan_segment(
        self, segment: Segment, stopping: asyncio.Event, is_last: bool, gives_up: bool
    ) -> Range | None:
        """Scan one segment. Raises OSError if it cannot be read, unless it `gives_up`."""
        scan = SegmentScan(segment.file, segment.size)
        try:
            while await self._step(scan.step):
                if stopping.is_set():
                    return None
        except OSError as error:
            if not gives_up:
                raise
            self._damaged(segment, f"cannot be read: {error.strerror}")
            found = _range_of(segment, scan)  # of the blocks that were read
            found.stays = True  # the next start may be able to read the rest
            return found if found.blocks else None
        finally:
            scan.close()
        if scan.torn and is_last:
            await self._cut_tail(segment, scan)
        return self._checked(segment, scan, is_last=is_last)

    async def _cut_tail(self, segment: Segment, scan: SegmentScan) -> None:
        name = segment.file.path.name
        try:
            await self._step(partial(os.truncate, segment.file.path, scan.end))
        except OSError as error:  # blocks that are whole are loaded all the same
            log.warning("journal_tail_not_cut", file=name, error=str(error))
        else:
            segment.size -= scan.tail_bytes
            self._index.size_bytes -= scan.tail_bytes
            log.warning("journal_tail_cut", file=name, bytes=scan.tail_bytes)

    def _checked(self, segment: Segment, scan: SegmentScan, *, is_last: bool) -> Range | None:
        """Report what is wrong with a segment; return the range to be loaded, if there is one."""
        if scan.fault.startswith("version"):
            self._damaged(segment, f"has {scan.fault}, which this service cannot read")
            return None  # it stays unread: another version of the service may read it
        faults = [f"its header is {scan.fault}"] if scan.fault and segment.size else []
        if scan.gaps:
            faults.append(f"damaged in {scan.gaps} places")
        if scan.tail_bytes and not (scan.torn and is_last):
            faults.append(f"its last {scan.tail_bytes} bytes are no block")
        if faults and segment.size >= HEADER_BYTES:
            segment.damaged = True
            self._damaged(segment, ", ".join(faults))
        if not scan.blocks:
            segment.unread = False
            self._journal.remove(segment)
            return None
        return _range_of(segment, scan)

    def _damaged(self, segment: Segment, why: str) -> None:
        self._journal.damaged += 1
        log.error("journal_damaged", file=segment.file.path.name, why=why)

    def _recovered(self, found: Range) -> None:
        found.newest_s = self._began_s
        self._counts.recovered += found.rows
        self._index.add_recovered(found)
        self.read_wanted.set()
        log.info("journal_recovered", file=found.segment.file.path.name, rows=found.rows)

    # Back into memory

    async def load(self, stopping: asyncio.Event) -> None:
        """Read blocks back when there is room, until `stopping` is set or the buffer is shut."""
        try:
            while not (stopping.is_set() or self._is_shut):
                self.read_wanted.clear()
                room = self._room()
                current = self._index.next_range() if room is not None else None
                if current is None or room is None:
                    await self.read_wanted.wait()
                    continue
                try:
                    await self._load_some(current, *room)
                except OSError as error:
                    self._postpone(current, error)
                await self._pause()
        finally:
            self._close_reader()

    def shut(self) -> None:
        """Read nothing back any more."""
        self._is_shut = True
        self.read_wanted.set()

    def close(self) -> None:
        """End the thread once it has done what it does. The work has ended. Repeatable."""
        self._thread.shutdown(wait=False)

    def _room(self) -> tuple[int, int] | None:
        """Return how many rows and bytes may be read back now; None if there is no room.

        The backlog may fill a quarter of memory. If the bounds are tiny it may have one block.
        """
        memory = self._memory
        quarter = max(1, memory.rows_max // 4), max(1, memory.bytes_max // 4)
        rows = min(quarter[0] - self._backlog.rows, memory.rows_max - memory.rows)
        size_bytes = min(quarter[1] - self.backlog_bytes, memory.bytes_max - memory.size_bytes)
        return (rows, size_bytes) if rows > 0 and size_bytes > 0 else None

    def _queue(self, blocks: Sequence[Block], *, newest_s: float) -> None:
        """Queue blocks that were read back. They may exceed the room by one block.

        All of them were received before `newest_s` (monotonic clock). Their age by the wall clock
        may be wrong: somebody may have set that clock since then.
        """
        now_s, now_us = monotonic_s(), unix_us()
        for block in blocks:
            block.received_s = min(newest_s, now_s - (now_us - block.received_us) / 1e6)
            self.backlog_bytes += len(block.tuples)
            self._memory.add(block.rows, len(block.tuples))
            self._index.rows -= block.rows
            self._backlog.append(block)

    async def _pause(self) -> None:
        """While live posts come, pause. The pauses become longer while the process is busy."""
        now_s, cpu_s = monotonic_s(), process_cpu_s()
        if now_s > self._measured_s:
            busy = (cpu_s - self._cpu_s) / (now_s - self._measured_s)
            if busy > BUSY_MAX:
                self._pause_s = min(max(self._pause_s, PAUSE_S_MIN) * 1.25, PAUSE_S_MAX)
            else:
                self._pause_s *= 0.8
        self._measured_s, self._cpu_s = now_s, cpu_s
        if self._live_first():
            await asyncio.sleep(self._pause_s)

    async def _load_some(self, current: Range, rows_max: int, bytes_max: int) -> None:
        if self._reader is None:
            self._reader = SegmentReader(
                current.segment.file, current.start, current.end, current.done
            )
        bytes_max = min(bytes_max, READ_BYTES_MAX)
        if self._live_first():
            rows_max = min(rows_max, LIVE_BATCH_ROWS_MAX)
            bytes_max = min(bytes_max, LIVE_READ_BYTES_MAX)
        found = await self._step(partial(self._reader.read, rows_max, bytes_max))
        current.start = self._reader.at  # for the case that the range is postponed
        if self._is_shut:
            return  # it stays on the disk
        blocks = [block for block in found or () if block.sequence > current.last]
        if blocks:
            current.failures = 0
            current.last = blocks[-1].sequence
            current.rows -= sum(block.rows for block in blocks)
            current.blocks -= len(blocks)
            self._queue(blocks, newest_s=current.newest_s)
            current.oldest_s = blocks[-1].received_s
        if found is None:
            self._close_reader()
            self._ended(current)

    def _ended(self, current: Range) -> None:
        self._index.loading = None
        if current.blocks:  # they were in the file when they were written or scanned
            log.critical("readings_lost", rows=current.rows, file=current.segment.file.path.name)
            self._counts.dropped += current.rows
            self._index.rows -= current.rows
            current.segment.undone -= current.blocks
            current.segment.damaged = True
            self._damaged(current.segment, "blocks are gone since the start")
            if current.segment.is_removable:
                self._journal.remove(current.segment)

    def _postpone(self, current: Range, error: OSError) -> None:
        """Load the other ranges first, and try this one again later."""
        self._close_reader()
        self._index.loading = None
        if not current.blocks:
            return  # all of its blocks are loaded: only the end could not be read
        current.failures += 1
        if current.failures <= READS_MAX:
            log.error("journal_read_failed", error=str(error), tries=current.failures)
        if current.failures == READS_MAX:
            self._damaged(current.segment, "cannot be read; what is in it waits until it can")
        self._index.postponed.append(current)
        asyncio.get_running_loop().call_later(READ_AGAIN_S, self._resume, current)

    def _resume(self, current: Range) -> None:
        self._index.resume(current)
        self.read_wanted.set()

    def _close_reader(self) -> None:
        """Close it in the thread: if the file is removed already, the kernel needs 17 ms for it."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._thread.submit(reader.close)


def _range_of(segment: Segment, scan: SegmentScan) -> Range:
    """Return the blocks that a scan has found, as a range to be loaded."""
    age_s = max(0.0, (unix_us() - scan.oldest_us) / 1e6)
    return Range(
        segment,
        HEADER_BYTES,
        scan.end,
        monotonic_s() - age_s,
        blocks=scan.blocks,
        rows=scan.rows,
        done=scan.done,
    )
