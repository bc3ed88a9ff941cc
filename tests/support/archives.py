"""Rows that are hard to keep, and a table of them that is detached, for tests of the archive."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pyarrow as pa
from asyncpg import Connection

from ingest.model.block import HEADER, TRAILER, encode_reading
from ingest.model.reading import Reading
from ingest.years.archive import files
from ingest.years.archive.archiver import ParquetArchiver
from ingest.years.archive.files import ArchiveFolder
from ingest.years.archive.job import Detached
from ingest.years.archive.table_rows import RowsTable

Row = tuple[int, str, str, int]  # ts in Unix microseconds, names, the bits of the value

FROM_US, TO_US = 1_795_737_600_000_000, 1_795_824_000_000_000  # one day
PARTITION = "readings_p20261127"
BITS = (
    *(0x0000000000000000, 0x8000000000000000, 0x0000000000000001, 0x800FFFFFFFFFFFFF),
    *(0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0xFFF8000000000001),
    *(0x7FF0000000000001, 0x7FEFFFFFFFFFFFFF, 0x3FF0000000000000, 0x4039000000000000),
)
NAMES = (
    "a",
    "room-0001",
    "é" * 256,
    "x" * 512,
    "\U0001f321 ,\"'\\ {}",
    "a b",
    "\ud7ff\ue000",
    "aa",
)


def value_of(bits: int) -> float:
    """Return the float64 with these bits."""
    return float(struct.unpack(">d", struct.pack(">Q", bits))[0])


def bits_of(value: float) -> int:
    """Return the bits of a float64."""
    return int(struct.unpack(">Q", struct.pack(">d", value))[0])


def key_of(row: Row) -> tuple[int, str, str, float | str]:
    """Return what PostgreSQL's key takes as one."""
    value = value_of(row[3])
    return (*row[:3], "NaN" if math.isnan(value) else value + 0.0)


def drawn(count: int, seed: int, *, from_us: int = FROM_US, to_us: int = TO_US) -> list[Row]:
    """Draw rows of all kinds, each key once."""
    draw = random.Random(seed)
    found: dict[object, Row] = {}
    while len(found) < count:
        row = (
            draw.randrange(from_us, min(to_us, from_us + 50))
            if draw.random() < 0.3
            else draw.randrange(from_us, to_us),
            draw.choice(NAMES),
            draw.choice(NAMES),
            draw.choice(BITS) if draw.random() < 0.3 else draw.getrandbits(64),
        )
        found.setdefault(key_of(row), row)
    return list(found.values())


async def fill(connection: Connection, name: str, rows: Iterable[Row]) -> None:
    """Make a table like `readings`, and store rows in it, bit for bit."""
    await connection.execute(f'create table "{name}" (like readings including all)')
    await store(connection, name, rows)


async def store(connection: Connection, name: str, rows: Iterable[Row]) -> None:
    """Store rows in a table, bit for bit."""
    data = b"".join(encode_reading(Reading(*row[:3], value_of(row[3]))) for row in rows)

    async def source() -> AsyncIterator[bytes]:
        yield HEADER + data + TRAILER

    await connection.copy_to_table(name, source=source(), format="binary")


async def rows_in(connection: Connection, name: str) -> list[Row]:
    """Return the rows of a table, sorted."""
    found = await connection.fetch(
        "select (extract(epoch from ts) * 1000000)::int8 as ts_us, device_id, metric, "
        f"float8send(value) as value from {name}"
    )
    rows = [
        (each["ts_us"], each["device_id"], each["metric"], int.from_bytes(each["value"], "big"))
        for each in found
    ]
    return sorted(rows)


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a table of Arrow, in its order."""
    columns = [table.column("ts").cast(pa.int64()), *(table.column(at) for at in (1, 2))]
    texts = [each.to_pylist() for each in columns]
    values = [bits_of(each) for each in table.column("value").to_pylist()]
    return list(zip(*texts, values, strict=True))


def rows_in_files(paths: Iterable[Path]) -> list[Row]:
    """Return the rows of files of the archive, in their order."""
    return [row for path in paths for piece in files.read(path) for row in rows_of(piece)]


def detached(connection: Connection, name: str = PARTITION) -> Detached:
    """Return the table of this name as a partition of `readings` that is detached."""
    return Detached(connection, "readings", RowsTable("public", name), FROM_US, TO_US)


def archiver(folder: Path, *, free_bytes_min: int = 0) -> ParquetArchiver:
    """Return an archiver with this folder."""
    return ParquetArchiver(ArchiveFolder(folder, free_bytes_min=free_bytes_min))
