"""The journal's index in memory: its segments, and the ranges of them that are on the disk only.

Makes no system calls. A segment may be removed when nothing more is written to it and all of its
blocks are settled. Spilled and recovered blocks are known as ranges of a segment, not one by one:
so fifty million of them need no memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from ingest.buffers.journal.format import HEAD_BYTES, HEADER_BYTES, Done
from ingest.buffers.journal.reader import SegmentFile
from ingest.model.block import Block

DoneRanges = dict["Segment", list[tuple[int, int]]]  # sequences, both included


class Segment:
    """One segment: its file, its size in bytes, how many of its blocks are not settled (`undone`).

    `sealed`: nothing more is written to it. `damaged`: it is set aside instead of removed.
    `unread`: nobody has counted its blocks yet, so it stays. `removing`: it is being removed.
    """

    __slots__ = ("damaged", "file", "removing", "sealed", "size", "undone", "unread")

    def __init__(self, file: SegmentFile, size: int, *, sealed: bool) -> None:
        self.file = file
        self.size = size
        self.undone = 0
        self.sealed = sealed
        self.damaged = False
        self.unread = False
        self.removing = False

    @property
    def is_removable(self) -> bool:
        """Whether it is not needed any more."""
        return self.sealed and not self.undone and not self.unread and not self.removing


class Range:
    """Blocks that are on the disk only: from `start` to `end` of a segment, without those `done`.

    By the monotonic clock, the first of them was received at `oldest_s`, and all of them before
    `newest_s`. `last` is the sequence loaded last, `failures` how often in a row reading failed.
    `stays`: the segment has more blocks, which cannot be read now.
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


class JournalIndex:
    """The segments in order, and the ranges to be read back: recovered ones first."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._firsts: list[int] = []
        self.size_bytes = 0
        self.recovered: deque[Range] = deque()
        self.spilled: deque[Range] = deque()
        self.postponed: list[Range] = []  # reading them failed; to be tried again later
        self.loading: Range | None = None  # begun, and not at its end
        self.rows = 0  # in all ranges
        self.blocks = 0
        self._growing: Range | None = None  # the last range, until it is being loaded

    @property
    def last(self) -> Segment | None:
        """The segment that was begun last."""
        return self.segments[-1] if self.segments else None

    def add(self, segment: Segment) -> None:
        """Add a segment; its sequences are greater than those of all others."""
        self.segments.append(segment)
        self._firsts.append(segment.file.first)
        self.size_bytes += segment.size

    def add_recovered(self, found: Range) -> None:
        """Add what an earlier process left. Its segment may be removed when that is settled."""
        found.segment.unread = found.stays
        found.segment.undone += found.blocks
        self.recovered.append(found)
        self.rows += found.rows
        self.blocks += found.blocks

    def group(self, file: SegmentFile) -> Segment:
        """Return the segment of a group that was written: a new one or the last one."""
        last = self.last
        if last is not None and last.file == file:
            return last
        if last is not None:
            last.sealed = True
        segment = Segment(file, HEADER_BYTES, sealed=False)
        self.add(segment)
        return segment

    def wrote(self, segment: Segment, blocks: int, end: int) -> None:
        """Note that a group of so many blocks was written, up to `end` of its segment."""
        self.size_bytes += end - segment.size
        segment.size = end
        segment.undone += blocks

    def on_disk(self, segment: Segment, start: int, block: Block) -> None:
        """Note that a block is on the disk only; its frame begins at `start`. Call it in order."""
        rows = block.rows
        growing = self._growing
        # A block between two of them is in memory as well: it must not be in a range.
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
        return [*self.recovered, *self.spilled, *self.postponed, *loading]

    def oldest_s(self) -> float | None:
        """Return when the oldest block of the ranges was received, by the monotonic clock."""
        firsts = [each[0] for each in (self.recovered, self.spilled, self.postponed) if each]
        firsts += [self.loading] if self.loading is not None else []
        return min((each.oldest_s for each in firsts), default=None)

    def postpone(self, failed: Range) -> None:
        """Put aside a range that cannot be read now; its rows still count."""
        self.postponed.append(failed)

    def resume(self, failed: Range) -> None:
        """Put a postponed range behind the others, to be loaded once more."""
        self.postponed.remove(failed)
        self.spilled.append(failed)

    def loaded(self, rows: int, blocks: int) -> None:
        """Count blocks of a range no longer: they are in memory now, or lost."""
        self.rows -= rows
        self.blocks -= blocks

    def segment_of(self, sequence: int) -> Segment:
        """Return the segment that holds the block of this sequence."""
        return self.segments[bisect_right(self._firsts, sequence) - 1]

    def settled(self, sequences: Sequence[int]) -> DoneRanges:
        """Blocks are not needed any more; return their ranges, to be noted. Call it in order."""
        ranges_of: DoneRanges = {}
        segment: Segment | None = None
        below = 0  # the sequences of `segment` are below it
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
        """Drop a segment that was removed."""
        at = self.segments.index(segment)
        del self.segments[at], self._firsts[at]
        self.size_bytes -= segment.size
