"""Rows: the decoder is the inverse of the encoder, and the offset of each row is found."""

from __future__ import annotations

import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ingest.model.block import (
    PG_EPOCH_US,
    ROW_BYTES_MIN,
    RUN_ROWS_MAX,
    decode_rows,
    encode_reading,
    encode_rows,
    names_between,
    row_offsets,
)
from ingest.model.reading import Reading

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
READINGS = st.builds(
    Reading,
    st.integers(-(2**62), 2**62),
    NAMES,
    NAMES,
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(READINGS, max_size=20))
def test_decode_rows_of_encoded_readings_returns_them_bit_exact(readings: list[Reading]) -> None:
    """decode_rows is the inverse of encode_reading, sign of zero included."""
    again = list(decode_rows(b"".join(map(encode_reading, readings))))
    assert again == readings
    assert [struct.pack("d", each.value) for each in again] == [
        struct.pack("d", each.value) for each in readings
    ]


@given(st.lists(READINGS, max_size=20))
def test_row_offsets_cut_a_block_into_its_rows(readings: list[Reading]) -> None:
    """Between two neighbouring offsets stands exactly one row."""
    tuples = b"".join(map(encode_reading, readings))
    offsets = row_offsets(tuples)
    assert len(offsets) == len(readings) + 1
    rows = [tuples[a:b] for a, b in pairwise(offsets)]
    assert rows == [encode_reading(each) for each in readings]


def test_row_has_the_layout_of_binary_copy() -> None:
    """Column count, then each column behind its size, all big-endian, time since 2000."""
    row = encode_reading(Reading(PG_EPOCH_US + 1, "dev", "°", 1.5))
    assert row == (
        struct.pack(">hiq", 4, 8, 1)
        + struct.pack(">i", 3)
        + b"dev"
        + struct.pack(">i", 2)
        + "°".encode()
        + struct.pack(">id", 8, 1.5)
    )
    assert len(row) == ROW_BYTES_MIN + 5


def test_rows_encoded_together_are_those_encoded_alone() -> None:
    """With names of one size and of many, in the order given."""
    for devices in (["aa", "bb", "cc"], ["a", "bb", "ccc", "bb"], ["aa"] * (2 * RUN_ROWS_MAX + 7)):
        readings = [
            Reading(PG_EPOCH_US + n, device, "m", n / 3) for n, device in enumerate(devices)
        ]
        together = encode_rows(
            [each.ts_us - PG_EPOCH_US for each in readings],
            [names_between(each.device_id, each.metric) for each in readings],
            [each.value for each in readings],
        )
        assert together == b"".join(map(encode_reading, readings))
        assert list(decode_rows(together)) == readings
