"""The sink, when a real server refuses: the verdict of each code, and the row at fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.block import HEADER, Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.sinks.postgres.sink import SinkPostgres
from tests.support.rows import START_US, encode, readings

BAD_VALUE = -666.0
RAISE = """create function refuse() returns trigger language plpgsql as $$ begin
    if new.value = -666 then {} end if; return new; end $$;
create trigger refuse {} on readings for each row execute function refuse()"""


@dataclass
class Bench:
    """A sink and an operator's connection to the same fresh table."""

    url: str
    operator: asyncpg.Connection
    sink: SinkPostgres

    async def count(self) -> int:
        """Return the rows in the table."""
        return int(await self.operator.fetchval("select count(*) from readings"))

    async def failure(self, rows: list[Reading], *, idempotent: bool = False) -> WriteFailed:
        """Write rows that must fail, and return how."""
        with pytest.raises(WriteFailed) as failed:
            await self.sink.write(encode(rows), len(rows), idempotent=idempotent)
        return failed.value

    async def isolate(self, rows: list[Reading]) -> tuple[Stored, list[Refusal]]:
        """Write rows, and collect the refused ones."""
        aside: list[Refusal] = []

        async def set_aside(bad: list[Refusal]) -> None:
            aside.extend(bad)

        return await self.sink.write_isolating(encode(rows), len(rows), set_aside), aside


@pytest.fixture
async def bench(shared_url: str, operator: asyncpg.Connection) -> AsyncIterator[Bench]:
    """Give a sink on a fresh table."""
    sink = make_sink(shared_url, Settings(database_unsafe=True))
    yield Bench(shared_url, operator, sink)
    await sink.close()


def with_bad(count: int, *places: int) -> list[Reading]:
    """Give rows of which those at `places` have the value that the operator refuses."""
    return [
        row._replace(value=BAD_VALUE) if place in places else row
        for place, row in enumerate(readings(count))
    ]


ROW_FAULTS = {
    "23514": "alter table readings add constraint sane check (value > -600)",
    "P0001": RAISE.format("raise 'no such value';", "before insert"),
    "23502": RAISE.format("new.value := null;", "before insert"),
    "22001": "alter table readings add narrow varchar(3);"
    + RAISE.format("new.narrow := 'abcdef';", "before insert"),
    "22003": RAISE.format("new.value := 1e308 * 1e308;", "before insert"),
    "23503": """create table known (value float8 primary key);
        insert into known select n * 0.1::float8 from generate_series(0, 99) n;
        alter table readings add foreign key (value) references known""",
    "23505": """insert into readings values ('2020-01-01+0', 'other', 'other', -666);
        create unique index one_value on readings (value)""",
    "23P01": """insert into readings values ('2020-01-01+0', 'other', 'other', -666);
        alter table readings add constraint alone exclude using btree (value with =)""",
    "53400": RAISE.format("raise using errcode = '53400', message = 'limit';", "before insert"),
    # Incompressible, and longer than an index row may be.
    "54000": """create function wide() returns text immutable language sql as
        $$ select string_agg(md5(n::text), '') from generate_series(1, 400) n $$;
        create index wide on readings ((case when value = -666 then wide() else '' end))""",
    "54001": RAISE.format("perform deeper(1);", "before insert")
    + "; create function deeper(int) returns int language plpgsql as"
    " $$ begin return deeper($1 + 1); end $$",
    "P0004": RAISE.format("assert false, 'never';", "before insert"),
}


@pytest.mark.parametrize("sqlstate", sorted(ROW_FAULTS))
async def test_row_fault_isolates_and_names_its_row(bench: Bench, sqlstate: str) -> None:
    """With one bad row in 100, a plain write stores none, and an isolating one stores 99."""
    await bench.operator.execute(ROW_FAULTS[sqlstate])
    before = await bench.count()
    failed = await bench.failure(with_bad(100, 58))
    assert (failed.verdict, failed.sqlstate) == (Verdict.ISOLATE, sqlstate)
    assert not failed.doubtful
    assert await bench.count() == before
    stored, aside = await bench.isolate(with_bad(100, 58))
    assert stored == Stored(99, 0)
    assert [(each.row, each.sqlstate) for each in aside] == [(58, sqlstate)]
    assert await bench.count() == before + 99


@pytest.mark.parametrize("sqlstate", ["23503", "23505"])
async def test_deferred_constraint_is_found_before_the_commit(bench: Bench, sqlstate: str) -> None:
    """If it were checked at the COMMIT, no row would be named."""
    if sqlstate == "23503":
        deferred = ROW_FAULTS["23503"] + " deferrable initially deferred"
    else:
        deferred = """insert into readings values ('2020-01-01+0', 'other', 'other', -666);
            alter table readings add constraint c unique (value) deferrable initially deferred"""
    await bench.operator.execute(deferred)
    failed = await bench.failure(with_bad(60, 41))
    assert (failed.verdict, failed.sqlstate) == (Verdict.ISOLATE, sqlstate)
    stored, aside = await bench.isolate(with_bad(60, 7, 41))
    assert stored == Stored(58, 0)
    assert [each.row for each in aside] == [7, 41]


async def test_nul_in_a_name_isolates_its_row(bench: Bench) -> None:
    """22021. The receiver accepts no such name."""
    rows = readings(50)
    rows[17] = rows[17]._replace(metric="nul\0nul")
    failed = await bench.failure(rows)
    assert (failed.verdict, failed.sqlstate, failed.row) == (Verdict.ISOLATE, "22021", 17)
    _, aside = await bench.isolate(rows)
    assert [(each.row, each.sqlstate) for each in aside] == [(17, "22021")]


async def test_duplicates_and_bad_rows_together_are_told_apart(bench: Bench) -> None:
    """On the idempotent path the server names no row. Halving finds it."""
    await bench.sink.write(encode(readings(100)), 100, idempotent=False)
    await bench.operator.execute(ROW_FAULTS["P0001"])
    rows = with_bad(120, 3, 64, 119)
    stored, aside = await bench.isolate(rows)
    assert [each.row for each in aside] == [3, 64, 119]
    assert stored == Stored(committed=19, duplicate=98)


async def test_batch_of_bad_rows_only_takes_bounded_work(bench: Bench) -> None:
    """2,000 bad rows are found in a second: ranges shrink, so few rows are sent twice."""
    await bench.operator.execute(ROW_FAULTS["23514"])
    stored, aside = await bench.isolate(
        [Reading(START_US + n, "d", "m", -601.0 - n) for n in range(2_000)]
    )
    assert stored == Stored(0, 0)
    assert [each.row for each in aside] == list(range(2_000))


HOLDS = {
    "23502": ("alter table readings add site text not null", "schema"),
    "42P01": ("drop table readings", "schema"),
    "42703": ("alter table readings rename value to val", "schema"),
    "42501": ("revoke all on readings from writer", "permission"),
    "42883": ("alter table readings alter value type bigint", "schema"),
    "08P01": ("alter table readings alter value type numeric", "schema"),
    "XX000": (RAISE.format("raise using errcode = 'XX000';", "before insert"), "internal"),
    "58030": (RAISE.format("raise using errcode = '58030';", "before insert"), "internal"),
    "TS103": (RAISE.format("raise using errcode = 'TS103';", "before insert"), "schema"),
    "3F000": (RAISE.format("perform 1 from no.such;", "before insert"), "schema"),
}


@pytest.mark.parametrize("sqlstate", sorted(HOLDS))
async def test_operators_fault_holds_with_its_reason(bench: Bench, sqlstate: str) -> None:
    """The write itself finds it, between two checks of the table, and stores nothing."""
    await bench.operator.execute(
        """drop role if exists writer; create role writer login;
        grant usage on schema public to writer; grant insert, select on readings to writer"""
    )
    sink = make_sink(bench.url.replace("postgres@", "writer@"), Settings(database_unsafe=True))
    await sink.open()
    statement, reason = HOLDS[sqlstate]
    await bench.operator.execute(statement)
    with pytest.raises(WriteFailed) as failed:
        await sink.write(encode(with_bad(10, 5)), 10, idempotent=False)
    assert failed.value.verdict is Verdict.HOLD
    assert failed.value.reason == reason
    assert not failed.value.doubtful
    if sqlstate == "42883":
        assert failed.value.message == "column value of readings is bigint instead of float8"
    if sqlstate != "42P01":
        assert await bench.count() == 0
    await sink.close()
    await bench.operator.execute("drop owned by writer; drop role writer")


RETRIES = ["40001", "40P01", "55000", "55006", "57014", "55P03"]


@pytest.mark.parametrize("sqlstate", RETRIES)
@pytest.mark.parametrize("isolating", [False, True])
async def test_batchs_bad_luck_is_retried(bench: Bench, sqlstate: str, isolating: bool) -> None:
    """The whole batch is written again. An isolating write that is interrupted stores nothing."""
    await bench.operator.execute(
        RAISE.format(f"raise using errcode = '{sqlstate}', message = 'hm';", "before insert")
    )
    if isolating:
        with pytest.raises(WriteFailed) as raised:
            await bench.isolate(with_bad(10, 5))
        failed = raised.value
    else:
        failed = await bench.failure(with_bad(10, 5))
    assert (failed.verdict, failed.sqlstate) == (Verdict.RETRY, sqlstate)
    assert not failed.doubtful
    assert await bench.count() == 0


@pytest.mark.parametrize("sqlstate", ["53100", "53200", "53000", "57P03"])
async def test_server_out_of_resources_is_waited_for(bench: Bench, sqlstate: str) -> None:
    """It does not count as a try of the batch."""
    await bench.operator.execute(
        RAISE.format(f"raise using errcode = '{sqlstate}', message = 'hm';", "before insert")
    )
    failed = await bench.failure(with_bad(10, 5))
    assert (failed.verdict, failed.sqlstate) == (Verdict.WAIT, sqlstate)


@pytest.mark.parametrize("damage", ["22P04", "22P03"])
async def test_bytes_that_are_no_rows_hold(bench: Bench, damage: str) -> None:
    """A fault of our encoding would refuse every row, so none is dead-lettered."""
    (data,) = encode(readings(2))
    if damage == "22P04":
        broken = data[:-8] + HEADER
    else:
        broken = data.replace(b"\0\0\0\x08", b"\0\0\0\x07", 1)
    with pytest.raises(WriteFailed) as failed:
        await bench.sink.write([broken], 2, idempotent=False)
    assert failed.value.verdict is Verdict.HOLD
    assert failed.value.reason == "protocol"
    assert await bench.count() == 0


async def test_partition_without_room_isolates_and_with_it_takes_duplicates(bench: Bench) -> None:
    """In a partitioned table the violated key is that of a partition, which counts as ours."""
    await bench.operator.execute(
        """alter table readings rename to old; alter index readings_pkey rename to old_pkey;
        create table readings (like old, primary key (ts, device_id, metric, value))
            partition by range (ts);
        create table part partition of readings for values from ('2025-10-01') to ('2025-11-01')"""
    )
    rows = readings(20)
    assert await bench.sink.write(encode(rows), 20, idempotent=False) == Stored(20, 0)
    assert await bench.sink.write(encode(rows), 20, idempotent=False) == Stored(0, 20)
    outside = Reading(1_700_000_000_000_000, "d", "m", 1.0)
    stored, aside = await bench.isolate([*readings(5, start=50), outside, *rows])
    assert [(each.row, each.sqlstate) for each in aside] == [(5, "23514")]
    assert stored == Stored(5, 20)


async def test_run_of_duplicates_takes_the_idempotent_path_for_a_while(bench: Bench) -> None:
    """A COPY that fails on a duplicate is lost. New rows lead back to plain COPY."""
    statements = "select query from pg_stat_activity where application_name = 'iot-ingest'"
    rows = readings(10)
    for _ in range(3):
        await bench.sink.write(encode(rows), 10, idempotent=False)
    await bench.sink.write(encode(readings(10, start=100)), 10, idempotent=False)
    assert await bench.operator.fetchval(statements) == "commit"
    for start in range(200, 400, 10):
        await bench.sink.write(encode(readings(10, start=start)), 10, idempotent=False)
    assert "; copy " in await bench.operator.fetchval(statements)
    assert await bench.count() == 220
