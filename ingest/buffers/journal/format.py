"""The bytes of the journal's files. Only this file writes and reads them.

All numbers are big-endian.

A segment `journal-FIRST-SALT.log` (FIRST: the least sequence it may hold, 20 digits; SALT: 8 hex):

    header, 32 bytes   magic "IOTJRNL\\n" | version u32 | first u64 | salt u32 | zero u32
                       | crc32 u32
    frames             see buffers/frames.py

The salt of the frames is random and secret, so nobody can post readings that look like a frame.
Sequences increase in a segment, and from segment to segment. There may be gaps, for frames that
could not be written.

Beside it is `journal-FIRST-SALT.done`, with records of 20 bytes: `from u64 | to u64 | crc32 u32`.
The blocks of these sequences, both included, are settled. The file is not fsynced. A block whose
record is missing is written to the table again, and the key of the table absorbs it.

Bytes behind the last frame are a torn tail: they belong to a write that was never acknowledged.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from zlib import crc32

MAGIC = b"IOTJRNL\n"
VERSION = 1

_HEADER = struct.Struct(">8sIQII")
_CRC = struct.Struct(">I")
_DONE = struct.Struct(">QQ")
_NAME = re.compile(r"journal-([0-9]{20})-([0-9a-f]{8})\.log")
FIRST_MAX = 1 << 63  # a file with a greater number in its name is not ours

HEADER_BYTES = _HEADER.size + _CRC.size
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
