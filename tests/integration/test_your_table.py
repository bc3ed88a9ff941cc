"""A table with other names: each way to write, the page's questions, the commands, a wide view."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from ingest.app.database import make_sink, make_target
from ingest.config.settings import Settings
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.errors import StartError
from ingest.model.ports import Stored
from ingest.sinks.postgres import schema
from loadgen.proof.table import refuses, stream_rows
from loadgen.proof.table_names import TableNames
from tests.support.commands import Here
from tests.support.documents import commands, marked
from tests.support.rows import encode, readings

NAMES = {
    "table_schema": 'Plant "1"',
    "table_name": "order",
    "column_ts": "time",
    "column_device_id": "Gerät ID",
    "column_metric": "it's",
    "column_value": "va\\lue.%s",
}
TABLE = '"Plant ""1"""."order"'
COLUMNS = '"time", "Gerät ID", "it\'s", "va\\lue.%s"'
FLAGS = [word for name, value in NAMES.items() for word in (f"--{name}".replace("_", "-"), value)]


def named(**more: object) -> Settings:
    """Return settings with the names, and more."""
    return Settings(**NAMES, database_unsafe=True, **more)  # type: ignore[arg-type]


@pytest.fixture
async def plant(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give a connection to a database that has the schema, and a decoy named `readings`."""
    await connection.execute(
        'drop schema if exists "Plant ""1""" cascade; create schema "Plant ""1""";'
        "create table readings (decoy int)"
    )
    return connection


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Give a stack of what is to be closed at the end, also of a test that fails."""
    async with AsyncExitStack() as stack:
        yield stack


async def count(plant: asyncpg.Connection) -> int:
    """Return how many rows the table has."""
    found: int = await plant.fetchval(f"select count(*) from {TABLE}")
    return found


@pytest.mark.parametrize("method", ["copy", "insert"])
async def test_every_way_writes_to_a_table_with_other_names(
    plant: asyncpg.Connection, shared_url: str, closing: AsyncExitStack, method: str
) -> None:
    """New rows, rows again, rows that are refused, and an ALTER TABLE between two writes."""
    settings = named(write_method=method)
    await schema.apply(plant, make_target(settings), device_index=True)
    sink = make_sink(shared_url, settings)
    closing.push_async_callback(sink.close)
    rows = readings(20)
    assert await sink.write(encode(rows), 20, idempotent=False) == Stored(20, 0)
    assert await sink.write(encode(rows), 20, idempotent=False) == Stored(0, 20)
    assert await sink.write(encode(readings(25)), 25, idempotent=True) == Stored(5, 20)
    await plant.execute(
        f'alter table {TABLE} add constraint sane check ("va\\lue.%s" not between 2.65 and 2.75)'
    )
    more = readings(10, start=25)
    with pytest.raises(WriteFailed) as failed:
        await sink.write(encode(more), 10, idempotent=False)
    assert (failed.value.verdict, failed.value.constraint) == (Verdict.ISOLATE, "sane")
    kept: list[int] = []

    async def set_aside(bad: object) -> None:
        kept.extend(each.row for each in bad)  # type: ignore[attr-defined]

    assert await sink.write_isolating(encode(more), 10, set_aside) == Stored(9, 0)
    assert kept == [2]
    assert await sink.takes_any([], like_stored=True)
    assert await count(plant) == 34
    await plant.execute(f'alter table {TABLE} rename column "time" to "when"')
    with pytest.raises(WriteFailed, match='no column "time"') as failed:
        await sink.write(encode(readings(1, start=90)), 1, idempotent=False)
    assert failed.value.verdict is Verdict.HOLD


async def test_commands_name_the_table_of_the_settings(
    plant: asyncpg.Connection, here: Here, shared_url: str, role: str, closing: AsyncExitStack
) -> None:
    """`schema apply`, `show`, `doctor` and `loadgen verify` all mean the same table."""
    at = ["--database-url", shared_url, *FLAGS]
    closing.push_async_callback(plant.execute, f"drop owned by {role}")
    assert (await here("schema", "show", *at)).code == 1
    done = await here(
        "schema", "apply", "--device-index", "--role", role, "--partition-span", "day", *at
    )
    made = done.stdout.splitlines()
    assert (done.code, done.stderr) == (0, "")
    assert made[0] == f"made the table {TABLE}"
    assert made[1].endswith("partitions, one for each day")
    assert made[2] == 'made the index "order_device_idx"'
    assert made[3] == f"the role {role} may write and read the table"
    shown = await here("schema", "show", *at)
    assert (shown.code, shown.stdout.splitlines()[0]) == (0, f"table {TABLE}")
    doctor = json.loads((await here("doctor", "--json", *at)).stdout)
    checks = {each["name"]: each for each in doctor}
    assert checks["table"]["detail"] == f"{TABLE} is correct"
    assert checks["privileges"]["state"] == "ok"
    names = TableNames(TABLE, *COLUMNS.split(", "))
    assert await refuses(shared_url, names, time.time_ns() // 1000, "d") is False
    await plant.execute(f"insert into {TABLE} ({COLUMNS}) values (now(), 'run-1', 'm', 1)")
    rows: list[object] = []
    await stream_rows(shared_url, names, "run-", rows.extend)
    assert len(rows) == 1


async def test_missing_schema_and_a_taken_name_of_the_index_are_told(
    plant: asyncpg.Connection, here: Here, shared_url: str
) -> None:
    """We make no schema, and an index of that name on another table is not ours."""
    done = await here(
        *("schema", "apply", "--database-url", shared_url, "--table-schema", "no such"),
    )
    assert done.code == 2
    assert 'there is no schema "no such": create it first' in done.stderr
    target = make_target(named())
    await plant.execute("create index order_device_idx on public.readings (decoy)")
    await plant.execute('alter table readings set schema "Plant ""1"""')
    with pytest.raises(asyncpg.DuplicateTableError):
        await schema.apply(plant, target, device_index=True)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        ("create view {} as select 1 as ts", "view"),
        ("create materialized view {} as select 1 as ts", "materialized view"),
        (
            "create extension if not exists file_fdw; create server files "
            "foreign data wrapper file_fdw; create foreign table {} (ts timestamptz) "
            "server files options (filename '/dev/null')",
            "foreign table",
        ),
    ],
)
async def test_target_that_is_no_table_is_told(
    plant: asyncpg.Connection, shared_url: str, make: str, kind: str
) -> None:
    """Writes are paused, nothing is lost, and the message says why and what to do."""
    try:
        await plant.execute(make.format(TABLE))
    except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFileError):
        pytest.skip("this PostgreSQL has no file_fdw")
    sink = make_sink(shared_url, named())
    with pytest.raises(WriteFailed) as failed:
        await sink.open()
    assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "schema")
    assert failed.value.message.startswith(f'"order" is a {kind}; a table is needed')
    with pytest.raises(StartError, match=r"table_name.*trigger of yours"):
        await schema.apply(plant, make_target(named()))
    await plant.execute("drop extension if exists file_fdw cascade")


# A wide view


async def test_wide_view_has_a_column_for_each_metric(
    plant: asyncpg.Connection, here: Here, shared_url: str
) -> None:
    """It is printed, made, and gets more columns; names need no care. Grants stay."""
    at = ["--database-url", shared_url, *FLAGS]
    await schema.apply(plant, make_target(named()))
    odd = 'a "b", it\'s \\n'
    await plant.executemany(
        f"insert into {TABLE} ({COLUMNS}) values (to_timestamp($1), 'd', $2, $3)",
        [(1, "heat", 3), (1, "heat", 2), (1, odd, 5), (2, "x", 1)],
    )
    (block,) = marked("docs/run/database.md", "test_your_table.py")
    (words,) = commands(block.replace("climate", "'My climate'"))
    *view, flag, _ = words
    metrics = 'heat,"' + odd.replace('"', '""') + '"'
    printed = await here(*view, flag, "heat", *at)
    assert printed.code == 0
    assert "-- Nothing was made" in printed.stdout
    name = '"Plant ""1"""."My climate"'
    assert await plant.fetchval("select to_regclass($1)", name) is None
    made = await here(*view, "--metrics", "heat", "--yes", *at)
    assert made.stdout.startswith(f"made the view {name}\n")
    await plant.execute(f"grant select on {name} to public")
    made = await here(*view, "--metrics", metrics, "--yes", *at)
    assert (made.code, made.stderr) == (0, "")
    rows = await plant.fetch(f"select * from {name}")
    assert [tuple(each)[1:] for each in rows] == [("d", 2, 5)]
    assert list(rows[0].keys()) == ["time", "Gerät ID", "heat", odd]
    assert await plant.fetchval(
        "select relacl::text ~ '=r/' from pg_class where oid = $1::regclass", name
    )
    fewer = await here(*view, "--metrics", "x", "--yes", *at)
    assert fewer.code == 2
    assert "drop it first" in fewer.stderr


async def test_wide_view_touches_nothing_of_others(
    plant: asyncpg.Connection, here: Here, shared_url: str
) -> None:
    """A table, a view of somebody else, and names that cannot be those of columns are refused."""
    at = ["--database-url", shared_url]
    view = ["schema", "view", "--yes", "--wide"]
    missing = await here(*view, "w", "--metrics", "m", *at, "--table-name", "none")
    assert "there is no table" in missing.stderr
    await plant.execute("drop table readings; create view theirs as select 1 as x")
    await schema.apply(plant)
    for words, said in (
        (("readings", "--metrics", "m"), "no view of ours"),
        (("theirs", "--metrics", "m"), "no view of ours"),
        (("w", "--metrics", "a,a"), "two columns"),
        (("w", "--metrics", "ts"), "two columns ts"),
        (("w", "--metrics", "é" * 32), "has 64 bytes"),
        (("w", "--metrics", "a,,b"), "has 0 bytes"),
        (("x" * 64, "--metrics", "m"), "the view"),
        (("w", "--metrics", '"a'), "no list of names"),
    ):
        done = await here(*view, *words, *at)
        assert (done.code, said in done.stderr) == (2, True), done
    assert await plant.fetchval("select to_regclass('w')") is None
