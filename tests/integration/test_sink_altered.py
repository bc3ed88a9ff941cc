"""What an operator does to the table between two checks, and under load: writes notice it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import structlog

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.errors import Refused
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.model.tables import NO_TABLES
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.lookup import Lookup
from ingest.system.clock import monotonic_s
from tests.support.commands import with_user
from tests.support.rows import START_US, encode, readings
from tests.support.sink_ways import WAYS, sink_for, write

COUNT = "select count(*) from readings"


RULE = "create rule r as on insert to readings do instead nothing"
NO_KEY = "alter table readings drop constraint readings_pkey"
NOT_NULL = """ts timestamptz not null, device_id text collate "C" not null,
metric text collate "C" not null, value double precision not null"""
KEYED = "add primary key (ts, device_id, metric, value)"
BY_NAME = "alter table readings rename to old; alter table new rename to readings"
WRONG = {
    RULE: ("a rule for INSERT", "drop rule r on readings"),
    NO_KEY: ("no unique key", f"alter table readings {KEYED}"),
    f"drop table readings; create table readings ({NOT_NULL})": (
        "no unique key",
        f"alter table readings {KEYED}",
    ),
}


@pytest.mark.parametrize("way", ["copy", "staged", "insert"])  # "isolating" begins as "staged"
async def test_what_would_change_or_double_a_reading_stops_the_next_write(
    operator: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """A rule, a dropped key, a table made again without a key. Once fixed, writing goes on."""
    sink = sink_for(way, shared_url)
    await write(sink, way, readings(1))
    for change, (found, fix) in WRONG.items():
        await operator.execute(f"truncate readings; {change}")
        with pytest.raises(WriteFailed, match=found) as failed:
            await write(sink, way, readings(5))
        assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "schema")
        assert not failed.value.doubtful
        assert await operator.fetchval(COUNT) == 0
        await operator.execute(fix)
        assert await write(sink, way, readings(5)) == Stored(5, 0)
    await sink.close()


@pytest.mark.parametrize("way", ["copy", "staged", "insert"])  # "isolating" begins as "staged"
async def test_what_changes_no_reading_stops_no_write(
    operator: asyncpg.Connection, shared_url: str, way: str
) -> None:
    """The same write checks the table in full, and stores its rows. A new table is an event."""
    sink = sink_for(way, shared_url)
    number = 0
    for change in (
        "select 1",
        "alter table readings add site text",
        "create index on readings (metric)",
        "truncate readings",
    ):
        await operator.execute(change)
        number += 10
        assert await write(sink, way, readings(10, start=number)) == Stored(10, 0), change
    await operator.execute(f"create table new ({NOT_NULL}); alter table new {KEYED}; {BY_NAME}")
    with structlog.testing.capture_logs() as lines:
        assert await write(sink, way, readings(7)) == Stored(7, 0)
    assert await operator.fetchval(COUNT) == 7
    (event,) = [each for each in lines if each["event"] == "table_replaced"]
    assert (event["log_level"], event["table"]) == ("warning", "public.readings")
    assert event["oid"] == await operator.fetchval("select 'readings'::regclass::oid::int8")
    assert event["oid_was"] == await operator.fetchval("select 'old'::regclass::oid::int8")
    await sink.close()


OTHERS_TABLE = f"alter table readings rename to old; create table readings ({NOT_NULL})"
SWAPPED = {  # what is there instead of our table, and the reason and the message then
    f"{OTHERS_TABLE}; alter table readings {KEYED}": (
        "permission",
        "INSERT and SELECT on public.readings are not granted to the role plain_role",
    ),
    f"{OTHERS_TABLE}; alter table readings {KEYED}; grant select on readings to plain_role": (
        "permission",
        "INSERT on public.readings is not granted to the role plain_role",
    ),
    "revoke select on readings from plain_role": (
        "permission",
        "SELECT on public.readings is not granted to the role plain_role",
    ),
    "alter table readings rename to old; create view readings as table old": (
        "schema",
        "readings is a view; a table is needed: nothing else has the unique key that makes a retry "
        "safe. Name a table (table_name); a trigger of yours may feed another one; "
        "INSERT and SELECT on public.readings are not granted to the role plain_role",
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_table_of_another_owner_names_the_right_that_is_not_granted(
    operator: asyncpg.Connection, shared_url: str, role: str, way: str
) -> None:
    """The server says "permission denied" only. No row is at fault, and none is tried alone."""
    sink = sink_for(way, with_user(shared_url, role))
    try:
        for change, (reason, message) in SWAPPED.items():
            await operator.execute("drop schema public cascade; create schema public")
            await schema.apply(operator, role=role)
            assert await write(sink, way, readings(1)) == Stored(1, 0)
            await operator.execute(change)
            with pytest.raises(WriteFailed) as failed:
                await write(sink, way, readings(3))
            found = failed.value
            assert (found.verdict, found.may_be_row) == (Verdict.HOLD, False)
            assert (found.reason, found.message) == (reason, message)
    finally:
        await sink.close()
        await operator.execute(f"drop owned by {role}")


async def test_page_says_that_the_table_may_not_be_read(
    operator: asyncpg.Connection, shared_url: str, role: str
) -> None:
    """The database does answer, so the page must not say that it is away only."""
    await operator.execute(f"grant usage on schema public to {role}")
    lookup = Lookup(lambda: with_user(shared_url, role), tables=NO_TABLES)
    try:
        with pytest.raises(Refused, match="SELECT is not granted") as refused:
            await lookup.newest(1)
        assert refused.value.code == "database_away"
    finally:
        await lookup.close()
        await operator.execute(f"drop owned by {role}")


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_change_that_a_write_waits_for_is_seen_by_it(
    operator: asyncpg.Connection, shared_url: str, isolation: str
) -> None:
    """The check comes after the lock, and sees what was committed meanwhile."""
    await operator.execute(f"alter role postgres set default_transaction_isolation = '{isolation}'")
    sinks = {way: sink_for(way, shared_url) for way in WAYS}
    try:
        for sink in sinks.values():
            await sink.open()
        await operator.execute("begin isolation level read committed")
        await operator.execute("alter table readings alter ts type timestamptz(0)")
        writes = [
            asyncio.create_task(write(sink, way, [readings(1)[0]._replace(device_id=way)]))
            for way, sink in sinks.items()
        ]
        waiting = "select count(*) from pg_locks where not granted and relation = $1::regclass"
        while await operator.fetchval(waiting, "readings") < len(WAYS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await operator.execute("commit")
        for failed in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(failed, WriteFailed)
            assert "timestamp(0)" in failed.message
        assert await operator.fetchval(COUNT) == 0
    finally:
        await operator.execute("alter role postgres reset default_transaction_isolation")
        for sink in sinks.values():
            await sink.close()


async def test_table_that_comes_earlier_on_the_search_path_is_not_written_to(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """The schema is found once: an open connection and a new one use it, in each way."""
    known = KnownServer(2)
    sinks = [sink_for(way, shared_url, known) for way in ("copy", "insert")]
    assert await write(sinks[0], "copy", readings(1)) == Stored(1, 0)
    lookup = Lookup(lambda: shared_url, known, tables=NO_TABLES)
    await operator.execute("create schema postgres")  # "$user" is first on the search_path
    try:
        await operator.execute("create table postgres.readings (like readings including all)")
        for number, way in enumerate(("copy", "staged", "isolating"), start=1):
            assert await write(sinks[0], way, readings(1, start=number)) == Stored(1, 0)
        assert await write(sinks[1], "insert", readings(1, start=9)) == Stored(1, 0)
        assert await operator.fetchval("select count(*) from postgres.readings") == 0
        assert await operator.fetchval("select count(*) from public.readings") == 5
        assert known.target.name == "public.readings"
        found = await lookup.newest(10)
        assert len(found["readings"]) == 5
        await lookup.close()
    finally:
        await operator.execute("drop schema postgres cascade")
        for sink in sinks:
            await sink.close()


OTHER_TYPES = {
    "value": ["bigint", "numeric", "real", "integer", "text"],
    "ts": ["timestamp", "date", "text", "timestamptz(0)", "timestamptz(3)"],
    "device_id": ["varchar", "bytea", "name"],
    "metric": ["varchar(300)", "bytea"],
}


async def test_other_column_type_holds_whatever_the_way(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """This holds between two checks too, and if the bytes would fit. Then writing goes on."""
    ours = {"value": "float8", "ts": "timestamptz", "device_id": "text", "metric": "text"}
    sinks = {way: sink_for(way, shared_url) for way in WAYS}

    async def each_writes_one() -> None:
        for way, sink in sinks.items():
            await write(sink, way, readings(1))
            assert await operator.fetchval("select count(*) from readings") == 1
            await operator.execute("truncate readings")

    await each_writes_one()
    for column, others in OTHER_TYPES.items():
        for other in others:
            await operator.execute(f"alter table readings alter {column} type {other} using null")
            for way, sink in sinks.items():
                with pytest.raises(WriteFailed) as failed:
                    await write(sink, way, readings(10))
                told = (failed.value.verdict, failed.value.reason)
                assert told == (Verdict.HOLD, "schema"), (other, way)
                assert f"column {column} of readings is" in failed.value.message
                assert await operator.fetchval("select count(*) from readings") == 0
            await operator.execute(
                f"alter table readings alter {column} type {ours[column]} using null"
            )
            await each_writes_one()  # each opens anew
    for sink in sinks.values():
        await sink.close()


@pytest.mark.parametrize("least_s", [1, pytest.param(4, marks=pytest.mark.slow)])
async def test_type_altered_and_back_under_load_stores_no_wrong_value(
    operator: asyncpg.Connection, shared_url: str, least_s: int
) -> None:
    """Four writers, four ways, and a column that is bigint half of the time: all values exact."""
    stop = asyncio.Event()
    stored: dict[str, int] = dict.fromkeys(WAYS, 0)
    held: dict[str, int] = dict.fromkeys(WAYS, 0)
    blamed: dict[str, int] = dict.fromkeys(WAYS, 0)

    async def load(way: str) -> None:
        sink = sink_for(way, shared_url)
        number = 0
        while not stop.is_set():
            rows = [
                Reading(START_US + number + each, way, "m", number + each + 0.5)
                for each in range(20)
            ]
            try:
                await write(sink, way, rows)
                stored[way] += 20
                number += 20
            except WriteFailed as failed:
                held[way] += failed.verdict is Verdict.HOLD
                blamed[way] += failed.verdict is Verdict.ISOLATE
                await asyncio.sleep(0)
        await sink.close()

    async with asyncio.TaskGroup() as group:
        for way in WAYS:
            group.create_task(load(way))
        began_s = monotonic_s()
        enough_s, most_s = began_s + least_s, began_s + 30
        while monotonic_s() < enough_s or (not all(held.values()) and monotonic_s() < most_s):
            await operator.execute(
                "truncate readings; alter table readings alter value type bigint"
            )
            await asyncio.sleep(0.02)
            assert await operator.fetchval("select count(*) from readings") == 0
            await operator.execute("alter table readings alter value type float8")
            await asyncio.sleep(0.05)
            wrong = await operator.fetchval(
                """select count(*) from readings where value - floor(value) <> 0.5
                or value - 0.5 <> (extract(epoch from ts) * 1000000)::int8 - $1""",
                START_US,
            )
            assert wrong == 0
        stop.set()
    assert min(stored.values()) > 0
    assert min(held.values()) > 0
    assert max(blamed.values()) == 0


async def test_missing_key_holds_at_the_next_look(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Without the key a retry would store rows twice, and only this check can notice that."""
    sink = make_sink(shared_url, Settings(schema_check_s=0.1, database_unsafe=True))
    await sink.write(encode(readings(1)), 1, idempotent=False)
    await operator.execute("alter table readings drop constraint readings_pkey")
    await asyncio.sleep(0.15)
    with pytest.raises(WriteFailed, match="unique key") as failed:
        await write(sink, "copy", readings(5))
    assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "schema")
    await operator.execute("alter table readings add unique (metric, value, device_id, ts)")
    assert await sink.write(encode(readings(5)), 5, idempotent=False) == Stored(4, 1)
    await sink.close()
