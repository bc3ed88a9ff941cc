"""Ways to write a batch, one connection to a durable PostgreSQL, every row new (compare the ways).

pytest benchmarks/bench_sink.py

`copy` is the driver alone with ready bytes, the floor. `sink` is the service's way, `staged` the
same for rows that may be in the table already, `all_there` for rows that are; `unnest` is the
service's write_method=insert. `values`, `executemany` and `one_by_one` are the ways of others, with
tuples that the driver encodes. Medians are of one batch: divide by its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.database import Database, count_rows, fresh_table
from benchmarks.rounds import run_rounds
from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.block import HEADER, TRAILER, encode_reading
from ingest.model.reading import Reading
from ingest.sinks.postgres.schema import KEY, KEY_LIST, TABLE
from ingest.sinks.postgres.sink import SinkPostgres

START_US = 1_760_000_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSERT = f"insert into {TABLE} ({KEY_LIST}) values"
ONE = f"{INSERT} ($1, $2, $3, $4)"
POST_ROWS = 100
ROUNDS = {1: 200, 10: 100, 100: 50, 1_000: 20, 5_000: 8}
ROUNDS_ONE_BY_ONE = {1: 200, 10: 50, 100: 10, 1_000: 3, 5_000: 2}

_numbers = itertools.count()
Batch = list[Reading]
Write = Callable[[Any], Awaitable[object]]
Kind = tuple[Callable[[Batch], Any], Write]  # what is made ready before the clock; the write


def readings(rows: int) -> Batch:
    """Give facts of 200 devices that no call gave before, at the table's right edge."""
    return [
        Reading(START_US + n * 50, f"sensor-{n % 200:04}", "temperature", n / 8)
        for n in itertools.islice(_numbers, rows)
    ]


def posts(batch: Batch) -> list[bytes]:
    """Encode a batch as the blocks of posts of 100."""
    return [
        b"".join(map(encode_reading, batch[at : at + POST_ROWS]))
        for at in range(0, len(batch), POST_ROWS)
    ]


def tuples(batch: Batch) -> list[tuple[datetime, str, str, float]]:
    """Give a batch as a driver wants it."""
    return [
        (EPOCH + timedelta(microseconds=ts_us), device, metric, value)
        for ts_us, device, metric, value in batch
    ]


def flat(batch: Batch) -> tuple[str, list[Any]]:
    """Give one INSERT of all rows, and its arguments."""
    places = ", ".join(
        f"(${at}, ${at + 1}, ${at + 2}, ${at + 3})" for at in range(1, 4 * len(batch), 4)
    )
    return f"{INSERT} {places}", [value for row in tuples(batch) for value in row]


@pytest.fixture
def sinks(database: Database) -> Iterator[dict[str, SinkPostgres]]:
    """Give the service's sink, by both of its methods, on an empty table."""
    fresh_table(database.url)
    found = {
        method: make_sink(database.url, Settings(write_method=method))
        for method in ("copy", "insert")
    }
    for sink in found.values():
        database.run(sink.open())
    yield found
    for sink in found.values():
        database.run(sink.close())


def ways(database: Database, sinks: dict[str, SinkPostgres], rows: int) -> dict[str, Kind]:
    """Give each way to write a batch."""
    connection = database.connection

    async def copy(ready: bytes) -> None:
        source = memoryview(ready)
        await connection.copy_to_table(
            TABLE,
            source=source,  # type: ignore[arg-type]
            columns=KEY,
            format="binary",
        )

    async def insert(ready: tuple[str, list[Any]]) -> None:
        await connection.execute(ready[0], *ready[1])

    async def one_by_one(ready: list[tuple[Any, ...]]) -> None:
        for row in ready:
            await connection.execute(ONE, *row)

    def by_sink(method: str, idempotent: bool) -> Write:
        return lambda ready: sinks[method].write(ready, rows, idempotent=idempotent)

    return {
        "copy": (lambda batch: b"".join((HEADER, *posts(batch), TRAILER)), copy),
        "sink": (posts, by_sink("copy", False)),
        "staged": (posts, by_sink("copy", True)),
        "all_there": (posts, by_sink("copy", True)),
        "unnest": (posts, by_sink("insert", False)),
        "values": (flat, insert),
        "executemany": (tuples, lambda ready: connection.executemany(ONE, ready)),
        "one_by_one": (tuples, one_by_one),
    }


NAMES: Sequence[str] = (
    *("copy", "sink", "staged", "all_there", "unnest", "values", "executemany", "one_by_one"),
)


@pytest.mark.parametrize("rows", ROUNDS)
@pytest.mark.parametrize("way", NAMES)
def test_write_a_batch(
    benchmark: BenchmarkFixture,
    database: Database,
    sinks: dict[str, SinkPostgres],
    way: str,
    rows: int,
) -> None:
    """From rows that are ready in memory to their commit."""
    ready, write = ways(database, sinks, rows)[way]
    rounds = (ROUNDS_ONE_BY_ONE if way == "one_by_one" else ROUNDS)[rows]
    same = readings(rows)
    if way == "all_there":
        database.run(sinks["copy"].write(posts(same), rows, idempotent=False))

    async def awaited(batch: Any) -> None:
        await write(batch)

    times = run_rounds(
        benchmark,
        lambda batch: database.run(awaited(batch)),
        lambda: ready(same if way == "all_there" else readings(rows)),
        rounds,
    )
    assert count_rows(database.url) == (rows if way == "all_there" else times * rows)
