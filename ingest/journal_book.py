"""What the event loop knows of the journal: its segments, and what of them is on the disk only.

Pure bookkeeping, no calls of the system. A segment may go once it is written no more and all of its
blocks are settled. What was spilled (or recovered) is known as ranges of a segment, not block by
block: fifty million of them cost nothing but their bytes on the disk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from ingest.block import Block
from ingest.journal_format import HEAD_BYTES, HEADER_BYTES, Done
from ingest.journal_reader import SegmentFile

Notes = dict["Segment", list[tuple[int, int]]]


class Segment:
    """One segment: its size in bytes, how many of its blocks are not settled, whether it goes on.

    `damaged`: to be set aside instead of removed. `unread`: what it holds is unknown, so it stays.
    """

    __slots__ = ("damaged", "file", "leaving", "sealed", "size", "undone", "unread")

    def __init__(self, file: SegmentFile, size: int, *, sealed: bool) -> None:
        self.file = file
        self.size = size
        self.undone = 0
        self.sealed = sealed
        self.damaged = False
        self.unread = False
        self.leaving = False

    @property
    def may_go(self) -> bool:
        """Whether nothing of it is needed any more."""
        return self.sealed and not self.undone and not self.unread and not self.leaving


class Range:
    """Blocks on the disk only, from `start` to `end` of a segment; `done` are not among them.

    `oldest_s` is the (monotonic) receipt of the first of them, `newest_s` a time by which the last
    one had been received, `last` the sequence that was loaded
    last, `failures` how often in a row reading failed. `stays`: the segment holds more than this,
    which cannot be read now.
    """

    __slots__ = (
        *("blocks", "done", "end", "failures", "last", "newest_s", "oldest_s", "rows", "segment"),
        *("start", "stays"),
    )

    def __init__(self, segment: Segment, start: int, end: int, oldest_s: float) -> None:
        self.segment = segment
        self.start = start
        self.end = end
        self.blocks = 0
        self.rows = 0
        self.oldest_s = self.newest_s = oldest_s
        self.last = 0
        self.failures = 0
        self.stays = False
        self.done: Done | None = None


class Book:
    """The segments in order, and the ranges that wait to be read back: recovered ones first."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._firsts: list[int] = []
        self.size_bytes = 0
        self.recovered: deque[Range] = deque()
        self.spilled: deque[Range] = deque()
        self.put_off: list[Range] = []  # they could not be read just now
        self.loading: Range | None = None  # taken by next_range, and not at its end
        self.rows = 0  # in all ranges
        self.blocks = 0
        self._growing: Range | None = None  # the last range, until it is taken

    def add(self, segment: Segment) -> None:
        """Know a segment; its sequences are greater than those of all others."""
        self.segments.append(segment)
        self._firsts.append(segment.file.first)
        self.size_bytes += segment.size

    def add_recovered(self, found: Range) -> None:
        """Know what an earlier life left: from now on its segment goes when that is settled."""
        found.segment.unread = found.stays
        found.segment.undone += found.blocks
        self.recovered.append(found)
        self.rows += found.rows
        self.blocks += found.blocks

    def group(self, file: SegmentFile) -> Segment:
        """A group was written: return its segment, new or the last one."""
        last = self.segments[-1] if self.segments else None
        if last is not None and last.file == file:
            return last
        if last is not None:
            last.sealed = True
        segment = Segment(file, HEADER_BYTES, sealed=False)
        self.add(segment)
        return segment

    def wrote(self, segment: Segment, blocks: int, end: int) -> None:
        """A group of so many blocks was written, up to `end` of its segment."""
        self.size_bytes += end - segment.size
        segment.size = end
        segment.undone += blocks

    def on_disk(self, segment: Segment, start: int, block: Block) -> None:
        """A block whose frame begins at `start` is on the disk only; told of in their order."""
        rows = block.rows
        growing = self._growing
        # What lies between two of them is held in memory too: no range goes over it.
        if growing is None or growing.end != start or growing.segment is not segment:
            growing = self._growing = Range(segment, start, start, block.received_s)
            self.spilled.append(growing)
        growing.newest_s = max(growing.newest_s, block.received_s)
        growing.end = start + HEAD_BYTES + len(block.tuples)
        growing.blocks += 1
        growing.rows += rows
        self.rows += rows
        self.blocks += 1

    def next_range(self) -> Range | None:
        """Return the range that is being loaded, or begin the next one: it grows no more."""
        ranges = self.recovered or self.spilled
        if self.loading is None and ranges:
            self.loading = ranges.popleft()
            if self.loading is self._growing:
                self._growing = None
        return self.loading

    def ranges(self) -> list[Range]:
        """Return all ranges."""
        loading = [self.loading] if self.loading is not None else []
        return [*self.recovered, *self.spilled, *self.put_off, *loading]

    def oldest_s(self) -> float | None:
        """Return when the oldest block of the ranges was received, by the monotonic clock."""
        firsts = [each[0] for each in (self.recovered, self.spilled, self.put_off) if each]
        firsts += [self.loading] if self.loading is not None else []
        return min((each.oldest_s for each in firsts), default=None)

    def later(self, failed: Range) -> None:
        """A range that was taken cannot be read now; it still counts."""
        self.put_off.append(failed)

    def again(self, failed: Range) -> None:
        """Let it be taken once more, behind the others."""
        self.put_off.remove(failed)
        self.spilled.append(failed)

    def loaded(self, rows: int, blocks: int) -> None:
        """Blocks of a range are in memory now."""
        self.rows -= rows
        self.blocks -= blocks

    def segment_of(self, sequence: int) -> Segment:
        """Return the segment that holds the block of this sequence."""
        return self.segments[bisect_right(self._firsts, sequence) - 1]

    def settled(self, sequences: Sequence[int]) -> Notes:
        """Blocks need nothing any more; return what to note. Sequences are in order."""
        notes: Notes = {}
        segment: Segment | None = None
        below = 0  # the sequences of `segment` are below it
        for sequence in sequences:
            if segment is None or sequence >= below:
                at = bisect_right(self._firsts, sequence)
                segment = self.segments[at - 1]
                below = self._firsts[at] if at < len(self._firsts) else 1 << 64
            segment.undone -= 1
            assert segment.undone >= 0, "a block is settled once"
            ranges = notes.setdefault(segment, [])
            if ranges and ranges[-1][1] == sequence - 1:
                ranges[-1] = (ranges[-1][0], sequence)
            else:
                ranges.append((sequence, sequence))
        return notes

    def forget(self, segment: Segment) -> None:
        """A segment is gone."""
        at = self.segments.index(segment)
        del self.segments[at], self._firsts[at]
        self.size_bytes -= segment.size
