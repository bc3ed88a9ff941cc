"""Rows of COPY become columns: in pieces of any size, and what is no such row is an error."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pyarrow as pa
import pytest

from ingest.model.block import HEADER, PG_EPOCH_US, TRAILER, decode_rows
from ingest.years.archive import files
from ingest.years.archive.arrow_rows import CopiedRows, DamagedRows, Decoder, encoded
from ingest.years.archive.sorting import merge, sort_columns
from tests.support.archives import Row, bits_of, drawn, key_of, rows_of

EIGHT = struct.pack(">i", 8)


def sent(marker: bytes, row: Row) -> bytes:
    """Return a row as the server sends it."""
    ts_us, device, metric, bits = row
    names = b"".join(
        struct.pack(">i", len(each)) + each for each in (device.encode(), metric.encode())
    )
    head = b"\x00\x05" + EIGHT + marker + EIGHT + struct.pack(">q", ts_us - PG_EPOCH_US)
    return head + EIGHT + struct.pack(">Q", bits) + names


def decoded(rows: list[Row], seed: int) -> list[CopiedRows]:
    """Send rows in pieces of drawn sizes."""
    decoder = Decoder()
    data = HEADER + b"".join(sent(decoder.marker, row) for row in rows) + TRAILER
    draw = random.Random(seed)
    parts = []
    while data:
        size = draw.choice((1, 7, 300, 5_000))
        parts.append(decoder.rows_of(data[:size]))
        data = data[size:]
    parts.append(decoder.end())
    return [each for each in parts if each is not None]


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_any_size_become_the_same_rows(seed: int) -> None:
    """Also rows whose bytes look like the begin of a row, but for the marker."""
    odd = int.from_bytes(b"\x00\x05\x00\x00\x00\x08\xff\xfe", "big")
    rows = [*drawn(300, seed), (5, "a", "b", odd)]
    found = sort_columns(decoded(rows, seed))
    assert sorted(rows_of(found.rows)) == sorted(rows)
    assert found.left_out.num_rows == 0


def test_no_rows_are_no_columns() -> None:
    """The answer of an empty table has a header and an end."""
    assert decoded([], 1) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (HEADER, "no end"),
        (b"PGCOPY\r\n", "no end"),
        (b"other" + TRAILER, "unknown way"),
    ],
)
def test_other_bytes_are_an_error(data: bytes, text: str) -> None:
    """A COPY that was cut off, or another format."""
    decoder = Decoder()
    decoder.rows_of(data)
    with pytest.raises(DamagedRows, match=text):
        decoder.end()


def test_null_is_an_error() -> None:
    """It has no bytes, so all columns after it would be read wrongly."""
    decoder = Decoder()
    row = sent(decoder.marker, (1, "d", "m", 0))
    null = row.replace(EIGHT + struct.pack(">Q", 0), struct.pack(">i", -1))
    decoder.rows_of(HEADER + null + TRAILER)
    with pytest.raises(DamagedRows, match="a null"):
        decoder.end()


def test_rows_are_encoded_as_the_service_encodes_them() -> None:
    """The table gets them back by COPY."""
    rows = drawn(200, 4)
    table = sort_columns(decoded(rows, 4)).rows
    data = b"".join(encoded([table.slice(0, 70), table.slice(70)]))
    assert data.startswith(HEADER)
    assert data.endswith(TRAILER)
    readings = decode_rows(data[len(HEADER) : -len(TRAILER)])
    assert sorted((*each[:3], bits_of(each[3])) for each in readings) == sorted(rows)


@pytest.mark.parametrize("seed", range(3))
def test_merged_rows_are_in_order_and_each_once(seed: int) -> None:
    """Sources overlap, in pieces of all sizes; of equal rows the one of the first source stays."""
    draw = random.Random(seed)
    rows = drawn(400, seed)
    sources = []
    kept: dict[object, Row] = {}
    for _ in range(4):
        some = draw.sample(rows, 200)
        for row in some:
            kept.setdefault(key_of(row), row)
        table = sort_columns(decoded(some, seed)).rows
        size = draw.randrange(1, 90)
        sources.append(iter([table.slice(at, size) for at in range(0, 200, size)]))
    merged = list(merge(sources))
    found = [row for each in merged for row in rows_of(each.rows)]
    assert sorted(found) == sorted(kept.values())
    order = [(row[1].encode(), row[2].encode(), row[0]) for row in found]
    assert order == sorted(order)
    assert sum(each.left_out.num_rows for each in merged) == 800 - len(kept)


def test_large_partition_becomes_several_files(tmp_path: Path) -> None:
    """Each is sorted, and they follow one another; row groups are of one size."""
    table = sort_columns(decoded(drawn(250, 6), 6)).rows
    written = files.write(
        tmp_path, "part", [table.slice(0, 99), table.slice(99)], group_rows=40, file_rows_max=100
    )
    assert [tuple(each)[:2] for each in written] == [
        ("part.parquet", 120),
        ("part.0002.parquet", 120),
        ("part.0003.parquet", 10),
    ]
    pieces = [piece for each in written for piece in files.read(tmp_path / each.name)]
    assert rows_of(pa.concat_tables(pieces)) == rows_of(table)
