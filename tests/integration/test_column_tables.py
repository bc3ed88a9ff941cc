"""Declared tables at a real server: they are made, compared, and shown by one view."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

from ingest.app.database import partitions_ahead, timeouts
from ingest.config.settings import Settings
from ingest.model.causes import TABLES as TABLES_REASON
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.errors import StartError
from ingest.model.moments import form_of_table
from ingest.model.tables import ColumnTable, Tables
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import making, registry
from tests.support.commands import with_user
from tests.support.deployment import DEPLOY
from tests.support.rows import apply_tables

DAY_US = 86_400_000_000
SETTINGS = Settings()
CLIMATE = ColumnTable("climate", "", ("temperature", "it's"), (0, DAY_US))
CPU = ColumnTable("cpu", "cpu", ("idle", "value"), (0, 0))
TABLES = Tables([CLIMATE, CPU])
ROWS = """
insert into readings values ('2026-01-01+0', 'd', 'noise', 1);
insert into readings values ('2026-01-01+0', 'd', 'temperature', 2);
insert into climate values ('2026-01-01+0', 'd', 3, null), ('2026-01-02+0', 'd', null, 4);
insert into cpu values ('2026-01-01+0', 'd', '', 5, 6), ('2026-01-01+0', 'd', 'cpu=cpu0', 7, 8)"""
SHOWN = [
    ("cpu", 6.0),
    ("cpu,cpu=cpu0", 8.0),
    ("cpu.idle", 5.0),
    ("cpu.idle,cpu=cpu0", 7.0),
    ("it's", 4.0),
    ("noise", 1.0),
    ("temperature", 2.0),
    ("temperature", 3.0),
]


def declared(*columns: str, since_us: int = 0, name: str = "climate") -> Tables:
    """Declare one table of metrics."""
    return Tables([ColumnTable(name, "", columns, (since_us,) * len(columns))])


async def at_start(url: str, tables: Tables, *, may_make: bool = True) -> None:
    """Do what a process does at its start."""
    await making.make_column_tables(
        url,
        schema.READINGS._replace(schema="public"),
        tables.all,
        timeouts(SETTINGS),
        may_make=may_make,
        span="none",
        ahead=partitions_ahead(SETTINGS),
    )


async def test_made_tables_fit_and_a_second_time_nothing_is_done(
    operator: asyncpg.Connection,
) -> None:
    """Types, key, comments. Several processes may do it at once."""
    done = await apply_tables(operator, TABLES)
    made = ['table public."climate"', 'table public."cpu"', "view public.all_readings"]
    assert done == [f"made the {each}" for each in made]
    for table in TABLES.all:
        target = schema.ColumnTarget("public", form_of_table(table))
        assert (await schema.look(operator, target)).difference is None
    assert (
        await operator.fetchval("select col_description('climate'::regclass, 4)")
        == "iot-ingest: since 1970-01-02T00:00:00Z"
    )
    again = await apply_tables(operator, TABLES)
    assert again == [f"the {each} was there, and fits" for each in made[:2]]


async def test_view_shows_each_value_as_a_reading(operator: asyncpg.Connection) -> None:
    """A table that was declared later, or got a column later, is in it too."""
    await apply_tables(operator, declared("temperature"))
    await apply_tables(operator, Tables([CLIMATE._replace(since_us=(0, DAY_US))]))
    await operator.execute("grant select on all_readings to public")
    done = await apply_tables(operator, TABLES)
    assert done[-1] == "made the view public.all_readings"
    await operator.execute(ROWS)
    shown = "select metric, value from all_readings order by metric, value"
    assert [(*row,) for row in await operator.fetch(shown)] == SHOWN
    granted = "select has_table_privilege('pg_monitor', 'all_readings', 'select')"
    assert await operator.fetchval(granted)


@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("metric", sorted({metric for metric, _ in SHOWN}))
async def test_condition_on_a_metric_reads_one_column_only(
    operator: asyncpg.Connection, metric: str, by_time: bool
) -> None:
    """The planner leaves out the others: else a question about one reads the tables many times."""
    if by_time:
        await operator.execute("drop table readings")
        ahead = partitions_ahead(SETTINGS)
        first = await making.first_partitions(operator, "day", ahead)
        await schema.apply(operator, partitions=first)
    await apply_tables(operator, TABLES)
    if by_time:
        await operator.execute(
            ";".join(
                f"create table {name}_rest partition of {name} default"
                for name in ("climate", "cpu", "readings")
            )
        )
    await operator.execute(ROWS)
    question = f"select value from all_readings where metric = {schema.literal(metric)}"
    found = sorted(row[0] for row in await operator.fetch(question))
    assert found == [value for name, value in SHOWN if name == metric]
    rows = await operator.fetch(f"explain (costs off) {question} and ts < '2026-01-03+0'")
    plan = "\n".join(row[0] for row in rows)
    read = [line for line in plan.splitlines() if " on c" in line and "_pkey" not in line]
    assert len(read) == (metric != "noise"), plan


CHANGED = {
    "temperature since later": (
        declared("temperature", since_us=DAY_US),
        'column "temperature" of public."climate" takes readings since 1970-01-01T00:00:00Z, and '
        "is declared since 1970-01-02T00:00:00Z",
    ),
    "another column": (
        declared("humidity"),
        'column "temperature" of public."climate" is not declared any more',
    ),
    "none": (Tables(), 'table "climate" is not declared any more'),
    "another table": (
        declared("temperature", name="other"),
        'table "climate" is not declared any more',
    ),
}


@pytest.mark.parametrize("change", CHANGED)
async def test_declaration_that_would_store_readings_twice_is_refused(
    operator: asyncpg.Connection, shared_url: str, change: str
) -> None:
    """At the start of each process, and by `schema apply`. Nothing was changed."""
    await apply_tables(operator, declared("temperature"))
    tables, why = CHANGED[change]
    with pytest.raises(WriteFailed) as failed:
        await at_start(shared_url, tables)
    assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, TABLES_REASON)
    assert failed.value.message.startswith(why)
    if tables:
        with pytest.raises(StartError) as error:
            await apply_tables(operator, tables)
        assert str(error.value) == failed.value.message
    await at_start(shared_url, declared("temperature"))


async def test_columns_and_tables_with_one_fault_are_told_once(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """With the names of all of them."""
    await apply_tables(operator, TABLES)
    with pytest.raises(WriteFailed) as failed:
        await at_start(shared_url, Tables())
    assert failed.value.message.startswith('table "climate", "cpu" is not declared any more')
    with pytest.raises(WriteFailed) as failed:
        await at_start(shared_url, Tables([CPU._replace(since_us=(DAY_US, DAY_US))]))
    assert 'column "idle", value of public."cpu" takes readings' in failed.value.message


async def test_column_does_not_begin_before_readings_that_are_stored(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Such a reading, posted again, would be stored twice. What is there stays there."""
    await operator.execute(
        """insert into readings select '2026-01-01 12:00+0', 'd', metric, 1
        from unnest(array['temperature', 'cpu.idle,cpu=cpu0', 'other']) metric
        union all values (timestamptz 'infinity', 'd', 'temperature', 1.0)"""
    )
    at_us = 1_767_268_800_000_000
    for tables, column in (
        (declared("temperature", since_us=at_us), '"temperature" of "climate"'),
        (Tables([CPU]), '"idle" of "cpu"'),
    ):
        with pytest.raises(WriteFailed, match=f"column {column} is to begin at") as failed:
            await at_start(shared_url, tables)
        assert "until 2026-01-01T12:00:00Z" in failed.value.message
    after = declared("temperature", "noise", since_us=at_us + 1)
    await at_start(shared_url, after)
    await operator.execute("insert into readings values ('2026-01-02+0', 'd', 'temperature', 2)")
    await at_start(shared_url, after)  # another value of a moment that has a row


async def test_table_of_somebody_else_is_taken_once_its_comments_say_so(
    operator: asyncpg.Connection,
) -> None:
    """A hypertable, for example. What it lacks is added; what differs stays, and is told."""
    await operator.execute(
        "create table climate (ts timestamptz, device_id text not null, temperature float8, "
        "site text)"
    )
    with pytest.raises(StartError, match="was not made by us") as error:
        await apply_tables(operator, declared("temperature", "co2"))
    await operator.execute(str(error.value).partition(": ")[2])
    with pytest.raises(StartError, match="no unique key on exactly") as error:
        await apply_tables(operator, declared("temperature", "co2"))
    await operator.execute(str(error.value).partition("\n")[2])
    assert await apply_tables(operator, declared("temperature", "co2")) == [
        'added to the table public."climate": co2',
        "made the view public.all_readings",
    ]


async def test_new_table_is_like_the_table_of_readings(operator: asyncpg.Connection) -> None:
    """It has partitions, an index for devices, and the collation, if the readings have."""
    await operator.execute("drop table readings")
    await operator.execute(
        """create table readings (ts timestamptz, device_id text collate "C.utf8",
           metric text collate "C.utf8", value float8, primary key (ts, device_id, metric, value))
           partition by range (ts);
           create index readings_device_idx on readings (device_id, metric, ts)"""
    )
    kept = await registry.make(operator, "readings")
    await registry.put(operator, kept, {"table/readings": {"span": "month"}})
    done = await apply_tables(operator, TABLES)
    assert [each.partition(",")[0] for each in done] == [
        'made the table public."climate"',
        "made 8 partitions",
        'made the table public."cpu"',
        "made 8 partitions",
        "made the view public.all_readings",
    ]
    collations = """select string_agg(distinct collation_name, ' ') from information_schema.columns
        where table_name in ('climate', 'cpu', 'all_readings') and collation_name is not null"""
    assert await operator.fetchval(collations) == "C.utf8"
    indexes = "select count(*) from pg_indexes where indexname in ('climate_device_idx', $1)"
    assert await operator.fetchval(indexes, "cpu_device_idx") == 2
    await operator.execute("insert into cpu values (now(), 'd', 'x=ü', 1, 2)")
    shown = "select metric, value from all_readings where device_id = 'd' order by metric"
    rows = [(*row,) for row in await operator.fetch(shown)]
    assert rows == [("cpu,x=ü", 2.0), ("cpu.idle,x=ü", 1.0)]


async def test_something_else_of_the_views_name_is_not_replaced(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Nor is the start refused: the tables are all that a write needs."""
    await operator.execute("create view all_readings as select 1 as mine")
    with pytest.raises(StartError, match="no view of ours"):
        await apply_tables(operator, TABLES)
    await at_start(shared_url, TABLES)
    assert await operator.fetchval("select mine from all_readings") == 1


async def test_role_that_may_not_make_tables_finds_them_made(
    operator: asyncpg.Connection, shared_url: str, role: str
) -> None:
    """`schema apply --role` grants what it needs; then its start changes nothing."""
    await schema.apply(operator, role=role)
    assert (await apply_tables(operator, TABLES, role=role))[-1].startswith(f"the role {role} may")
    try:
        await at_start(with_user(shared_url, role), TABLES)
        await at_start(with_user(shared_url, role), TABLES, may_make=False)
        rights = "select has_table_privilege($1, 'all_readings', 'select')"
        assert await operator.fetchval(rights, role)
    finally:
        await operator.execute(f"drop owned by {role}")


async def test_several_processes_may_make_the_tables_at_once(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Each of them finds them made."""
    await asyncio.gather(*(at_start(shared_url, TABLES) for _ in range(4)))
    assert len(await apply_tables(operator, TABLES)) == 2


async def test_database_that_is_away_at_the_start_is_waited_for() -> None:
    """Nothing is decided then."""
    with pytest.raises(WriteFailed) as failed:
        await at_start("postgresql://nobody@127.0.0.1:1/none", TABLES)
    assert failed.value.verdict is Verdict.WAIT


@pytest.mark.parametrize(
    "typed", ["", "(select ts, device_id, metric, value from readings where true) r"]
)
async def test_dashboard_of_a_device_shows_all_tables(
    operator: asyncpg.Connection, typed: str
) -> None:
    """Each of its queries runs as a role that may only read; what it asks first is a choice."""
    board = json.loads((DEPLOY / "grafana/dashboards/device.json").read_text())
    asked = {each["name"]: each["query"] for each in board["templating"]["list"]}
    granted = "{}; grant select on {} to pg_monitor; set role pg_monitor"
    await operator.execute(granted.format("grant usage on schema public to public", "readings"))
    assert [row[0] for row in await operator.fetch(asked["table"])] == ["readings"]
    await operator.execute("reset role")
    await apply_tables(operator, TABLES)
    await operator.execute(granted.format(ROWS, "all_readings"))
    table = typed or await operator.fetchval(asked["table"])

    def filled(query: str) -> str:
        for name, text in (
            ("${table:raw}", table),
            ("${device:sqlstring}", "'d'"),
            ("${metric:sqlstring}", "'cpu.idle'"),
            ("$__timeFilter(ts)", "ts < '2027-01-01+0'"),
            ("$__interval_ms", "60000"),
        ):
            query = query.replace(name, text)
        return query

    assert [row[0] for row in await operator.fetch(filled(asked["device"]))] == ["d"]
    metrics = {row[0] for row in await operator.fetch(filled(asked["metric"]))}
    assert metrics == {"noise", "temperature"} | (set() if typed else {name for name, _ in SHOWN})
    found = [
        await operator.fetch(filled(target["rawSql"]))
        for panel in board["panels"]
        for target in panel["targets"]
    ]
    assert len(found[-1]) == (2 if typed else len(SHOWN))
    assert [row[0] for row in found[1]] == ([] if typed else [5.0])
