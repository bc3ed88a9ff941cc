"""The segments of a journal: the bytes in them, and how they are read, with their damage.

All numbers are big-endian.

A segment `journal-FIRST-SALT.log` (FIRST: the least sequence it may hold, 20 digits; SALT: 8 hex):

    header, 32 bytes   magic "IOTJRNL\n" | version u32 | first u64 | salt u32 | zero u32
                       | crc32 u32
    frames             see buffers/frames.py

The version is 2 if its frames may have rows of declared tables (model/moments.py), else 1. Earlier
versions of the service know 1 only. They leave another one unread on the disk, and say so.

The salt of the frames is random and secret, so nobody can post readings that look like a frame.
Sequences increase in a segment, and from segment to segment. There may be gaps, for frames that
could not be written.

Beside it is `journal-FIRST-SALT.done`, with records of 20 bytes: `from u64 | to u64 | crc32 u32`.
The blocks of these sequences, both included, are settled. The file is not fsynced. A block whose
record is missing is written to the table again, and the key of the table absorbs it.

Bytes behind the last frame are a torn tail: they belong to a write that was never acknowledged.

Reading works in small steps, so that other threads get the interpreter often. It blocks, and raises
OSError.
Does not: change anything on the disk.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from ingest.buffers.frames import (
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    Frame,
    FrameReader,
    frame_end,
    is_whole,
)
from ingest.model.block import Block
from ingest.system.files import open_regular

MAGIC = b"IOTJRNL\n"
VERSIONS = PLAIN, WITH_TABLES = 1, 2
FIRST_MAX = 1 << 63  # a file with a greater number in its name is not ours
_FIRST_PLAUSIBLE = 1 << 61

STEP_FRAMES = 300  # in one step, which takes less than a millisecond
STEP_BYTES = 1 << 18
_HEADER = struct.Struct(">8sIQII")
_CRC = struct.Struct(">I")
_DONE = struct.Struct(">QQ")
_NAME = re.compile(r"journal-([0-9]{20})-([0-9a-f]{8})\.log")
HEADER_BYTES = _HEADER.size + _CRC.size
DONE_BYTES = _DONE.size + _CRC.size


class SegmentFile(NamedTuple):
    """One segment: its file, the least sequence that it may have, the salt of its checksums."""

    path: Path
    first: int
    salt: int

    @property
    def done_path(self) -> Path:
        """The file beside it that notes which blocks are settled."""
        return self.path.with_suffix(".done")


def segment_files(folder: Path) -> list[SegmentFile]:
    """Return the segments of a folder, oldest first; an empty list if there is no folder."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    parsed = ((name, parse_name(name)) for name in names)
    return [SegmentFile(folder / name, *found) for name, found in parsed if found is not None]


def is_plausible(file: SegmentFile) -> bool:
    """Whether the sequence in a file's name can be right. New sequences begin above it.

    Sequences begin at the time in microseconds, and no process uses 2^61 of them. So a name with a
    greater number needs a header with the same number.
    """
    if file.first < _FIRST_PLAUSIBLE:
        return True
    try:
        with open_regular(file.path) as opened:
            return not header_fault(opened.read(HEADER_BYTES), file.first, file.salt)
    except OSError:
        return False


def scans(folder: Path) -> Iterator[SegmentScan]:
    """Yield what each segment of a journal has, read to its end. Nobody may write to them now."""
    for file in filter(is_plausible, segment_files(folder)):
        scan = SegmentScan(file, file.path.lstat().st_size)
        try:
            while scan.step():
                pass
        finally:
            scan.close()
        yield scan


def has_blocks(folder: Path) -> bool:
    """Whether a journal that nobody uses has blocks that are not settled, or that are damaged."""
    return any(
        scan.blocks or scan.fault or scan.gaps or (scan.tail_bytes and not scan.torn)
        for scan in scans(folder)
    )


class _OpenSegment:
    """The frames of one segment from `start` to `end` (offsets). The first read opens the file."""

    def __init__(self, file: SegmentFile, start: int, end: int) -> None:
        self.file = file
        self._fd = -1
        self._reader = FrameReader(self._read_at, file.salt, start, end)
        self._frames: Iterator[Frame] = iter(self._reader)

    def _read_at(self, count: int, offset: int) -> bytes:
        if self._fd < 0:
            with open_regular(self.file.path) as opened:
                self._fd = os.dup(opened.fileno())
        return os.pread(self._fd, count, offset)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SegmentReader(_OpenSegment):
    """Reads the blocks of a segment that are not `done`. For one thread at a time.

    `at` is the end of the last frame that was read.
    """

    def __init__(self, file: SegmentFile, start: int, end: int, done: Done | None = None) -> None:
        super().__init__(file, start, end)
        self.at = start
        self._done = done
        self._failed: OSError | None = None

    def read(self, rows_max: int, bytes_max: int) -> list[Block] | None:
        """Return the next blocks; None at the end. The list is empty if all frames read are done.

        It stops at the block that reaches `rows_max` rows or `bytes_max` bytes. If reading fails
        after some blocks, it returns these, and the next call raises the error.
        """
        if self._failed is not None:
            raise self._failed
        blocks: list[Block] = []
        rows = size = 0
        try:
            for frames, frame in enumerate(self._frames, 1):
                size += len(frame.tuples)
                self.at = frame.end
                if self._done is None or frame.sequence not in self._done:
                    rows += frame.rows
                    blocks.append(_block(frame))
                if rows >= rows_max or size >= bytes_max or frames >= STEP_FRAMES:
                    return blocks
        except OSError as error:
            if not blocks:
                raise
            self._failed = error
        return blocks or None


def _block(frame: Frame) -> Block:
    block = Block(
        frame.tuples,
        frame.rows,
        received_s=0.0,  # unknown: the file has the time of the wall clock only
        received_us=frame.received_us,
        newest_ts_us=frame.newest_ts_us,
    )
    block.sequence = frame.sequence
    block.posts = frame.posts
    block.reloaded = True
    return block


class SegmentScan(_OpenSegment):
    """Counts the blocks of a segment of an earlier process. Call `step` until it returns False."""

    def __init__(self, file: SegmentFile, size_bytes: int) -> None:
        super().__init__(file, HEADER_BYTES, size_bytes)
        self.blocks = self.rows = 0  # that are not done
        self.oldest_us = 0  # when the first of them was received; 0 if there is none
        self.newest_ts_us = -(1 << 63)  # the latest `ts` of their rows
        self.end = min(size_bytes, HEADER_BYTES)  # of the last good frame
        self.tail_bytes = 0  # behind it
        self.torn = False  # the tail is what an unfinished write leaves
        self.gaps = 0  # how often there was damage between two frames
        self.fault = ""  # of the header
        self.done = Done()
        self._size = size_bytes

    def step(self) -> bool:
        """Read some frames; return whether there may be more."""
        if self._fd < 0:
            header = self._read_at(HEADER_BYTES, 0)
            self.fault = header_fault(header, self.file.first, self.file.salt)
            if self.fault.startswith("version"):
                return False
            self.done = read_done(self.file)
        size = 0
        for frames, frame in enumerate(self._frames, 1):
            self.end = frame.end
            if frame.sequence not in self.done:
                self.blocks += 1
                self.rows += frame.rows
                self.oldest_us = self.oldest_us or frame.received_us
                self.newest_ts_us = max(self.newest_ts_us, frame.newest_ts_us)
            size += frame.end - frame.start
            if frames >= STEP_FRAMES or size >= STEP_BYTES:
                return True
        self.gaps = len(self._reader.gaps)
        self.tail_bytes = self._size - self.end
        self.torn = bool(self.tail_bytes) and self._is_torn()
        return False

    def _is_torn(self) -> bool:
        """Whether the tail is what an unfinished write leaves: a part of a frame, or zeros.

        A frame that is whole and wrong is damage.
        """
        head = self._read_at(HEAD_BYTES, self.end)
        if head.count(0) == len(head):
            return True
        if frame_end(head, self.end) <= self._size or self.tail_bytes > FRAME_BYTES_MAX:
            return False
        # The frame may be whole, and only its length altered. Then the block may have been
        # acknowledged, and that is damage.
        return not is_whole(self._read_at(self.tail_bytes, self.end), self.file.salt)


class Done:
    """The sequences of settled blocks."""

    def __init__(self, records: bytes = b"") -> None:
        found = sorted(
            _DONE.unpack_from(records, at)
            for at in range(0, len(records) - DONE_BYTES + 1, DONE_BYTES)
            if records[at : at + DONE_BYTES] == _with_crc(records[at : at + _DONE.size])
        )
        self._firsts: list[int] = []  # of ranges without overlap, in order
        self._lasts: list[int] = []
        for first, last in found:
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(last, self._lasts[-1])
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __contains__(self, sequence: int) -> bool:
        at = bisect_right(self._firsts, sequence)
        return at > 0 and sequence <= self._lasts[at - 1]


def read_done(file: SegmentFile) -> Done:
    """Return which blocks of a segment are noted as settled; none if notes cannot be read."""
    try:
        with open_regular(file.done_path) as notes:
            return Done(notes.read())
    except OSError:
        return Done()


def encode_done(first: int, last: int) -> bytes:
    """Return the record that the blocks `first` to `last` are settled."""
    return _with_crc(_DONE.pack(first, last))


def segment_name(first: int, salt: int) -> str:
    """Return the name of a segment's file."""
    return f"journal-{first:020}-{salt:08x}.log"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return (first, salt) of a segment's name, or None if it is not one."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) >= FIRST_MAX:
        return None
    return int(match[1]), int(match[2], 16)


def encode_header(first: int, salt: int, version: int) -> bytes:
    """Return the header of a new segment."""
    return _with_crc(_HEADER.pack(MAGIC, version, first, salt, 0))


def header_fault(header: bytes, first: int, salt: int) -> str:
    """Return what is wrong with a header, or an empty string."""
    if header in [encode_header(first, salt, version) for version in VERSIONS]:
        return ""
    if len(header) < HEADER_BYTES:
        return "cut off"
    magic, version, *_ = _HEADER.unpack_from(header)
    has_right_crc = header[:HEADER_BYTES] == _with_crc(header[: _HEADER.size])
    if magic == MAGIC and version not in VERSIONS and has_right_crc:
        return f"version {version}"
    return "altered"


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(crc32(data))
