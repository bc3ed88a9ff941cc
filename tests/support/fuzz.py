"""Rules that must hold for all bytes; test_fuzz.py gives them random ones, and valid ones altered.

Those of the formats are in tests/unit/formats (test_any_*.py), and `./run fuzz`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

from ingest.buffers.frames import FrameReader, encode_head
from ingest.buffers.journal.segments import Done, encode_done, header_fault
from ingest.dead_letters.format import BadLine, decode_line, encode_line
from ingest.dead_letters.identity import letter_id
from ingest.http.bodies import GZIP, inflated
from ingest.model.block import Block
from ingest.model.errors import Refused
from tests.support.journals import SALT, make_block, segment_bytes
from tests.support.letters import START_US, drained, invalid
from tests.support.posts import GOOD

INFLATED_MAX = 4_096


def fuzz_gunzip(data: bytes) -> str:
    """The result is that of the standard library, whole and within the limit."""
    try:
        whole = inflated(data, GZIP, INFLATED_MAX)
    except Refused as refused:
        code = refused.code
    else:
        assert whole == gzip.decompress(data)
        assert len(whole) <= INFLATED_MAX
        code = "whole"
    assert code in ("whole", "bad_encoding", "inflated_too_large")
    assert _is_whole(data) == (code == "whole")
    return code


def _is_whole(data: bytes) -> bool:
    """Whether `data` is whole gzip members of at most INFLATED_MAX in all, by other code."""
    size, rest = 0, data
    while True:
        member = zlib.decompressobj(wbits=31)
        try:
            for at in range(0, len(rest), 7):
                size += len(member.decompress(rest[at : at + 7]))
                if size > INFLATED_MAX:
                    return False
                if member.eof:
                    rest = member.unused_data + rest[at + 7 :]
                    break
        except zlib.error:
            return False
        if not member.eof:
            return False
        if not rest.strip(b"\0"):  # some programs fill up with zeros
            return True


def fuzz_journal(data: bytes) -> str:
    """Frames, gaps and tail cover all bytes in order; only written frames have a right CRC."""
    header_fault(data[:32], 1, SALT)

    def read_at(count: int, offset: int) -> bytes:
        return data[offset : offset + count]

    reader = FrameReader(read_at, SALT, 0, len(data), chunk_bytes=64)
    covered = []
    for frame in reader:
        block = Block(
            frame.tuples,
            frame.rows,
            received_s=0,
            received_us=frame.received_us,
            newest_ts_us=frame.newest_ts_us,
        )
        block.sequence = frame.sequence
        assert encode_head(block, SALT) + block.tuples == data[frame.start : frame.end]
        covered.append((frame.start, frame.end))
    frames = len(covered)
    sequences = [each.sequence for each in FrameReader(read_at, SALT, 0, len(data))]
    assert sequences == sorted(set(sequences))
    assert len(sequences) == frames, "the size of a window changes nothing"
    covered += reader.gaps
    if reader.tail is not None:
        covered.append((reader.tail, len(data)))
    covered.sort()
    ends = [0, *(end for _, end in covered)]
    assert [start for start, _ in covered] == ends[:-1]
    assert ends[-1] == len(data)
    Done(data)
    return f"{min(frames, 3)} frames"


def fuzz_letters(data: bytes) -> str:
    """A line is read as a letter only if it is the line of that letter, byte by byte."""
    try:
        id_, failed_us, letter = decode_line(data)
    except BadLine:
        return "refused"
    assert encode_line(letter, id_=id_, failed_us=failed_us) == data
    return "letter"


def seeds() -> dict[str, list[bytes]]:
    """Return valid inputs of each target: the same each time, except their readings."""
    letters = [*drained(2), invalid(b'{"ts":1}'), invalid(b"\xff\0")]
    blocks = [make_block(rows) for rows in (1, 3, 2)]
    for sequence, block in enumerate(blocks, 1):
        block.sequence = sequence
    return {
        "gunzip": [
            gzip.compress(each, mtime=0) for each in (b"", GOOD, bytes(INFLATED_MAX), GOOD * 20)
        ],
        "journal": [segment_bytes(blocks), segment_bytes([]), encode_done(1, 2) * 2],
        "letters": [encode_line(each, id_=letter_id(each), failed_us=START_US) for each in letters],
    }


TARGETS: dict[str, Callable[[bytes], str]] = {
    "gunzip": fuzz_gunzip,
    "journal": fuzz_journal,
    "letters": fuzz_letters,
}
