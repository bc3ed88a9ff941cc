"""Reads a journal's segments: finds them, the blocks in them that are not done, and their damage.

Works in small steps, so that other threads get the interpreter often. Changes nothing on the disk.
All functions block, and raise OSError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ingest.buffers.journal.format import (
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    HEADER_BYTES,
    Done,
    Frame,
    FrameReader,
    frame_end,
    header_fault,
    is_whole,
    parse_name,
)
from ingest.model.block import Block
from ingest.system.files import open_regular

STEP_FRAMES = 300  # in a step: it takes less than a millisecond
STEP_BYTES = 1 << 18
_FIRST_BELIEVED = 1 << 61


class SegmentFile(NamedTuple):
    """One segment: its file, the least sequence it may hold, the salt of its checksums."""

    path: Path
    first: int
    salt: int

    @property
    def done_path(self) -> Path:
        """The file of notes beside it: which blocks are done."""
        return self.path.with_suffix(".done")


def segment_files(folder: Path) -> list[SegmentFile]:
    """Return the segments of a folder, oldest first; none if there is no folder."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    parsed = ((name, parse_name(name)) for name in names)
    return [SegmentFile(folder / name, *found) for name, found in parsed if found is not None]


def is_believed(file: SegmentFile) -> bool:
    """Whether the sequence in a file's name can be true, so that new sequences begin above it.

    Sequences begin at the time in microseconds, and no process gives 2^61 of them. So a name with a
    greater number is believed only if the file's header says the same.
    """
    if file.first < _FIRST_BELIEVED:
        return True
    try:
        with open_regular(file.path) as opened:
            return not header_fault(opened.read(HEADER_BYTES), file.first, file.salt)
    except OSError:
        return False


def read_done(file: SegmentFile) -> Done:
    """Return which blocks of a segment are noted as done; none if the notes cannot be read."""
    try:
        with open_regular(file.done_path) as notes:
            return Done(notes.read())
    except OSError:
        return Done()


class SegmentReader:
    """Reads the frames of one segment that are not done, from `start` to `end` (offsets).

    With a `start` of 0 it begins after the header. `at` is the end of the last frame that was read.
    For one thread at a time.
    """

    def __init__(self, file: SegmentFile, start: int, end: int, done: Done | None = None) -> None:
        self.file = file
        self.at = start or HEADER_BYTES
        self._fd = -1
        self._done = done
        self._reader = FrameReader(self._read_at, file.salt, self.at, end)
        self._frames: Iterator[Frame] = iter(self._reader)
        self._failed: OSError | None = None

    def _read_at(self, count: int, offset: int) -> bytes:
        if self._fd < 0:
            with open_regular(self.file.path) as opened:
                self._fd = os.dup(opened.fileno())
        return os.pread(self._fd, count, offset)

    def read(self, rows_max: int, bytes_max: int) -> list[Block] | None:
        """Return the next blocks, an empty list if all frames read are done; None at the end.

        It stops at the block that reaches `rows_max` rows or `bytes_max` bytes. If reading fails
        after some blocks, they are returned, and the next call raises the error.
        """
        if self._failed is not None:
            raise self._failed
        blocks: list[Block] = []
        rows = size = 0
        try:
            for looked, frame in enumerate(self._frames, 1):
                size += len(frame.tuples)
                self.at = frame.end
                if self._done is None or frame.sequence not in self._done:
                    rows += frame.rows
                    blocks.append(_block(frame))
                if rows >= rows_max or size >= bytes_max or looked >= STEP_FRAMES:
                    return blocks
        except OSError as error:
            if not blocks:
                raise
            self._failed = error
        return blocks or None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _block(frame: Frame) -> Block:
    block = Block(
        frame.tuples,
        frame.rows,
        received_s=0.0,  # the monotonic clock of another process means nothing here
        received_us=frame.received_us,
        newest_ts_us=frame.newest_ts_us,
    )
    block.sequence = frame.sequence
    block.reloaded = True
    return block


class SegmentScan:
    """Counts what a segment of an earlier process holds. Call `step` until it returns False.

    Then `blocks` and `rows` are what is not done; the first such block was received at `oldest_us`
    (0 if there is none). The last good frame ends at `end`, and `tail_bytes` follow it. `gaps` is
    how often there was damage between two frames, `fault` what is wrong with the header. `torn`:
    the tail is a frame that was not finished, or zeros. A frame that is whole and wrong is damage.
    """

    def __init__(self, file: SegmentFile, size_bytes: int) -> None:
        self.file = file
        self.blocks = self.rows = 0
        self.oldest_us = 0
        self.end = min(size_bytes, HEADER_BYTES)
        self.tail_bytes = 0
        self.torn = False
        self.gaps = 0
        self.fault = ""
        self.done = Done()
        self._size = size_bytes
        self._begun = False
        self._fd = -1
        self._reader = FrameReader(self._read_at, file.salt, HEADER_BYTES, size_bytes)
        self._frames: Iterator[Frame] = iter(self._reader)

    def _read_at(self, count: int, offset: int) -> bytes:
        return os.pread(self._fd, count, offset)

    def step(self) -> bool:
        """Look at some frames; return whether there may be more."""
        if not self._begun:
            self._begun = True
            with open_regular(self.file.path) as opened:
                self._fd = os.dup(opened.fileno())
            header = os.pread(self._fd, HEADER_BYTES, 0)
            self.fault = header_fault(header, self.file.first, self.file.salt)
            if self.fault.startswith("version"):
                return False
            self.done = read_done(self.file)
        size = 0
        for looked, frame in enumerate(self._frames, 1):
            self.end = frame.end
            if frame.sequence not in self.done:
                self.blocks += 1
                self.rows += frame.rows
                self.oldest_us = self.oldest_us or frame.received_us
            size += frame.end - frame.start
            if looked >= STEP_FRAMES or size >= STEP_BYTES:
                return True
        self.gaps = len(self._reader.gaps)
        self.tail_bytes = self._size - self.end
        self.torn = bool(self.tail_bytes) and self._is_torn()
        return False

    def _is_torn(self) -> bool:
        """Whether the tail is what an unfinished write leaves."""
        head = os.pread(self._fd, HEAD_BYTES, self.end)
        if head.count(0) == len(head):
            return True
        if frame_end(head, self.end) <= self._size or self.tail_bytes > FRAME_BYTES_MAX:
            return False
        # The frame may be whole, and only its length altered. Then the block may have been
        # acknowledged, and that is damage.
        return not is_whole(os.pread(self._fd, self.tail_bytes, self.end), self.file.salt)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
