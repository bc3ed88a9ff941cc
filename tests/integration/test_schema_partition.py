"""A plain table becomes partitioned while others write: all of it follows, or it says why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from ingest.app.writing import make_sink
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import conversion
from ingest.sinks.postgres.housekeeping.conversion_check import UNTIL
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, PLAIN, look_at
from ingest.system.clock import rfc3339
from tests.support.commands import Here
from tests.support.rows import encode, readings

AHEAD_US = 86_400_000_000
OLD = "insert into readings select '2026-01-01'::timestamptz + n * interval '1 min', 'old', 'm', n"


async def convert(
    connection: asyncpg.Connection, table: str = "readings", wait_s_max: float = 60.0
) -> str:
    """Turn the table; return what was said."""
    said: list[str] = []
    await conversion.convert(
        connection, table, "day", AHEAD_US, say=said.append, wait_s_max=wait_s_max
    )
    return "\n".join(said)


@asynccontextmanager
async def writing(url: str, way: str) -> AsyncIterator[list[int]]:
    """Write batches all the time by a sink that never checks the table by itself."""
    settings = Settings(
        write_method="insert" if way == "insert" else "copy",
        schema_check_s=3_600.0,
        database_unsafe=True,
    )
    sink = make_sink(url, settings)
    stop = asyncio.Event()
    written = [0]

    async def write() -> None:
        while not stop.is_set():
            rows = readings(20, start=written[0], device="live")
            stored = await sink.write(encode(rows), 20, idempotent=way == "staged")
            assert stored.committed == 20
            written[0] += 20

    task = asyncio.create_task(write())
    try:
        while not written[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield written
        before = written[0]
        while written[0] == before:
            assert not task.done(), task
            await asyncio.sleep(0.01)
    finally:
        stop.set()
        await task
        await sink.close()


async def _grown(written: list[int], task: asyncio.Task[None]) -> None:
    before = written[0]
    while written[0] == before:
        assert not task.done(), task
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["copy", "staged", "insert"])
async def test_table_is_partitioned_while_a_sink_writes(
    operator: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """No write fails, in none of the ways; each reading is there once; the sink goes on."""
    await operator.execute(f"{OLD} from generate_series(1, 5000) n")
    async with writing(shared_url, way) as written:
        said = await convert(operator)
    assert "it was locked for" in said
    assert await operator.fetchval("select count(*) from readings") == 5_000 + written[0]
    view = await look_at(operator, "readings", "day")
    assert (view.kind, view.ours) == (PARTITIONED, True)
    (old,) = view.partitions
    assert old.ours
    assert old.to_us % AHEAD_US == 0
    assert old.to_us >= view.now_us + 2 * AHEAD_US
    assert (await schema.look(operator)).difference is None


SET_UP = """
create role keeper; create role reader; create role "odd Role";
grant create, usage on schema public to keeper;
alter table readings add note text default 'none', add constraint sane check (value > -1e9);
create index readings_device_idx on readings (device_id, metric, ts);
create index "Odd ""index" on readings (value) where value > 10;
comment on table readings is 'it''s ours'; comment on column readings.note is 'a note';
comment on index readings_device_idx is 'for devices';
alter table readings owner to keeper;
grant insert, select on readings to "odd Role"; grant select on readings to public;
grant update (note) on readings to reader; grant select on readings to reader with grant option;
alter default privileges grant delete on tables to reader
"""
RIGHTS = """select relowner::regrole::text, obj_description(oid, 'pg_class'),
array(select acl::text from unnest(relacl) acl order by 1),
array(select row(attname, attacl, format_type(atttypid, atttypmod), attcollation, attnotnull,
      col_description(attrelid, attnum))::text from pg_attribute
      where attrelid = pg_class.oid and attnum > 0 order by attname),
array(select row(conname, pg_get_constraintdef(oid))::text from pg_constraint
      where conrelid = pg_class.oid order by conname),
array(select replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') from pg_index
      where indrelid = pg_class.oid order by 1)
from pg_class where oid = 'readings'::regclass"""
GONE = """drop schema public cascade; create schema public;
drop owned by reader, "odd Role", keeper;
drop role keeper, reader, "odd Role" """


async def test_rights_owner_comments_and_indexes_are_those_of_the_old_table(
    operator: asyncpg.Connection,
) -> None:
    """No index is built: those of the old table are attached to the new ones, under new names."""
    await operator.execute(SET_UP)
    try:
        await operator.execute(f"{OLD} from generate_series(1, 100) n")
        before = await operator.fetchrow(RIGHTS)
        files = "select relfilenode from pg_class where relname = any ($1) order by 1"
        indexes = ["readings_pkey", "readings_device_idx", 'Odd "index']
        had = await operator.fetch(files, indexes)
        await operator.execute("set client_min_messages = debug1")
        told: list[str] = []
        operator.add_log_listener(lambda _, message: told.append(message.message))
        await convert(operator)
        assert any("is implied by existing constraints" in each for each in told), "it was read"
        assert await operator.fetchrow(RIGHTS) == before
        (old,) = (await look_at(operator, "readings", "day")).partitions
        now = [f"{old.name}_pkey", f"{old.name}_device_idx", f"{old.name}_2_idx"]
        assert await operator.fetch(files, now) == had
        assert (
            await operator.fetchval(
                "select count(*) from pg_index i join pg_class c on c.oid "
                "= indrelid where relname like 'readings%'"
            )
            == 6
        )
        owner = "select relowner::regrole::text from pg_class where relname = 'ingest_housekeeping'"
        assert await operator.fetchval(owner) == "keeper"
        assert UNTIL not in str(await operator.fetch("select conname from pg_constraint"))
    finally:
        await operator.execute("alter default privileges revoke delete on tables from reader")
        await operator.execute(GONE)


REFUSED = {
    "create view v as select * from readings": "view v",
    "create materialized view v as select device_id from readings": "view v",
    "create table other (r readings)": "column r of table other",
    "create rule r as on delete to readings do also notify x": "rules (r)",
    "create publication p for table readings": "publication, and add it again",
    "alter table readings enable row level security": "row security",
    "create table child () inherits (readings)": "tables inherit from it",
    "alter table readings set unlogged": "unlogged",
    "create unique index u on readings (device_id)": "unique index without the time (u)",
    "alter table readings add constraint c check (value > 0) not valid": "NOT VALID or NO INHERIT",
    "alter table readings add n int generated always as identity": "sequence (n)",
    "alter table readings add n serial": "sequence (n)",
    "alter table readings add unique (ts, device_id, metric, value); create table other (ts "
    "timestamptz, d text, m text, v float8, foreign key (ts, d, m, v) references readings "
    "(ts, device_id, metric, value))": "foreign keys",
    "create function f() returns trigger language plpgsql as 'begin return new; end'; create "
    "trigger t before insert on readings for each row execute function f()": "triggers (t)",
    "insert into readings values ('2200-01-01', 'd', 'm', 1)": "2200-01-01T00:00:00Z",
}


async def test_what_would_not_follow_the_table_is_a_reason_before_anything_is_done(
    operator: asyncpg.Connection,
) -> None:
    """Each of these would be lost, or go on with the old part alone. Nothing was changed."""
    for change, reason in REFUSED.items():
        await operator.execute("drop schema public cascade; create schema public")
        await schema.apply(operator)
        await operator.execute(change)
        with pytest.raises(StartError, match="cannot be partitioned") as refused:
            await convert(operator)
        assert reason in str(refused.value), refused.value
        assert UNTIL not in str(await operator.fetch("select conname from pg_constraint"))
        await operator.execute("drop publication if exists p")


async def test_other_kinds_of_tables_are_refused(operator: asyncpg.Connection) -> None:
    """No table, a view, and one that is partitioned already."""
    await convert(operator)
    for table, reason in {"readings": "partitioned already", "nothing": "no such table"}.items():
        with pytest.raises(StartError, match=reason):
            await convert(operator, table)
    await operator.execute("drop table readings; create view readings as select 1 as ts")
    with pytest.raises(StartError, match="not a plain table"):
        await convert(operator)


async def test_table_in_use_gives_up_and_the_next_run_goes_on(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """A long transaction is named. What was done stays, and can be taken back."""
    other = await asyncpg.connect(shared_url, server_settings={"application_name": "report"})
    holding = other.transaction()
    await convert_until_checked(operator)
    await holding.start()
    await other.execute("select count(*) from readings")
    with pytest.raises(StartError, match=r"in use .* report \(process \d+, idle in transaction"):
        await convert(operator, wait_s_max=0.2)
    await holding.rollback()
    assert await conversion.take_back(operator, "readings")
    assert not await conversion.take_back(operator, "readings")
    await convert_until_checked(operator)
    plan = await conversion.planned(operator, "readings", "day", AHEAD_US)
    assert plan.begun
    assert plan.plain.checked
    assert "continued" in conversion.in_words(plan)[-1]
    said = await convert(operator)
    assert said.startswith("step 3 of 3: public.readings has partitions")
    await other.close()


async def test_taken_name_of_the_first_partition_is_told_before_anything_is_done(
    operator: asyncpg.Connection,
) -> None:
    """Else the constraint would stay, and refuse each reading from the next day on."""
    name = (await conversion.planned(operator, "readings", "day", AHEAD_US)).name
    await operator.execute(f"create table {name} ()")
    with pytest.raises(StartError, match=f"{name}: rename that table"):
        await convert(operator)
    assert not await conversion.take_back(operator, "readings")


SLOW = """create function slow() returns event_trigger language plpgsql
as 'begin perform pg_sleep(10); end';
create event trigger slow on ddl_command_end when tag in ('CREATE TABLE')
execute function slow()"""


async def test_change_that_takes_too_long_is_undone(
    operator: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers wait for a bounded time, whatever the server has to do. The next run ends it."""
    monkeypatch.setattr(conversion, "HOLD_S_MAX", 0.2)
    await operator.execute(SLOW)
    try:
        with pytest.raises(StartError, match=r"would have taken longer than 0\.2 s"):
            await convert(operator)
    finally:
        await operator.execute("drop event trigger slow")
    assert (await look_at(operator, "readings", "day")).kind == PLAIN
    monkeypatch.undo()
    await convert(operator)


async def convert_until_checked(connection: asyncpg.Connection) -> None:
    """Do the first two steps."""
    plan = await conversion.planned(connection, "readings", "day", AHEAD_US)
    until = plan.until_us // 1_000_000
    await connection.execute(
        f"alter table readings add constraint {UNTIL} "
        f"check (ts < timestamptz '{rfc3339(until * 1_000_000)}')"
    )


async def test_end_of_an_earlier_run_that_has_come_too_near_is_set_anew(
    operator: asyncpg.Connection,
) -> None:
    """A run was killed days ago: its constraint would soon refuse readings."""
    near = await operator.fetchval("select (now() + interval '1 hour')::text")
    await operator.execute(
        f"alter table readings add constraint {UNTIL} check (ts < timestamptz '{near}') not valid"
    )
    await convert(operator)
    view = await look_at(operator, "readings", "day")
    assert view.partitions[0].to_us > view.now_us + AHEAD_US


async def test_commands_say_what_they_would_do_and_do_it_with_yes(
    here: Here, readings_url: str
) -> None:
    """`partition` makes the later partitions too; `adopt` lets retention have those of others."""
    url = ("--database-url", readings_url)
    day = ("--partition-span", "day")
    none = ("--partition-span", "none", *url)
    assert "set partition_span" in (await here("schema", "partition", "--yes", *none)).stderr
    done = await here("schema", "partition", *day, *url)
    assert done.code == 1
    assert "It becomes one partition, readings_before_" in done.stdout
    assert "repeat it with --yes" in done.stdout
    assert "nothing to undo" in (await here("schema", "partition", "--undo", *url)).stdout
    done = await here("schema", "partition", "--yes", *day, *url)
    assert done.code == 0, done.stderr
    assert "partitions made for the time after it: " in done.stdout
    done = await here("schema", "partition", "--yes", *day, *url)
    assert (done.code, done.stderr) == (0, "")
    assert "already\npartitions made for the time after it: 0" in done.stdout
    assert "none: the housekeeping has all" in (await here("schema", "adopt", *day, *url)).stdout
    connection = await asyncpg.connect(readings_url)
    await connection.execute("delete from ingest_housekeeping")
    done = await here("schema", "partition", "--yes", *day, *url)
    assert (done.code, "it is partitioned already" in done.stderr) == (2, True)
    assert "readings has no partition x" in (await here("schema", "adopt", "x", *url)).stderr
    done = await here("schema", "adopt", *day, *url)
    assert (done.code, "would be adopted: readings_before_" in done.stdout) == (1, True)
    assert "set partition_span" in (await here("schema", "adopt", "--yes", *none)).stderr
    assert (await here("schema", "adopt", "--yes", *day, *url)).code == 0
    view = await look_at(connection, "readings", "day")
    assert view.ours
    assert all(each.ours for each in view.partitions)
    await connection.close()
