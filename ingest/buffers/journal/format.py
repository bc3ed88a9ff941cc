"""The bytes of the journal's files. Only this file writes and reads them.

All numbers are big-endian.

A segment `journal-FIRST-SALT.log` (FIRST: the least sequence it may hold, 20 digits; SALT: 8 hex):

    header, 32 bytes   magic "IOTJRNL\\n" | version u32 | first u64 | salt u32 | zero u32
                       | crc32 u32
    frame, 44 + n      mark f7 4a 52 0a | crc32 u32 | length u32 (= n) | sequence u64 | rows u32
                       | received_us i64 | newest_ts_us i64 | posts u32 | tuples, n bytes

`posts` is how many posts share the frame. For one post it is 0, as earlier versions wrote.
`received_us` is the time of the first of them.

The CRC of a frame is computed over all bytes that follow it, with the salt as its start value. A
salt is random and secret, so nobody can post readings that look like a frame. After damage the
reader searches for the next mark with a right CRC and a greater sequence, and goes on there.
Sequences increase in a segment, and from segment to segment. There may be gaps, for frames that
could not be written. `tuples` are the rows of model/rows.py.

Beside it is `journal-FIRST-SALT.done`, with records of 20 bytes: `from u64 | to u64 | crc32 u32`.
The blocks of these sequences, both included, are settled. The file is not fsynced. A block whose
record is missing is written to the table again, and the key of the table absorbs it.

Bytes behind the last frame are a torn tail: they belong to a write that was never acknowledged.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import crc32

from ingest.model.block import Block

MAGIC = b"IOTJRNL\n"
VERSION = 1
MARK = b"\xf7JR\n"
FRAME_BYTES_MAX = 1 << 27  # more is damage: a post has at most 100,000 rows of 546 bytes

_HEADER = struct.Struct(">8sIQII")
_CRC = struct.Struct(">I")
_HEAD = struct.Struct(">IQIqqI")  # of a frame, without mark and CRC
_DONE = struct.Struct(">QQ")
_NAME = re.compile(r"journal-([0-9]{20})-([0-9a-f]{8})\.log")
FIRST_MAX = 1 << 63  # a file with a greater number in its name is not ours

_pack_head, _pack_crc = _HEAD.pack, _CRC.pack  # for the hot path

HEADER_BYTES = _HEADER.size + _CRC.size
HEAD_BYTES = len(MARK) + _CRC.size + _HEAD.size
DONE_BYTES = _DONE.size + _CRC.size


def segment_name(first: int, salt: int) -> str:
    """Return the name of a segment's file."""
    return f"journal-{first:020}-{salt:08x}.log"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return (first, salt) of a segment's name, or None if it is not one."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) >= FIRST_MAX:
        return None
    return int(match[1]), int(match[2], 16)


def encode_header(first: int, salt: int) -> bytes:
    """Return the header of a new segment."""
    return _with_crc(_HEADER.pack(MAGIC, VERSION, first, salt, 0))


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(crc32(data))


def header_fault(header: bytes, first: int, salt: int) -> str:
    """Return what is wrong with a header, or an empty string."""
    if header == encode_header(first, salt):
        return ""
    if len(header) < HEADER_BYTES:
        return "cut off"
    magic, version, *_ = _HEADER.unpack_from(header)
    has_right_crc = header[:HEADER_BYTES] == _with_crc(header[: _HEADER.size])
    if magic == MAGIC and version != VERSION and has_right_crc:
        return f"version {version}"
    return "altered"


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


def is_whole(data: bytes, salt: int) -> bool:
    """Whether `data` is a whole frame. Its length field is not used."""
    if len(data) < HEAD_BYTES:
        return False
    crc: int = _CRC.unpack_from(data, len(MARK))[0]
    head = _CRC.pack(len(data) - HEAD_BYTES) + data[len(MARK) + 2 * _CRC.size : HEAD_BYTES]
    return crc32(data[HEAD_BYTES:], crc32(head, salt)) == crc


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
        if self._data[start : start + len(MARK)] != MARK:
            return None
        (crc,) = _CRC.unpack_from(self._data, start + len(MARK))
        size, sequence, rows, received_us, newest_ts_us, posts = _HEAD.unpack_from(
            self._data, start + len(MARK) + _CRC.size
        )
        if size > FRAME_BYTES_MAX or sequence <= self._last:
            return None
        if not self._has(at, HEAD_BYTES + size):
            return None
        start = at - self._base
        tuples = self._data[start + HEAD_BYTES : start + HEAD_BYTES + size]
        head = self._data[start + len(MARK) + _CRC.size : start + HEAD_BYTES]
        if crc32(tuples, crc32(head, self._salt)) != crc:
            return None
        end = at + HEAD_BYTES + size
        return Frame(at, end, sequence, rows, received_us, newest_ts_us, max(1, posts), tuples)

    def _next_mark(self, at: int) -> int:
        """Return the offset of the next mark at or after `at`, or the end."""
        while self._has(at, len(MARK)):
            found = self._data.find(MARK, at - self._base)
            if found >= 0:
                return self._base + found
            at = self._base + len(self._data) - len(MARK) + 1
        return self._end


def encode_done(first: int, last: int) -> bytes:
    """Return the record that the blocks `first` to `last` are settled."""
    return _with_crc(_DONE.pack(first, last))


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
