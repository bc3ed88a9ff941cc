"""Messages of the stream: what is no block is found, whatever its bytes are."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.buffers.frames import HEAD_BYTES, MARK, frame_of
from ingest.model.block import Block, encode_reading, row_offsets, rows_fault
from ingest.model.reading import NAME_BYTES_MAX, Reading
from ingest.roles.outlet import NotOurs, decode_message, encode_message
from tests.support.blocks import block_of, make_block

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
readings = st.builds(
    Reading, st.integers(0, 1 << 50), names, names, st.floats(allow_nan=False, allow_infinity=False)
)
alike = st.builds(
    Reading, st.integers(0, 1 << 50), st.just("device-1"), st.just("metric"), st.floats(0, 9)
)


def message(tuples: bytes, rows: int, **more: int) -> bytes:
    """Return a frame whose CRC is right, with any content."""
    values = {"sequence": 1, "received_us": 0, "newest_ts_us": 0, "posts": 0, **more}
    head = struct.pack(">IQIqqI", len(tuples), values["sequence"], rows, *list(values.values())[1:])
    return MARK + struct.pack(">I", crc32(tuples, crc32(head, 0))) + head + tuples


@given(st.lists(readings, min_size=1, max_size=20) | st.lists(alike, min_size=1, max_size=20))
def test_block_comes_back_as_it_was(found: list[Reading]) -> None:
    """Rows with names of the same size or of different ones; the head too."""
    block = block_of(found)
    block.sequence, block.posts = 9, 3
    came = decode_message(encode_message(block))
    assert (came.tuples, came.rows, came.posts) == (block.tuples, len(found), 3)
    assert (came.received_us, came.newest_ts_us) == (block.received_us, block.newest_ts_us)
    assert came.sealed


@given(st.data())
def test_any_changed_or_missing_byte_is_found(data: st.DataObject) -> None:
    """By the CRC; a message that is longer or shorter is none either."""
    whole = encode_message(make_block(2))
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    for each in (bytes(changed), whole[:at], whole + b"\0", whole[at + 1 :]):
        with pytest.raises(NotOurs):
            decode_message(each)


@given(st.lists(readings, min_size=1, max_size=6), st.data())
def test_rows_are_checked_also_if_the_crc_is_right(
    found: list[Reading], data: st.DataObject
) -> None:
    """What a program other than ours wrote: PostgreSQL would refuse the whole batch."""
    tuples = b"".join(map(encode_reading, found))
    assert rows_fault(tuples, len(found)) == ""
    offsets = row_offsets(tuples)
    start = data.draw(st.sampled_from(offsets[:-1]))
    device = struct.unpack_from(">i", tuples, start + 14)[0]
    layout = [*range(6), *range(14, 18), *range(18 + device, 22 + device)]
    end = offsets[offsets.index(start) + 1] - start
    at = start + data.draw(st.sampled_from([*layout, *range(end - 12, end - 8)]))
    changed = bytearray(tuples)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert rows_fault(bytes(changed), len(found))
    for wrong in (len(found) + 1, len(found) - 1, 0):
        assert rows_fault(tuples, wrong)
    for cut in (tuples[:-1], tuples + b"\0", tuples[1:]):
        assert rows_fault(cut, len(found))
        with pytest.raises(NotOurs):
            decode_message(message(cut, len(found)))


@given(st.binary(max_size=200), st.integers(0, (1 << 32) - 1))
def test_any_bytes_are_told_from_rows_without_an_error(tuples: bytes, rows: int) -> None:
    """It ends, and fails in no other way."""
    assert rows_fault(tuples, rows)
    assert rows_fault(b"\x00\x04\x00\x00\x00\x08" + tuples, rows % 5)
    with pytest.raises(NotOurs):
        decode_message(message(tuples, rows))
    assert frame_of(tuples, 0) is None


def rows(device_bytes: int, metric_bytes: int) -> bytes:
    """Return two rows with names of these sizes."""
    row = b"".join(
        (
            struct.pack(">hiqi", 4, 8, 0, device_bytes),
            b"d" * device_bytes,
            struct.pack(">i", metric_bytes),
            b"m" * metric_bytes,
            struct.pack(">id", 8, 1.0),
        )
    )
    return row * 2


@pytest.mark.parametrize("mixed", [False, True])
def test_bounds_of_names_are_exact(mixed: bool) -> None:
    """An empty name, or one that is too long, is none of ours."""
    other = rows(3, 4) if mixed else b""  # then the slow way is taken
    count = 4 if mixed else 2
    most = NAME_BYTES_MAX
    for sizes, is_good in (
        *(((1, 1), True), ((most, most), True), ((0, 1), False), ((1, 0), False)),
        *(((most + 1, 1), False), ((1, most + 1), False)),
    ):
        assert (rows_fault(rows(*sizes) + other, count) == "") is is_good, sizes


def test_size_below_zero_does_not_go_round_in_circles() -> None:
    """A size of -18 would lead back to the begin of the row."""
    for size in (-1, -18, -22, -(1 << 31)):
        row = struct.pack(">hiqi", 4, 8, 0, size) + bytes(40)
        for count in (1, 2, 1_000_000):
            assert rows_fault(row, count)


def test_frame_of_a_journal_is_no_message() -> None:
    """Its CRC begins with the salt of its file."""
    block = make_block(1)
    block.sequence = 1
    whole = encode_message(block)
    assert frame_of(whole, 1) is None
    assert frame_of(whole, 0) is not None
    assert len(whole) == HEAD_BYTES + len(block.tuples)


def test_strange_times_make_no_error() -> None:
    """A clock that is wrong by years, in either direction."""
    tuples = make_block(1).tuples
    for received_us in (-(1 << 63), 0, (1 << 63) - 1):
        block: Block = decode_message(message(tuples, 1, received_us=received_us))
        assert block.received_us == received_us
