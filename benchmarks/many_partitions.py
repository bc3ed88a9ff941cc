"""Writes into a table of many partitions: `python -m benchmarks.many_partitions`.

The service's sink writes batches of 20,000 readings into a table of 30 day partitions, and then of
3,650 (ten years). The readings of a batch are of one day, or spread over 30, 365 or 3,650 of them.
A new connection reads the catalog of each partition that it meets: so the first batch is told
apart. `looks` is the time of a look of the housekeeping at the table. Exit code 1 if a batch is not
stored. Timings of a busy machine have no meaning.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import machine
from benchmarks.database import Database, count_rows, running_database
from benchmarks.processes import Broken
from ingest.app.writing import make_sink
from ingest.config.settings import Settings
from ingest.model.reading import Reading
from ingest.model.rows import encode_reading
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping.spans import (
    DAY,
    DAY_US,
    literal,
    partition_name,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.view import look_at

FEW, MANY = 30, 3_650
BATCH_ROWS, POST_ROWS = 20_000, 100
ROUNDS = 5
DEVICES = 1_000
MADE_AT_ONCE = 200


def batch(days: int, number: int, until_us: int) -> list[bytes]:
    """Return the blocks of a batch, in the order of time, over the last so many days."""
    step_us = days * DAY_US // BATCH_ROWS
    first_us = until_us - days * DAY_US + number  # a later one is a microsecond later: all are new
    rows = [
        encode_reading(
            Reading(first_us + at * step_us, f"sensor-{at % DEVICES:04d}", "temperature", at / 8)
        )
        for at in range(BATCH_ROWS)
    ]
    return [b"".join(rows[at : at + POST_ROWS]) for at in range(0, len(rows), POST_ROWS)]


async def make_days(connection: asyncpg.Connection, count: int) -> int:
    """Make the table if it is missing, and partitions until there are so many before today.

    Returns when today began. The partitions are made by plain SQL, which is faster than ours.
    """

    async def none_yet(_: asyncpg.Connection) -> list[str]:
        return []

    await schema.apply(connection, partitions=none_yet)
    view = await look_at(connection, "readings", DAY)
    there = {each.from_us for each in view.partitions}
    today = span_bounds(DAY, view.now_us)
    wanted = [span_bounds(DAY, today.from_us - number * DAY_US) for number in range(1, count + 1)]
    missing = [each for each in wanted if each.from_us not in there]
    for at in range(0, len(missing), MADE_AT_ONCE):
        await connection.execute(
            ";".join(
                f"create table {partition_name('readings', DAY, each.from_us)} partition of "
                f"readings for values from ({literal(each.from_us)}) to ({literal(each.to_us)})"
                for each in missing[at : at + MADE_AT_ONCE]
            )
        )
    return today.from_us


async def write(database: Database, days: int, start: int, until_us: int) -> dict[str, Any]:
    """Write ROUNDS batches by one new sink; return their rates."""
    sink = make_sink(database.url, Settings())
    took_s = []
    try:
        await sink.open()
        for number in range(ROUNDS):
            blocks = batch(days, start + number, until_us)
            began_s = time.perf_counter()
            stored = await sink.write(blocks, BATCH_ROWS, idempotent=False)
            took_s.append(time.perf_counter() - began_s)
            if stored.committed != BATCH_ROWS:
                raise Broken(f"{stored.committed} of {BATCH_ROWS} rows were new")
    finally:
        await sink.close()
    return {
        "first_ms": 1e3 * took_s[0],
        "rows_per_s": BATCH_ROWS / statistics.median(took_s[1:]),
    }


async def looks(connection: asyncpg.Connection) -> float:
    """Return the median milliseconds of a look at the table."""
    took_s = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        await look_at(connection, "readings", DAY)
        took_s.append(time.perf_counter() - began_s)
    return 1e3 * statistics.median(took_s)


def measure(many: int) -> dict[str, Any]:
    """Measure both tables; return the figures by partitions, then by days of a batch."""
    found: dict[str, Any] = {}
    batches = 0
    with running_database() as database:
        for partitions in (FEW, many):
            began_s = time.monotonic()
            until_us = database.run(make_days(database.connection, partitions))
            table: dict[str, Any] = {"made_s": time.monotonic() - began_s}
            for days in sorted({1, FEW, min(365, partitions), partitions}):
                table[str(days)] = database.run(write(database, days, batches, until_us))
                batches += ROUNDS
            table["look_ms"] = database.run(looks(database.connection))
            found[str(partitions)] = table
            print(f"{partitions} partitions: {table}", file=sys.stderr, flush=True)
        if count_rows(database.url) != batches * BATCH_ROWS:
            raise Broken("readings are missing, or there twice")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_partitions")
    parser.add_argument("--partitions", type=int, default=MANY, help=f"of the large table ({MANY})")
    parser.add_argument("--write", type=Path, help="file that gets the figures as a line")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so the folder is removed
    try:
        found = measure(chosen.partitions)
    except Broken as error:
        print(f"it broke: {error}", file=sys.stderr)
        return 1
    line = {
        "at": machine.now(),
        "commit": machine.commit(),
        "partitions": found,
        "environment": machine.environment(),
    }
    if chosen.write:
        with chosen.write.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
