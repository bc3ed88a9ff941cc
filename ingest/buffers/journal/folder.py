"""The journal's folder: appends groups to segments, notes settled blocks, removes segments.

Promises: when `write` returns, the group is on the disk. Nothing is appended to a segment of an
earlier process.
Does not: allow two calls at a time. All methods of JournalFolder block; the thread of log.py makes
one call after the other.
The index in memory belongs to the event loop: the segments, and ranges of blocks that are only on
the disk. It makes no system calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

from ingest.buffers.frames import HEAD_BYTES, encode_head
from ingest.buffers.journal.segments import (
    DONE_BYTES,
    HEADER_BYTES,
    Done,
    SegmentFile,
    encode_done,
    encode_header,
    segment_files,
    segment_name,
)
from ingest.model.block import Block
from ingest.model.errors import StartError
from ingest.system.files import (
    REAL_CALLS,
    AppendFile,
    FileCalls,
    FolderLock,
    make_folder,
    sync_folder,
    unlink_aside,
)
from ingest.system.logs import Occasionally, get_logger

# Between two checks that the file is still there. A check waits for the interpreter twice, and in
# each group that would take a quarter of the time.
UNSEEN_S_MAX = 1.0
LOG_S = 60.0  # between two log lines that the disk still fails
PROBE_FREE_BYTES_MIN = 1 << 20  # with less free space a disk that was full still counts as full
log = get_logger("journal")


class JournalFolder:
    """A journal's folder, locked. A segment is full when it has `segment_bytes`.

    `version`: of new segments, see segments.py.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int, version: int, calls: FileCalls = REAL_CALLS
    ) -> None:
        self.folder = folder
        self._version = version
        self._segment_bytes = segment_bytes
        self._calls = calls
        self._lock: FolderLock | None = None
        self._current: tuple[SegmentFile, AppendFile] | None = None
        self._notes: tuple[SegmentFile, int] | None = None  # of which segment, and the descriptor
        self._occasionally = Occasionally(LOG_S)

    def open(self) -> list[tuple[SegmentFile, int]]:
        """Lock the folder; return the segments of earlier processes, with their sizes in bytes.

        Raises StartError if the folder cannot be used or another service has it.
        """
        try:
            make_folder(self.folder, self._calls)
            self._lock = FolderLock.of(self.folder)
            if self._lock is None:
                raise StartError(
                    f"another service writes the journal {self.folder}: stop it, or choose another "
                    "folder with --state-dir"
                )
            found = segment_files(self.folder)
            # Notes whose segment was removed are of no use.
            for path in self.folder.glob("journal-*.done"):
                if not path.with_suffix(".log").exists():
                    with contextlib.suppress(OSError):  # harmless: each segment has its own name
                        path.unlink()
            return [(each, each.path.lstat().st_size) for each in found]
        except OSError as error:
            raise StartError(
                f"the journal folder {self.folder} cannot be used: {error.strerror}; choose "
                "another with --state-dir, or --buffer memory"
            ) from error

    def write(self, blocks: Sequence[Block]) -> GroupPlace:
        """Append the frames of the blocks and fsync them, all or none. Raises OSError.

        If after an error the contents of the file are uncertain, nothing more is written to it.
        """
        file, out = self._current or self._create(blocks[0].sequence)
        start = out.size
        parts: list[bytes] = []
        for block in blocks:
            parts.append(encode_head(block, file.salt))
            parts.append(block.tuples)
        try:
            out.append(b"".join(parts))
        except OSError:
            if out.suspect:
                self.finish()
            raise
        is_full = out.size >= self._segment_bytes
        if is_full:
            self.finish()
        return GroupPlace(file, start, out.size, is_full)

    def _create(self, first: int) -> tuple[SegmentFile, AppendFile]:
        self._keep_lock()
        salt = secrets.randbits(32)
        file = SegmentFile(self.folder / segment_name(first, salt), first, salt)
        out = AppendFile.open(file.path, create=True, calls=self._calls, unseen_s_max=UNSEEN_S_MAX)
        try:
            out.append(encode_header(first, salt, self._version))
            sync_folder(self.folder, self._calls)
        except OSError:
            out.close()
            file.path.unlink(missing_ok=True)
            raise
        self._current = (file, out)
        return self._current

    def _keep_lock(self) -> None:
        """Lock the folder at our path again if somebody has replaced it.

        Raises OSError if another service has locked it, since that service would remove our files.
        """
        if self._lock is not None and self._lock.holds():
            return
        # Set to None first, so that it is closed only once: a descriptor's number is used again.
        lost, self._lock = self._lock, None
        if lost is not None:
            lost.close()
        self._lock = FolderLock.of(self.folder)
        if self._lock is None:
            raise OSError(errno.EBUSY, "another service writes this journal", str(self.folder))

    def finish(self) -> None:
        """Write no more to the current segment. The next group begins another one."""
        if self._current is not None:
            file, out = self._current
            self._current = None
            with contextlib.suppress(OSError):  # all that was appended is on the disk already
                out.close()
            if out.size <= HEADER_BYTES:
                file.path.unlink(missing_ok=True)  # it has no block

    def probe(self, next_sequence: int) -> None:
        """Begin a new segment, to see whether the disk can be written. Raises OSError if not."""
        self.finish()
        make_folder(self.folder, self._calls)  # somebody may have removed it
        free = os.statvfs(self.folder)
        if free.f_bavail * free.f_frsize < PROBE_FREE_BYTES_MIN:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        self._create(next_sequence)

    def note(self, file: SegmentFile, ranges: Iterable[tuple[int, int]]) -> None:
        """Note which blocks are settled, without fsync.

        If a note is lost, its blocks are written to the table again, and the key absorbs them.
        """
        records = b"".join(encode_done(first, last) for first, last in ranges)
        try:
            if self._notes is None or self._notes[0] != file:
                self._close_notes()
                self._notes = (file, _open_notes(file))
            if os.write(self._notes[1], records) < len(records):
                raise OSError(errno.ENOSPC, "a note was cut short", str(file.done_path))
        except OSError as error:
            self._close_notes()
            if self._occasionally.due("note") is not None:
                log.warning("journal_note_failed", error=str(error))

    def _close_notes(self) -> None:
        notes, self._notes = self._notes, None
        if notes is not None:
            os.close(notes[1])

    def remove(self, file: SegmentFile, *, damaged: bool) -> bool:
        """Remove a segment, or rename it to *.damaged if `damaged`; return whether it is gone.

        It is also gone if somebody else has removed it.
        """
        if self._notes is not None and self._notes[0] == file:
            self._close_notes()
        try:
            with contextlib.suppress(FileNotFoundError):
                if damaged:
                    file.path.rename(file.path.with_suffix(".damaged"))
                else:
                    unlink_aside(file.path)  # in another thread: groups wait for this one
        except OSError as error:
            if self._occasionally.due("tidy") is not None:
                log.warning("journal_tidy_failed", file=file.path.name, error=str(error))
            return False
        with contextlib.suppress(OSError):  # harmless: the next start removes it
            file.done_path.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Close the files, and unlock the folder."""
        self.finish()
        self._close_notes()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class GroupPlace(NamedTuple):
    """Where a group is on the disk: its segment, the offset of its first frame, and its end."""

    file: SegmentFile
    start: int
    end: int
    is_last: bool  # of its segment, which is full now


def _open_notes(file: SegmentFile) -> int:
    """Open a segment's notes for appending, and cut off a note that is not whole."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(file.done_path, flags, 0o600)
    try:
        if torn := os.fstat(fd).st_size % DONE_BYTES:
            os.ftruncate(fd, os.fstat(fd).st_size - torn)
    except OSError:
        os.close(fd)
        raise
    return fd


class JournalIndex:
    """The segments in order, and the ranges to be read back. Recovered ranges come first.

    Spilled and recovered blocks are not in the index one by one, but as ranges of a segment. So
    fifty million of them need hardly any memory.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._firsts: list[int] = []
        self.size_bytes = 0
        self.recovered: deque[Range] = deque()
        self.spilled: deque[Range] = deque()
        self.postponed: list[Range] = []  # reading failed, and is tried again; they count
        self.loading: Range | None = None  # begun, and not read to its end
        self.rows = 0  # in all ranges; who reads some back, or loses them, counts them off
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


@dataclass(eq=False, slots=True)
class Segment:
    """One file of the journal.

    It may be removed when nothing more is written to it and all of its blocks are settled.
    """

    file: SegmentFile
    size: int  # in bytes
    sealed: bool  # nothing more is written to it
    unread: bool = False  # its blocks have not been counted yet, so it stays
    undone: int = 0  # blocks that are not settled
    damaged: bool = False  # it will be renamed instead of removed
    removing: bool = False

    @property
    def is_removable(self) -> bool:
        """Whether it may be removed, and is not being removed yet."""
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


DoneRanges = dict["Segment", list[tuple[int, int]]]  # sequences, both included
