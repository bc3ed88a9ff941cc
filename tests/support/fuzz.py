"""Targets of fuzzing: a rule that must hold for all bytes; and a command that searches for long.

`python -m tests.support.fuzz gunzip --seconds 60` lets atheris search inputs by the code that they
reach. atheris is not among the tests' packages: install it by hand. tests/unit/support/test_fuzz.py
gives the same targets to Hypothesis: random bytes, and valid ones with bytes altered.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import math
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ingest.buffers.frames import FrameReader, encode_head
from ingest.buffers.journal.format import Done, encode_done, header_fault
from ingest.dead_letters.format import BadLine, decode_line, encode_line
from ingest.dead_letters.identity import letter_id
from ingest.formats.line_series import Naming
from ingest.http.inflate import GZIP, inflated
from ingest.model.block import Block
from ingest.model.errors import Refused
from ingest.model.reading import name_fault
from ingest.model.rows import decode_rows
from tests.support.blocks import make_block
from tests.support.journals import SALT, segment_bytes
from tests.support.letters import START_US, drained, invalid
from tests.support.lines import cut_small, expected_of, points_of, told_of
from tests.support.posts import GOOD, array, decoded

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
        if not rest:
            return True


def fuzz_decode(data: bytes) -> str:
    """Refused, or every reading of the block keeps the rules and every error has its bytes."""
    try:
        found = decoded(data)
    except Refused as refused:
        return refused.code
    assert found.block or found.errors
    assert all(error.original in data for error in found.errors)
    if found.block is None:
        return "errors"
    readings = list(decode_rows(found.block.tuples))
    assert len(readings) == found.block.rows
    for reading in readings:
        assert name_fault(reading.device_id) is name_fault(reading.metric) is None
        assert math.isfinite(reading.value)
        assert math.copysign(1, reading.value) == 1 or reading.value != 0
    assert found.block.newest_ts_us == max(each.ts_us for each in readings)
    return "readings"


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


def fuzz_lines(data: bytes) -> str:
    """Line protocol is read as an oracle reads it that shares no code; also in small slices."""
    naming = Naming(("device_id", "host"))
    expected = expected_of(data, naming, None)
    assert told_of(points_of(data, naming)) == expected
    with cut_small(20):
        assert told_of(points_of(data, naming)) == expected
    if isinstance(expected, str):
        return expected
    return "readings" if expected.readings else "errors" if expected.errors else "texts"


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
        "decode": [GOOD, array(GOOD, GOOD), array(GOOD, b'{"device_id":"d","values":{"a":1}}')],
        "journal": [segment_bytes(blocks), segment_bytes([]), encode_done(1, 2) * 2],
        "lines": [
            b"m,host=h value=1\nm,host=h,t=x a=1.5,b=2i 1795600000",
            b'm\\ x,device_id=d,host=h s="a\\"b\nc",v=t 1795600000000000000\r\n# c\n\n',
            b"m value=1\nm,host=h a=nan,b=1",
            b'm,host=h s="text"',
        ],
        "letters": [encode_line(each, id_=letter_id(each), failed_us=START_US) for each in letters],
    }


TARGETS: dict[str, Callable[[bytes], str]] = {
    "gunzip": fuzz_gunzip,
    "decode": fuzz_decode,
    "journal": fuzz_journal,
    "lines": fuzz_lines,
    "letters": fuzz_letters,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Search with atheris, which ends the process; 2 if it is not installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long to search (60)")
    parser.add_argument("--corpus", type=Path, help="folder of inputs, added to; else thrown away")
    chosen = parser.parse_args(arguments)
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("atheris is not installed: pip install atheris\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        corpus = chosen.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()[chosen.target]):
            (corpus / f"seed-{number}").write_bytes(seed)
        atheris.instrument_all()
        words = [sys.argv[0], str(corpus), f"-max_total_time={chosen.seconds}", "-max_len=8192"]
        atheris.Setup(words, TARGETS[chosen.target])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
