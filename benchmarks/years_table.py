"""What benchmarks/years.py asks of the table: days of single devices, sizes, the checksum."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from benchmarks.database import connected
from benchmarks.years_readings import DAY_S, DAYS, DEVICES, METRIC, Plan, device_name
from ingest.archive.postgres_hash import NOTHING, Checksum
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import archive_rows
from ingest.sinks.postgres.housekeeping.archive_rows import RowsTable
from ingest.sinks.postgres.housekeeping.view import look_at

_DAY = """
select ts, value from readings
where device_id = $1 and metric = $2 and ts >= to_timestamp($3) and ts < to_timestamp($4)
order by ts"""
_SIZES = """
select sum(pg_table_size(inhrelid))::int8 as heap, sum(pg_indexes_size(inhrelid))::int8 as keys
from pg_inherits where inhparent = 'readings'::regclass"""


class DayRead(NamedTuple):
    """Milliseconds of a query of one device's day: the first time, and once it is warm."""

    index_s: float
    first_p50_ms: float
    first_p99_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    rows: float


async def read_days(url: str, plan: Plan, drawn: int) -> DayRead:
    """Make the index for devices, vacuum, and read drawn days of drawn devices, each twice."""
    draw = random.Random(2)
    times: list[list[float]] = [[], []]
    rows = 0
    async with connected(url) as connection:
        began_s = time.monotonic()
        await schema.apply(connection, device_index=True)
        index_s = time.monotonic() - began_s
        # As autovacuum leaves days that are over: else the first read of a page writes it again.
        await connection.execute("vacuum (analyze) readings")
        await connection.execute("checkpoint")
        query = await connection.prepare(_DAY)
        for _ in range(drawn):
            from_s = plan.first_s + draw.randrange(DAYS) * DAY_S
            name = device_name(draw.randrange(DEVICES))
            for kind in times:
                began_s = time.perf_counter()
                rows += len(await query.fetch(name, METRIC, from_s, from_s + DAY_S))
                kind.append(1e3 * (time.perf_counter() - began_s))
    (first_p50, first_p99), (p50, p99) = map(_p50_p99, times)
    return DayRead(index_s, first_p50, first_p99, p50, p99, max(times[1]), rows / drawn / 2)


def _p50_p99(values: Sequence[float]) -> tuple[float, float]:
    in_order = sorted(values)
    return statistics.median(in_order), in_order[int(0.99 * (len(in_order) - 1))]


async def table_checksum(url: str) -> Checksum:
    """Return the checksum of all partitions, as the server calculates it."""
    found = NOTHING
    async with connected(url) as connection:
        view = await look_at(connection, "readings", "day", sizes=False)
        for each in view.partitions:
            table = RowsTable(view.schema, each.name)
            found = found.plus(Checksum(*await archive_rows.checksum(connection, table)))
    return found


async def sizes(url: str) -> asyncpg.Record:
    """Return the bytes of the table, and of its indexes."""
    async with connected(url) as connection:
        (found,) = await connection.fetch(_SIZES)
    return found
