"""The recipe in deploy/ partitions a plain table while others write, or says why it cannot.

Each time psql runs the file, as an operator does it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from ingest.app.database import make_sink
from ingest.cli.psql import find_psql
from ingest.config.settings import Settings
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping.partitions import DAY_US
from ingest.sinks.postgres.housekeeping.table_state import PARTITIONED, PLAIN, look_at
from tests.support.commands import Here
from tests.support.documents import commands, marked
from tests.support.rows import encode, readings
from tests.system.service import REPOSITORY

(BLOCK,) = marked("docs/run/database.md", "test_partition_recipe.py")
(_, *PSQL, FILE), ADOPT, HOUSEKEEPING = commands(BLOCK)
RECIPE = (REPOSITORY / FILE).read_text()
UNTIL = "ingest_partition_until"
DECLARED = """
[[table]]
name = "climate"
metrics = ["temperature"]
since = 2026-01-01T00:00:00Z
"""
OLD = "insert into readings select '2026-01-01'::timestamptz + n * interval '1 min', 'old', 'm', n"


async def partition(url: str, before: str = "", **values: str) -> tuple[int, str]:
    """Run the recipe with these values; return the exit code, and what was said.

    `before` are settings of the session, as a role or a database may have them.
    """
    text = before + RECIPE
    for name, value in values.items():
        text, found = re.subn(
            f"set recipe.{name} = '[^']*'", f"set recipe.{name} = '{value}'", text
        )
        assert found == 1
    process = await asyncio.create_subprocess_exec(
        *(find_psql(), "--no-psqlrc", *PSQL, "-", url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(text.encode())
    assert process.returncode is not None
    return process.returncode, said.decode()


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[list[int]]:
    """Write batches all the time by a sink that never checks the table by itself."""
    settings = Settings(
        schema_check_s=3_600.0,
        database_unsafe=True,
    )
    sink = make_sink(url, settings)
    stop = asyncio.Event()
    written = [0]

    async def write() -> None:
        while not stop.is_set():
            rows = readings(20, start=written[0], device="live")
            stored = await sink.write(encode(rows), 20, idempotent=True)
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


async def test_table_is_partitioned_while_a_sink_writes(
    operator: asyncpg.Connection, shared_url: str, here: Here
) -> None:
    """No write fails, each reading is there once, and housekeeping goes on after `adopt`."""
    await operator.execute(f"{OLD} from generate_series(1, 5000) n")
    async with writing(shared_url) as written:
        code, said = await partition(shared_url)
        assert (code, "step 3 of 3" in said) == (0, True), said
    assert await operator.fetchval("select count(*) from readings") == 5_000 + written[0]
    view = await look_at(operator, "readings", "day")
    assert (view.kind, view.ours) == (PARTITIONED, False)
    (old,) = view.partitions
    assert old.name.startswith("readings_before_2")
    assert old.to_us % DAY_US == 0
    assert old.to_us >= view.now_us + 2 * DAY_US
    assert (await schema.look(operator)).difference is None
    url = ("--database-url", shared_url)
    assert "readings has no partition x" in (await here("schema", "adopt", "x", *url)).stderr
    none = ("--partition-span", "none", *url)
    assert "set partition_span" in (await here("schema", "adopt", "--yes", *none)).stderr
    done = await here("schema", "adopt", *url)
    assert (done.code, "would be adopted: readings_before_" in done.stdout) == (1, True)
    assert (await here(*ADOPT, *url)).code == 0
    assert "none: the housekeeping has all" in (await here("schema", "adopt", *url)).stdout
    assert (await here(*HOUSEKEEPING, *url)).code == 0
    view = await look_at(operator, "readings", "day")
    assert view.ours
    assert all(each.ours for each in view.partitions)
    assert view.spans_ahead >= 8
    code, said = await partition(shared_url)
    assert (code, "has partitions already" in said) == (3, True), said


async def test_declared_table_is_partitioned_once_the_view_of_all_readings_is_away(
    operator: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """Both tables in turn; then `apply` makes the view again, and `since` is still known."""
    declared = tmp_path / "tables.toml"
    declared.write_text(DECLARED)
    url = ("--database-url", shared_url, "--tables-file", str(declared))
    assert (await here("schema", "apply", *url)).code == 0
    await operator.execute("insert into climate values ('2026-01-01', 'd', 1)")
    code, said = await partition(shared_url)
    assert (code, "view all_readings" in said) == (3, True), said
    await operator.execute("drop view all_readings")
    for name in ("readings", "climate"):
        code, said = await partition(shared_url, readings=name)
        assert code == 0, said
        words = ("schema", "adopt", "--yes", "--table-name", name, *url[:2])
        assert (await here(*words)).code == 0
    assert "made the view public.all_readings" in (await here("schema", "apply", *url)).stdout
    assert await operator.fetchval("select value from all_readings") == 1.0
    assert (await here("schema", "show", *url)).code == 0
    assert (await here("housekeeping", "run", *url)).code == 0
    for name in ("readings", "climate"):
        view = await look_at(operator, name, "day")
        assert (view.ours, view.spans_ahead >= 8) == (True, True)


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
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """No index is built: those of the old table are attached to the new ones, under new names."""
    await operator.execute(SET_UP)
    try:
        await operator.execute(f"{OLD} from generate_series(1, 100) n")
        before = await operator.fetchrow(RIGHTS)
        files = "select relfilenode from pg_class where relname {} order by 1"
        had = await operator.fetch(
            files.format("in ('readings_pkey', 'readings_device_idx', 'Odd \"index')")
        )
        assert len(had) == 3
        code, said = await partition(shared_url, span="month")
        assert code == 0, said
        assert await operator.fetchrow(RIGHTS) == before
        assert await operator.fetch(files.format("~ '^readings_before_[0-9]+_[123]$'")) == had
        count = "select count(*) from pg_index join pg_class c on c.oid = indrelid where relname {}"
        assert await operator.fetchval(count.format("like 'readings%'")) == 6
        (old,) = (await look_at(operator, "readings", "month")).partitions
        assert old.name.endswith("01")
        assert UNTIL not in str(await operator.fetch("select conname from pg_constraint"))
    finally:
        await operator.execute("alter default privileges revoke delete on tables from reader")
        await operator.execute(GONE)


REFUSED = {
    "create view v as select * from readings": "on view v",
    "create materialized view v as select device_id from readings": "on materialized view v",
    "create table other (r readings)": "column r of table other",
    "create rule r as on delete to readings do also notify x": "it has rules, which you drop: r",
    "create publication p for table readings": "it is published: take it out",
    "alter table readings enable row level security": "row security",
    "create table child () inherits (readings)": "tables inherit from it",
    "alter table readings set unlogged": "unlogged",
    "create unique index u on readings (device_id)": "cannot be kept; drop it: u",
    "alter table readings add constraint c check (value > 0) not valid": "NOT VALID or NO INHERIT",
    "alter table readings add n int generated always as identity": "their identity or default: n",
    "alter table readings add n serial": "their identity or default: n",
    "alter table readings add unique (ts, device_id, metric, value); create table other (ts "
    "timestamptz, d text, m text, v float8, foreign key (ts, d, m, v) references readings "
    "(ts, device_id, metric, value))": "foreign keys",
    "create function f() returns trigger language plpgsql as 'begin return new; end'; create "
    "trigger t before insert on readings for each row execute function f()": "on the new table: t",
    "insert into readings values ('2200-01-01', 'd', 'm', 1)": "all readings until 2200-01-02",
}


async def test_what_would_not_follow_the_table_is_a_reason_before_anything_is_done(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Each of these would be lost, or go on with the old part alone. Nothing was changed."""
    for change, reason in REFUSED.items():
        await operator.execute("drop schema public cascade; create schema public")
        await schema.apply(operator)
        await operator.execute(change)
        code, said = await partition(shared_url)
        assert (code, reason in said) == (3, True), (change, said)
        assert UNTIL not in str(await operator.fetch("select conname from pg_constraint"))
        await operator.execute("drop publication if exists p")
    code, said = await partition(shared_url, readings="nothing")
    assert (code, "there is no table nothing" in said) == (3, True), said


async def test_what_an_earlier_run_or_version_has_begun_is_continued(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """It may have ended after each step. An end that has come too near is set anew.

    A lock of another session holds the last step until it is cut off there: nothing is half done.
    """
    begun = f"alter table readings add constraint {UNTIL} check (ts < timestamptz '{{}}') {{}}"
    soon = await operator.fetchval("select (now() + interval '1 hour')::text")
    later = await operator.fetchval("select (current_date + 9)::timestamptz::text")
    await operator.execute(begun.format(soon, ""))
    other = await asyncpg.connect(shared_url)
    async with other.transaction():
        await other.execute("insert into readings values (now(), 'd', 'm', 1)")
        running = asyncio.create_task(partition(shared_url))
        waiting = "select exists (select from pg_locks where not granted)"
        while not await operator.fetchval(waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await operator.execute(
            "select pg_terminate_backend(pid) from pg_locks where not granted and pid is not null"
        )
        assert (await running)[0] != 0
    assert (await look_at(operator, "readings", "day")).kind == PLAIN
    code, said = await partition(shared_url)
    assert (code, "continued" in said) == (0, False), said
    assert await operator.fetchval("select count(*) from readings") == 1
    for checked in ("", "not valid"):
        await operator.execute("drop table readings")
        await schema.apply(operator)
        await operator.execute(begun.format(later, checked))
        code, said = await partition(shared_url)
        assert (code, "continued" in said) == (0, True), said
        assert (await look_at(operator, "readings", "day")).kind == PARTITIONED
    await other.close()


async def test_lock_of_the_last_step_has_a_bound(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """All who read or write wait for it. If it takes too long, all of it is undone."""
    await operator.execute("""create function slow() returns event_trigger language plpgsql
        as 'begin perform pg_sleep(20); end'; create event trigger slow on ddl_command_end
        when tag in ('CREATE TABLE') execute function slow()""")
    try:
        code, said = await partition(shared_url)
    finally:
        await operator.execute("drop event trigger slow")
    assert (code, "statement timeout" in said) == (3, True), said
    assert (await look_at(operator, "readings", "day")).kind == PLAIN
    code, said = await partition(shared_url)
    assert (code, "continued" in said) == (0, True), said


async def test_session_with_another_form_of_times_reads_the_same_time(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """This one prints the names of zones, and older servers read IST as that of Israel."""
    before = "set datestyle = 'German'; set timezone = 'Asia/Kolkata';"
    code, said = await partition(shared_url, before)
    assert (code, " 00:00:00+00 only" in said) == (0, True), said
    (old,) = (await look_at(operator, "readings", "day")).partitions
    assert old.to_us % DAY_US == 0
