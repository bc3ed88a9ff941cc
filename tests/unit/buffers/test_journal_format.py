"""The bytes of the journal: what was written is read, and nothing else, in any file."""

from __future__ import annotations

import random
import struct
from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.buffers.frames import HEAD_BYTES, MARK, encode_head
from ingest.buffers.journal.segments import (
    DONE_BYTES,
    HEADER_BYTES,
    PLAIN,
    WITH_TABLES,
    Done,
    encode_done,
    encode_header,
    header_fault,
    parse_name,
    segment_name,
)
from ingest.model.block import Block
from tests.support.journals import SALT, numbered, reader_of, segment_bytes

BLOCKS = numbered(1, 3, 1, 2)
BLOCKS[1].posts = 3
WHOLE = segment_bytes(BLOCKS)
ENDS = [HEADER_BYTES]
for _block in BLOCKS:
    ENDS.append(ENDS[-1] + HEAD_BYTES + len(_block.tuples))


def test_what_was_written_is_read_again() -> None:
    """A frame has all fields of its block. Frames come in order, with their offsets."""
    frames = list(reader_of(WHOLE))
    assert [(each.start, each.end) for each in frames] == list(pairwise(ENDS))
    for frame, block in zip(frames, BLOCKS, strict=True):
        assert (frame.sequence, frame.rows, frame.tuples) == (
            block.sequence,
            block.rows,
            block.tuples,
        )
        assert (frame.received_us, frame.newest_ts_us) == (block.received_us, block.newest_ts_us)
        assert frame.posts == block.posts


def as_an_earlier_version_wrote(block: Block) -> bytes:
    """Return a frame whose last field is zero, as it was while each post had its own frame."""
    head = struct.pack(
        ">IQIqqI", len(block.tuples), block.sequence, block.rows, block.received_us,
        block.newest_ts_us, 0,
    )  # fmt: skip
    return MARK + struct.pack(">I", crc32(head + block.tuples, SALT)) + head + block.tuples


def as_an_earlier_version_reads(frame: bytes) -> tuple[int, ...]:
    """Return sequence, rows and times of a whole frame; the last field was not looked at."""
    assert frame[:4] == MARK
    assert struct.unpack_from(">I", frame, 4) == (crc32(frame[8:], SALT),)
    size, *fields, _ = struct.unpack_from(">IQIqqI", frame, 8)
    assert size == len(frame) - HEAD_BYTES
    return tuple(fields)


def test_frame_of_one_post_is_what_earlier_versions_wrote() -> None:
    """Byte for byte. Whether the field says 0 or 1, the frame is of one post."""
    (block,) = numbered(2)
    frame = encode_head(block, SALT) + block.tuples
    assert frame == as_an_earlier_version_wrote(block)
    for posts in (0, 1):
        head = frame[8 : HEAD_BYTES - 4] + struct.pack(">I", posts)
        crc = struct.pack(">I", crc32(head + block.tuples, SALT))
        data = encode_header(1, SALT, PLAIN) + MARK + crc + head + block.tuples
        assert [each.posts for each in reader_of(data)] == [1]


@pytest.mark.parametrize("posts", [2, 300])
def test_frame_of_several_posts_is_read_by_earlier_versions_too(posts: int) -> None:
    """For them it is one large post: all rows are there. So the version stays the same."""
    (block,) = numbered(300)
    block.posts = posts
    frame = encode_head(block, SALT) + block.tuples
    fields = (block.sequence, block.rows, block.received_us, block.newest_ts_us)
    assert as_an_earlier_version_reads(frame) == fields
    assert frame[8 : HEAD_BYTES - 4] == as_an_earlier_version_wrote(block)[8 : HEAD_BYTES - 4]
    assert [each.posts for each in reader_of(encode_header(1, SALT, PLAIN) + frame)] == [posts]
    assert encode_header(1, SALT, PLAIN)[8:12] == b"\0\0\0\1"


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    st.integers(0, 2**32 - 1),
    st.integers(1, 700),
)
def test_any_bytes_come_back_through_any_window(
    contents: list[bytes], salt: int, chunk_bytes: int
) -> None:
    """The tuples may have any bytes, also marks of frames, and chunks may have any size."""
    blocks = []
    for sequence, content in enumerate(contents, 1):
        tuples = content + MARK * 3
        block = Block(tuples, 1, received_s=0, received_us=-1, newest_ts_us=2**62)
        block.sequence = sequence * 1000
        blocks.append(block)
    reader = reader_of(segment_bytes(blocks, salt=salt), salt=salt, chunk_bytes=chunk_bytes)
    assert [frame.tuples for frame in reader] == [block.tuples for block in blocks]
    assert not reader.gaps
    assert reader.tail is None


@pytest.mark.parametrize("chunk_bytes", [50, 1 << 16])
def test_every_prefix_gives_the_whole_frames_in_it(chunk_bytes: int) -> None:
    """A file that is cut off anywhere gives all whole frames; the rest is its tail."""
    for size in range(HEADER_BYTES, len(WHOLE) + 1):
        reader = reader_of(WHOLE[:size], chunk_bytes=chunk_bytes)
        whole = sum(end <= size for end in ENDS[1:])
        assert [frame.sequence for frame in reader] == list(range(1, whole + 1))
        assert reader.tail == (None if size in ENDS else ENDS[whole])
        assert not reader.gaps


@pytest.mark.parametrize("chunk_bytes", [50, 1 << 16])
def test_every_flipped_byte_costs_its_own_frame_only(chunk_bytes: int) -> None:
    """The frames before and behind are read. The place of the damage is known."""
    for at in range(HEADER_BYTES, len(WHOLE)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(WHOLE)
            damaged[at] ^= flip
            reader = reader_of(bytes(damaged), chunk_bytes=chunk_bytes)
            hit = sum(end <= at for end in ENDS)  # the sequence of the frame
            assert [frame.sequence for frame in reader] == [n for n in range(1, 5) if n != hit]
            if hit == len(BLOCKS):
                assert reader.tail == ENDS[hit - 1]
            else:
                assert reader.gaps == [(ENDS[hit - 1], ENDS[hit])]
                assert reader.tail is None


@given(st.binary(max_size=400), st.integers(0, 4))
def test_rubbish_between_frames_is_passed_over(rubbish: bytes, place: int) -> None:
    """Foreign bytes cost no frame."""
    data = WHOLE[: ENDS[place]] + rubbish + WHOLE[ENDS[place] :]
    reader = reader_of(data)
    assert [frame.sequence for frame in reader] == [1, 2, 3, 4]
    assert len(reader.gaps) + (reader.tail is not None) == bool(rubbish)


def test_frame_of_another_segment_is_none() -> None:
    """Bytes that look like a frame, but do not have the file's salt, are no frame."""
    (stranger,) = numbered(1, first=9)
    forged = encode_head(stranger, SALT ^ 1) + stranger.tuples
    reader = reader_of(WHOLE[: ENDS[2]] + forged + WHOLE[ENDS[2] :])
    assert [frame.sequence for frame in reader] == [1, 2, 3, 4]
    assert reader.gaps == [(ENDS[2], ENDS[2] + len(forged))]


def test_frame_met_a_second_time_is_none() -> None:
    """Sequences increase, so a block that was copied by a fault of the disk is read once."""
    data = WHOLE + WHOLE[ENDS[0] : ENDS[1]]
    assert [frame.sequence for frame in reader_of(data)] == [1, 2, 3, 4]


def test_length_beyond_reason_reads_no_gigabytes() -> None:
    """A length that no post can have is damage. No memory is allocated for it."""
    huge = bytearray(WHOLE)
    struct.pack_into(">I", huge, ENDS[1] + 8, 0xFFFF_FFF0)
    assert [frame.sequence for frame in reader_of(bytes(huge))] == [1, 3, 4]


def test_header_tells_what_is_wrong_with_it() -> None:
    """A header is altered, cut off, or of another version."""
    assert header_fault(encode_header(7, SALT, WITH_TABLES), 7, SALT) == ""
    assert header_fault(encode_header(7, SALT, 3), 7, SALT) == "version 3"
    header = encode_header(7, SALT, PLAIN)
    assert header_fault(header, 7, SALT) == ""
    assert header_fault(header[:20], 7, SALT) == "cut off"
    assert header_fault(b"", 7, SALT) == "cut off"
    assert header_fault(encode_header(8, SALT, PLAIN), 7, SALT) == "altered"
    for at in range(HEADER_BYTES):
        altered = bytearray(header)
        altered[at] ^= 1
        assert header_fault(bytes(altered), 7, SALT) == "altered"


def test_name_tells_first_and_salt() -> None:
    """So a segment with a damaged header can still be read."""
    assert parse_name(segment_name(12, SALT)) == (12, SALT)
    assert segment_name(9, 0) < segment_name(10, 0) < segment_name(2**63, 0)
    for other in ("journal-1-00000000.log", "lock", segment_name(1, 2) + "x", "journal-.log"):
        assert parse_name(other) is None


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12)), max_size=20), st.integers())
def test_done_holds_what_was_noted(spans: list[tuple[int, int]], seed: int) -> None:
    """Ranges may come in any order and overlap. Sequences may be asked in any order."""
    records = b"".join(encode_done(first, first + more) for first, more in spans)
    expected = {n for first, more in spans for n in range(first, first + more + 1)}
    done = Done(records)
    asked = [*range(80), *range(80)]
    random.Random(seed).shuffle(asked)
    for sequence in [*range(80), *asked]:
        assert (sequence in done) is (sequence in expected)


def test_done_believes_only_whole_records() -> None:
    """A torn or altered note does not count: its blocks are written again, and not lost."""
    records = encode_done(1, 3) + encode_done(7, 9)
    for size in range(len(records)):
        assert (8 in Done(records[:size])) is False
        assert (2 in Done(records[:size])) is (size >= DONE_BYTES)
    for at in range(DONE_BYTES):
        altered = bytearray(records)
        altered[at] ^= 4
        done = Done(bytes(altered))
        assert [n for n in range(1 << 6) if n in done] == [7, 8, 9]
