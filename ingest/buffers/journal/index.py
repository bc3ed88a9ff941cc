"""The journal's index in memory: its segments, and ranges of blocks that are only on the disk.

A segment may be removed when nothing more is written to it and all of its blocks are settled.
Spilled and recovered blocks are not in the index one by one, but as ranges of a segment. So fifty
million of them need hardly any memory.
Does not: make system calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.journal.format import HEADER_BYTES, Done
from ingest.buffers.journal.reader import SegmentFile
from ingest.model.block import Block

DoneRanges = dict["Segment", list[tuple[int, int]]]  # sequences, both included


@dataclass(eq=False, slots=True)
class Segment:
    """One file of the journal."""

    file: SegmentFile
    size: int  # in bytes
    sealed: bool  # nothing more is written to it
    unread: bool = False  # its blocks have not been counted yet, so it stays
    undone: int = 0  # blocks that are not settled
    damaged: bool = False  # it will be renamed instead of removed
    removing: bool = False

    @property
    def is_removable(self) -> bool:
        """Whether it is not needed any more, and not being removed yet."""
        return self.sealed and not self.undone and not self.unread and not self.removing


@dataclass(eq=False, slots=True)
class Range:
    """Blocks that are only on the disk: those from `start` to `end` of a segment that are not done.

    `oldest_s` and `newest_s` are by the monotonic clock.
    """

    segment: Segment
    start: int
    end: int
    oldest_s: float  # when the first of the blocks was received
    newest_s: float = -inf  # all of them were received before
    blocks: int = 0
    rows: int = 0
    done: Done | None = None
    stays: bool = False  # the segment has more blocks, which cannot be read now
    last: int = 0  # the sequence that was loaded last
    failures: int = 0  # of reading, in a row


class JournalIndex:
    """The segments in order, and the ranges to be read back. Recovered ranges come first."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._firsts: list[int] = []
        self.size_bytes = 0
        self.recovered: deque[Range] = deque()
        self.spilled: deque[Range] = deque()
        self.postponed: list[Range] = []  # reading failed, and is tried again; they count
        self.loading: Range | None = None  # begun, and not read to its end
        self.rows = 0  # in all ranges
        self.blocks = 0
        self._growing: Range | None = None  # the last range, until it is being loaded

    @property
    def last(self) -> Segment | None:
        """The segment that was begun last."""
        return self.segments[-1] if self.segments else None

    def add(self, segment: Segment) -> None:
        """Add a segment. Its sequences must be greater than those of all others."""
        self.segments.append(segment)
        self._firsts.append(segment.file.first)
        self.size_bytes += segment.size

    def add_recovered(self, found: Range) -> None:
        """Add blocks of an earlier process. Their segment may be removed when they are settled."""
        found.segment.unread = found.stays
        found.segment.undone += found.blocks
        self.recovered.append(found)
        self.rows += found.rows
        self.blocks += found.blocks

    def wrote(self, file: SegmentFile, blocks: int, end: int) -> Segment:
        """Note that a group of so many blocks was written, and ends at `end` of this file.

        Return its segment: the last one, or a new one.
        """
        segment = self.last
        if segment is None or segment.file != file:
            if segment is not None:
                segment.sealed = True
            segment = Segment(file, HEADER_BYTES, sealed=False)
            self.add(segment)
        self.size_bytes += end - segment.size
        segment.size = end
        segment.undone += blocks
        return segment

    def on_disk(self, segment: Segment, start: int, block: Block) -> None:
        """Note that a block is only on the disk; its frame begins at `start`. Call it in order."""
        rows = block.rows
        growing = self._growing
        # A block that is in memory as well must not be in a range: the range ends before it.
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
        """Return the range that is being loaded, or begin the next one, which then cannot grow."""
        ranges = self.recovered or self.spilled
        if self.loading is None and ranges:
            self.loading = ranges.popleft()
            if self.loading is self._growing:
                self._growing = None
        return self.loading

    def ranges(self) -> list[Range]:
        """Return all ranges."""
        loading = [self.loading] if self.loading is not None else []
        return [*self.recovered, *self.spilled, *self.postponed, *loading]

    def oldest_s(self) -> float | None:
        """Return when the oldest block of all ranges was received, by the monotonic clock."""
        firsts = [each[0] for each in (self.recovered, self.spilled, self.postponed) if each]
        firsts += [self.loading] if self.loading is not None else []
        return min((each.oldest_s for each in firsts), default=None)

    def resume(self, failed: Range) -> None:
        """Put a postponed range behind the others, to be loaded again."""
        self.postponed.remove(failed)
        self.spilled.append(failed)

    def loaded(self, rows: int, blocks: int) -> None:
        """Do not count blocks of a range any more: they are in memory now, or lost."""
        self.rows -= rows
        self.blocks -= blocks

    def segment_of(self, sequence: int) -> Segment:
        """Return the segment of the block with this sequence."""
        return self.segments[bisect_right(self._firsts, sequence) - 1]

    def settled(self, sequences: Sequence[int]) -> DoneRanges:
        """Count blocks as settled; return their ranges, to be noted. Sequences must increase."""
        ranges_of: DoneRanges = {}
        segment: Segment | None = None
        below = 0  # greater than all sequences of `segment`
        for sequence in sequences:
            if segment is None or sequence >= below:
                at = bisect_right(self._firsts, sequence)
                segment = self.segments[at - 1]
                below = self._firsts[at] if at < len(self._firsts) else 1 << 64
            segment.undone -= 1
            assert segment.undone >= 0, "a block is settled once"
            ranges = ranges_of.setdefault(segment, [])
            if ranges and ranges[-1][1] == sequence - 1:
                ranges[-1] = (ranges[-1][0], sequence)
            else:
                ranges.append((sequence, sequence))
        return ranges_of

    def forget(self, segment: Segment) -> None:
        """Remove a segment whose file was removed."""
        at = self.segments.index(segment)
        del self.segments[at], self._firsts[at]
        self.size_bytes -= segment.size
