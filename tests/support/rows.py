"""Rows for tests of the sink: readings that differ, and their encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

import asyncpg

from ingest.app.database import partitions_ahead
from ingest.config.settings import Settings
from ingest.model.block import PG_EPOCH_US, encode_reading, names_between
from ingest.model.placed_rows import encode_placed
from ingest.model.reading import Reading
from ingest.model.tables import Tables
from ingest.sinks.postgres import column_tables, schema
from ingest.sinks.postgres.housekeeping.making import partitions_like

START_US = 1_760_000_000_000_000  # 2025-10-09


def readings(count: int, *, start: int = 0, device: str = "device") -> list[Reading]:
    """Give `count` different readings; equal arguments give equal readings."""
    return [
        Reading(START_US + number * 1_000, f"{device}-{number % 7}", "temperature", number * 0.1)
        for number in range(start, start + count)
    ]


def encode(rows: Iterable[Reading], posts: int = 1) -> Sequence[bytes]:
    """Encode rows as the blocks of `posts` posts."""
    encoded = [encode_reading(row) for row in rows]
    size = max(1, -(-len(encoded) // posts))
    return [b"".join(encoded[at : at + size]) for at in range(0, len(encoded), size)]


class Encode(Protocol):
    """Encodes rows as the blocks of some posts."""

    def __call__(self, rows: Iterable[Reading], posts: int = 1) -> Sequence[bytes]:
        """As `encode`."""


def encode_in(tables: Tables) -> Encode:
    """Return what encodes rows, each in its home."""

    def encode_each(rows: Iterable[Reading], posts: int = 1) -> Sequence[bytes]:
        of = list(rows)
        size = max(1, -(-len(of) // posts))
        return [placed(of[at : at + size], tables) for at in range(0, len(of), size)]

    return encode_each


def placed(rows: Sequence[Reading], tables: Tables) -> bytes:
    """Encode the readings of one block, each in its home."""
    times = [row.ts_us - PG_EPOCH_US for row in rows]
    names = [names_between(row.device_id, row.metric) for row in rows]
    return encode_placed(times, names, [row.value for row in rows], tables)[0]


async def apply_tables(
    connection: asyncpg.Connection, tables: Tables, *, role: str | None = None
) -> list[str]:
    """Make declared tables, with partitions if `readings` has some of ours."""
    ahead = partitions_ahead(Settings())
    partitions = partial(partitions_like, connection, schema.READINGS, "day", ahead)
    return await column_tables.apply(
        connection, schema.READINGS, tables.all, role=role, partitions=partitions
    )
