"""Frames: a block as bytes, in the files of the journal and in the messages of the stream.

All numbers are big-endian.

    frame, 44 + n      mark f7 4a 52 0a | crc32 u32 | length u32 (= n) | sequence u64 | rows u32
                       | received_us i64 | newest_ts_us i64 | posts u32 | tuples, n bytes

`posts` is how many posts share the frame. For one post it is 0, as earlier versions wrote.
`received_us` is the time of the first of them. `tuples` are the rows of model/block.py, or of
declared tables too: model/moments.py. `rows` is the number of readings.

The CRC of a frame is computed over all bytes that follow it, with a salt as its start value. After
damage the reader searches for the next mark with a right CRC and a greater sequence, and goes on
there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import crc32

from ingest.model.block import Block

MARK = b"\xf7JR\n"
# More is damage: a post has at most 100,000 readings, and each may be a row of a declared table, in
# a section of its own. That are 1,454 bytes with 100 columns, and a head of some 7,000.
FRAME_BYTES_MAX = 1 << 30

_CRC = struct.Struct(">I")
_HEAD = struct.Struct(">IQIqqI")  # of a frame, without mark and CRC

_pack_head, _pack_crc = _HEAD.pack, _CRC.pack  # for the hot path

HEAD_BYTES = len(MARK) + _CRC.size + _HEAD.size


def encode_head(block: Block, salt: int) -> bytes:
    """Return a block's frame without its tuples."""
    tuples = block.tuples
    posts = block.posts if block.posts > 1 else 0
    head = _pack_head(
        len(tuples), block.sequence, block.rows, block.received_us, block.newest_ts_us, posts
    )
    return MARK + _pack_crc(crc32(tuples, crc32(head, salt))) + head


def frame_end(head: bytes, start: int) -> int:
    """Return where a frame that begins with `head` ends; `start` if that cannot be known."""
    if not head.startswith(MARK[: len(head)]):
        return start
    if len(head) < HEAD_BYTES:
        return start + HEAD_BYTES
    (size,) = _CRC.unpack_from(head, len(MARK) + _CRC.size)
    return start + HEAD_BYTES + int(size)


class Frame(NamedTuple):
    """One frame as it was read, and where it is in the file."""

    start: int
    end: int
    sequence: int
    rows: int
    received_us: int
    newest_ts_us: int
    posts: int
    tuples: bytes


def frame_of(data: bytes, salt: int, start: int = 0) -> Frame | None:
    """Return the frame if `data` is exactly one whole frame, else None. It begins at `start`."""
    if len(data) < HEAD_BYTES or not data.startswith(MARK):
        return None
    (crc,) = _CRC.unpack_from(data, len(MARK))
    if crc32(memoryview(data)[len(MARK) + _CRC.size :], salt) != crc:
        return None
    head = _HEAD.unpack_from(data, len(MARK) + _CRC.size)
    size, sequence, rows, received_us, newest_ts_us, posts = head
    if size != len(data) - HEAD_BYTES:
        return None
    tuples, end = data[HEAD_BYTES:], start + len(data)
    return Frame(start, end, sequence, rows, received_us, newest_ts_us, max(1, posts), tuples)


def is_whole(data: bytes, salt: int) -> bool:
    """Whether `data` is a whole frame. Its length field is not used."""
    at = len(MARK) + _CRC.size
    length = _CRC.pack(max(0, len(data) - HEAD_BYTES))
    return frame_of(data[:at] + length + data[at + len(length) :], salt) is not None


ReadAt = Callable[[int, int], bytes]  # (count, offset); fewer bytes at the end, or before an error


class FrameReader:
    """Reads the frames of [start, end) in order, and skips damage. Iterate it once.

    After that, `gaps` are the damaged parts between good frames. `tail` is the end of the last good
    frame if other bytes follow it, else None.
    """

    def __init__(
        self, read_at: ReadAt, salt: int, start: int, end: int, *, chunk_bytes: int = 1 << 18
    ) -> None:
        self.gaps: list[tuple[int, int]] = []
        self.tail: int | None = None
        self._read_at = read_at
        self._salt = salt
        self._end = end
        self._chunk_bytes = chunk_bytes
        self._base = start  # where _data begins in the file
        self._data = b""
        self._last = 0  # sequence

    def __iter__(self) -> Iterator[Frame]:
        at = lost_at = self._base
        while self._has(at, HEAD_BYTES):
            frame = self._frame(at)
            if frame is None:
                at = self._next_mark(at + 1)
                continue
            if lost_at != at:
                self.gaps.append((lost_at, at))
            self._last = frame.sequence
            at = lost_at = frame.end
            yield frame
        self.tail = lost_at if lost_at < self._end else None

    def _has(self, at: int, count: int) -> bool:
        """Whether the file has `count` bytes from `at` on. If so, they are in _data."""
        if at + count > self._end:
            return False
        if at + count > self._base + len(self._data):
            wanted = min(max(count, self._chunk_bytes), self._end - at)
            data = self._read_at(wanted, at)
            # The kernel returns the good bytes before a bad sector, and fails only when it is asked
            # for the next one.
            while len(data) < count and (more := self._read_at(count - len(data), at + len(data))):
                data += more
            self._base, self._data = at, data
        return at + count <= self._base + len(self._data)

    def _frame(self, at: int) -> Frame | None:
        """Return the frame at `at`, or None if there is none. Its head must be in _data."""
        start = at - self._base
        size = frame_end(self._data[start : start + HEAD_BYTES], 0)
        if not 0 < size <= HEAD_BYTES + FRAME_BYTES_MAX or not self._has(at, size):
            return None
        start = at - self._base
        frame = frame_of(self._data[start : start + size], self._salt, at)
        return frame if frame is not None and frame.sequence > self._last else None

    def _next_mark(self, at: int) -> int:
        """Return the offset of the next mark at or after `at`, or the end."""
        while self._has(at, len(MARK)):
            found = self._data.find(MARK, at - self._base)
            if found >= 0:
                return self._base + found
            at = self._base + len(self._data) - len(MARK) + 1
        return self._end
