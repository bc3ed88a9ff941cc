"""What every sink promises, tested with the real one (both methods) and the one in memory.

Each of them stores plain rows, and rows of a declared table.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.block import PG_EPOCH_US, Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.ports import Sink, Stored
from ingest.model.reading import Reading
from ingest.model.tables import ColumnTable, Tables
from ingest.sinks.memory_table import MemoryTable
from ingest.sinks.postgres import schema
from tests.conftest import Server
from tests.support.fake_sink import FakeSink
from tests.support.rows import START_US, Encode, apply_tables, encode, encode_in, readings

REFUSED_VALUE = -666.0  # by a CHECK constraint


TABLES = Tables([ColumnTable("climate", "", ("temperature", "m"), (0, 0))])


class Subject(NamedTuple):
    """A sink, what is in its tables, and how rows become blocks."""

    sink: Sink
    table: Callable[[], Awaitable[list[Reading]]]
    encode: Encode


def refuse(reading: Reading) -> tuple[str, str] | None:
    """Refuse what the CHECK constraint refuses."""
    return ("23514", "violates check") if reading.value == REFUSED_VALUE else None


async def stored_readings(connection: asyncpg.Connection) -> list[Reading]:
    """Read the table back, bit by bit."""
    rows = await connection.fetch(
        """select (extract(epoch from ts) * 1000000)::int8 as us, device_id, metric, value
           from all_readings order by ts, device_id, metric, value"""
    )
    return [Reading(*row) for row in rows]


@pytest.fixture(scope="module")
def shared_url(server: Server) -> Iterator[str]:
    """Give one database with the table for all tests here; each empties the table."""
    name = server.create("template0")
    server.run(schema.apply, name)
    server.run(lambda connection: apply_tables(connection, TABLES), name)
    yield server.url_of(name)
    server.drop(name)


REFUSING = [*itertools.product(["copy", "insert", "fake"], ["plain", "columns"])]
# Tests that need no refused row: also with the table in memory, which takes all.
takes_all = pytest.mark.parametrize(
    "subject", [*REFUSING, ("memory", "plain"), ("memory", "columns")], ids="-".join, indirect=True
)


@pytest.fixture(params=REFUSING, ids="-".join)
async def subject(request: pytest.FixtureRequest, shared_url: str) -> AsyncIterator[Subject]:
    """Give each sink in turn, on empty tables that refuse one value."""
    method, rows = request.param
    encoded: Encode = encode if rows == "plain" else encode_in(TABLES)
    if method == "fake":
        fake = FakeSink(refuse=refuse)

        async def table() -> list[Reading]:
            return sorted(fake.table)

        yield Subject(fake, table, encoded)
        return
    if method == "memory":
        memory = MemoryTable()

        async def kept() -> list[Reading]:
            return sorted(memory.rows)

        yield Subject(memory, kept, encoded)
        return
    connection = await asyncpg.connect(shared_url)
    await connection.execute(
        f"""truncate readings, climate;
        alter table readings drop constraint if exists sane,
        add constraint sane check (value <> {REFUSED_VALUE});
        alter table climate drop constraint if exists sane,
        add constraint sane check (temperature <> {REFUSED_VALUE})"""
    )
    sink = make_sink(shared_url, Settings(write_method=method, database_unsafe=True))
    yield Subject(sink, lambda: stored_readings(connection), encoded)
    await sink.close()
    await connection.close()


class SetAsides:
    """Collects refused rows. It fails if it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[list[Refusal]] = []
        self.error = error

    async def __call__(self, bad: list[Refusal]) -> None:
        """Be a ports.SetAside."""
        self.calls.append(bad)
        if self.error is not None:
            raise self.error


def with_refused(rows: list[Reading], *places: int) -> list[Reading]:
    """Return the rows with the refused value at `places`."""
    return [
        row._replace(value=REFUSED_VALUE) if place in places else row
        for place, row in enumerate(rows)
    ]


@takes_all
async def test_fresh_rows_written_are_all_in_the_table(subject: Subject) -> None:
    """When a write returns, all rows of its blocks are committed."""
    rows = readings(100)
    await subject.sink.open()
    stored = await subject.sink.write(subject.encode(rows, posts=7), 100, idempotent=False)
    assert stored == Stored(committed=100, duplicate=0)
    assert await subject.table() == sorted(rows)


@takes_all
async def test_unopened_sink_opens_itself_at_the_first_write(subject: Subject) -> None:
    """A call of `open` is not needed before."""
    assert await subject.sink.write(subject.encode(readings(1)), 1, idempotent=False) == Stored(
        1, 0
    )


@takes_all
@pytest.mark.parametrize("idempotent", [False, True])
async def test_rows_written_twice_are_stored_once(subject: Subject, idempotent: bool) -> None:
    """The same fact stored twice is stored once, and counted as a duplicate."""
    rows = readings(20)
    await subject.sink.write(subject.encode(rows), 20, idempotent=idempotent)
    again = await subject.sink.write(subject.encode(rows), 20, idempotent=idempotent)
    assert again == Stored(committed=0, duplicate=20)
    assert await subject.table() == sorted(rows)


@takes_all
@pytest.mark.parametrize("idempotent", [False, True])
async def test_rows_partly_there_count_both_ways(subject: Subject, idempotent: bool) -> None:
    """New rows of a batch are committed even if others are in the table, or twice in the batch."""
    await subject.sink.write(subject.encode(readings(10)), 10, idempotent=False)
    rows = [*readings(15, start=5), *readings(3, start=12)]
    assert await subject.sink.write(subject.encode(rows), 18, idempotent=idempotent) == Stored(
        10, 8
    )
    assert await subject.table() == sorted(readings(20))


@takes_all
async def test_facts_that_differ_in_value_only_are_both_kept(subject: Subject) -> None:
    """Two values under one timestamp are two facts."""
    rows = [Reading(START_US, "d", "m", 1.0), Reading(START_US, "d", "m", 1.0000000000000002)]
    assert await subject.sink.write(subject.encode(rows), 2, idempotent=True) == Stored(2, 0)
    assert await subject.table() == rows


@takes_all
@pytest.mark.parametrize("idempotent", [False, True])
async def test_extreme_values_come_back_bit_exact(subject: Subject, idempotent: bool) -> None:
    """The table has exactly each float64, microsecond and name that the receiver accepts."""
    rows = [
        Reading(PG_EPOCH_US, "a", "m", 0.0),
        Reading(PG_EPOCH_US + 1, "b", "m", 5e-324),
        Reading(PG_EPOCH_US - 1, "c", "m", -2.2250738585072009e-308),
        Reading(START_US + 999_999, "d", "m", 1.7976931348623157e308),
        Reading(4_102_444_800_000_001, "e", "m", 0.1 + 0.2),
        Reading(START_US, "\N{GREEK SMALL LETTER OMEGA}" * 128, "\U0001f321" * 64, -1.5),
        Reading(START_US, "quote'\"\\ {}%$", "; drop table readings --", 9_007_199_254_740_993.0),
    ]
    await subject.sink.write(subject.encode(rows), len(rows), idempotent=idempotent)
    found = await subject.table()
    assert found == sorted(rows)
    assert [row.value.hex() for row in found] == [row.value.hex() for row in sorted(rows)]


async def test_write_with_a_refused_row_stores_nothing_and_says_isolate(subject: Subject) -> None:
    """A plain write stores all rows or none, without doubt if the server names a row."""
    rows = with_refused(readings(10), 6)
    with pytest.raises(WriteFailed) as failed:
        await subject.sink.write(subject.encode(rows), 10, idempotent=False)
    assert failed.value.verdict is Verdict.ISOLATE
    assert failed.value.sqlstate == "23514"
    assert not failed.value.doubtful
    assert await subject.table() == []


@pytest.mark.parametrize(
    "places", [(0,), (99,), (58,), (0, 1, 2), (3, 50, 51, 98), tuple(range(0, 100, 7))]
)
async def test_isolating_write_sets_aside_the_refused_rows_only(
    subject: Subject, places: tuple[int, ...]
) -> None:
    """The refused rows come in order; all others are committed in the same call."""
    rows = with_refused(readings(100), *places)
    set_aside = SetAsides()
    stored = await subject.sink.write_isolating(subject.encode(rows, posts=3), 100, set_aside)
    assert stored == Stored(committed=100 - len(places), duplicate=0)
    (bad,) = set_aside.calls
    assert [each.row for each in bad] == list(places)
    assert {each.sqlstate for each in bad} == {"23514"}
    assert await subject.table() == sorted(row for row in rows if row.value != REFUSED_VALUE)


async def test_isolating_write_of_refused_rows_only_commits_nothing(subject: Subject) -> None:
    """All rows of a batch may be bad."""
    set_aside = SetAsides()
    rows = with_refused(readings(40), *range(40))
    assert await subject.sink.write_isolating(subject.encode(rows), 40, set_aside) == Stored(0, 0)
    assert [each.row for each in set_aside.calls[0]] == list(range(40))
    assert await subject.table() == []


async def test_sink_takes_a_row_only_if_it_is_new_and_not_refused(subject: Subject) -> None:
    """Whatever it answers, nothing is stored, and the next write works."""
    old, new = readings(3), readings(2, start=3)
    refused = with_refused(readings(2, start=10), 0, 1)
    await subject.sink.write(subject.encode(old), 3, idempotent=False)
    for rows, takes in (
        (old, False),
        (refused, False),
        ([*old, *refused, *new], True),
        ([], False),
    ):
        assert await subject.sink.takes_any(subject.encode(rows, posts=len(rows) or 1)) is takes
        assert await subject.table() == sorted(old)
    assert await subject.sink.takes_any([], like_stored=True)
    assert await subject.table() == sorted(old)
    assert await subject.sink.write(subject.encode(new), 2, idempotent=False) == Stored(2, 0)


@takes_all
async def test_empty_table_is_tried_with_a_row_of_our_own(subject: Subject) -> None:
    """The first row of all may be a bad one."""
    assert await subject.sink.takes_any([], like_stored=True)
    assert await subject.table() == []


@takes_all
async def test_isolating_write_without_refused_rows_sets_nothing_aside(subject: Subject) -> None:
    """There is no call with an empty list."""
    set_aside = SetAsides()
    assert await subject.sink.write_isolating(subject.encode(readings(9)), 9, set_aside) == Stored(
        9, 0
    )
    assert set_aside.calls == []


async def test_isolating_write_with_duplicates_counts_all_three(subject: Subject) -> None:
    """Rows that are in the table already are neither bad nor new."""
    await subject.sink.write(subject.encode(readings(30)), 30, idempotent=False)
    rows = with_refused(readings(60), 45, 10)
    set_aside = SetAsides()
    stored = await subject.sink.write_isolating(subject.encode(rows), 60, set_aside)
    assert stored == Stored(committed=29, duplicate=29)
    assert [each.row for each in set_aside.calls[0]] == [10, 45]
    assert len(await subject.table()) == 59


async def test_failing_set_aside_commits_nothing_and_passes_through(subject: Subject) -> None:
    """A row that could not be dead-lettered must not be missing from a committed batch."""
    rows = with_refused(readings(10), 3)
    with pytest.raises(OverflowError):
        await subject.sink.write_isolating(
            subject.encode(rows), 10, SetAsides(OverflowError("full"))
        )
    assert await subject.table() == []
    assert await subject.sink.write(subject.encode(readings(10)), 10, idempotent=True) == Stored(
        10, 0
    )


async def test_set_aside_happens_before_the_commit(subject: Subject) -> None:
    """While the bad rows are dead-lettered, no row is in the table."""
    seen: list[Any] = []

    async def look(_: list[Refusal]) -> None:
        seen.append(await subject.table())

    await subject.sink.write_isolating(subject.encode(with_refused(readings(5), 2)), 5, look)
    assert seen == [[]]
    assert len(await subject.table()) == 4


async def test_write_cancelled_half_way_leaves_the_sink_usable(subject: Subject) -> None:
    """The cancellation is raised. Rows that were sent may be stored once, never twice."""
    rows = readings(2_000)
    await subject.sink.open()
    task = asyncio.create_task(subject.sink.write(subject.encode(rows), 2_000, idempotent=False))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await subject.sink.write(subject.encode(rows), 2_000, idempotent=True)
    assert await subject.table() == sorted(rows)


async def test_closed_sink_opens_again(subject: Subject) -> None:
    """`close` may be called again, and the sink may be used after it."""
    assert not subject.sink.is_open
    await subject.sink.open()
    assert subject.sink.is_open
    await subject.sink.close()
    await subject.sink.close()
    assert not subject.sink.is_open
    assert await subject.sink.write(subject.encode(readings(3)), 3, idempotent=False) == Stored(
        3, 0
    )
    assert subject.sink.method in ("copy", "insert")


async def test_aborted_sink_without_a_call_opens_again(subject: Subject) -> None:
    """Abort may come at any time."""
    subject.sink.abort()
    await subject.sink.open()
    subject.sink.abort()
    rows = readings(3)
    assert await subject.sink.write(subject.encode(rows), 3, idempotent=False) == Stored(3, 0)
    assert await subject.table() == rows


async def test_write_aborted_under_way_fails_with_wait(subject: Subject) -> None:
    """The failure is doubtful if a row was sent, and writing again stores each row once."""
    rows = readings(5_000)
    await subject.sink.write(subject.encode(readings(1)), 1, idempotent=False)
    task = asyncio.create_task(subject.sink.write(subject.encode(rows), 5_000, idempotent=False))
    await asyncio.sleep(0)
    subject.sink.abort()
    with pytest.raises(WriteFailed) as failed:
        await task
    assert failed.value.verdict is Verdict.WAIT
    begins_first = subject.sink.method == "insert"
    assert failed.value.doubtful is not begins_first
    await subject.sink.write(subject.encode(rows), 5_000, idempotent=True)
    assert len(await subject.table()) == 5_000
