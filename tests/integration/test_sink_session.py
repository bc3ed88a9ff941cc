"""The session of a sink: its time limits, poolers, and connections that hang at the server."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.cli.doctor.checks import database_checks
from ingest.config.settings import Settings
from ingest.model.causes import NO_STANDBY, Verdict, WriteFailed
from ingest.model.ports import Stored
from ingest.sinks.postgres import checked_connection, durability
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.durability import examine
from tests.support.rows import encode, readings
from tests.support.sink_ways import open_failure

UNSAFE = Settings(database_unsafe=True)


async def test_time_limits_are_in_effect_and_a_session_without_them_is_refused(
    readings_url: str,
) -> None:
    """They win over the role's own. If they did not last, a pooler shares the session."""
    settings = Settings(command_s_max=3, database_unsafe=True)
    sink = make_sink(readings_url, settings)
    await sink.open()
    connection = sink.connection
    assert connection is not None
    for name, value in (
        ("statement_timeout", "2s"),
        ("lock_timeout", "600ms"),
        ("idle_in_transaction_session_timeout", "30s"),
    ):
        assert await connection.fetchval("select current_setting($1)", name) == value
    await connection.execute("set statement_timeout = 0")  # as another session has it
    with pytest.raises(WriteFailed, match="PgBouncer") as failed:
        await KnownServer().enter(connection, (2000, 600, 30_000))
    assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "configuration")
    await sink.close()


async def test_session_that_is_shared_is_named_and_all_sinks_connect_anew(
    readings_url: str, readings_connection: asyncpg.Connection[Any]
) -> None:
    """Another session than ours lacks our statement; a new one that has our mark is not new."""
    known = KnownServer(2)
    one, other = (make_sink(readings_url, UNSAFE, known=known) for _ in range(2))
    assert await one.write(encode(readings(1)), 1, idempotent=False) == Stored(1, 0)
    await other.open()
    assert one.connection is not None
    await one.connection.execute("deallocate all")  # as another session has it
    with pytest.raises(WriteFailed) as failed:
        await one.write(encode(readings(2)), 2, idempotent=False)
    assert "pool_mode = session" in failed.value.message
    assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "configuration")
    before = other.connection
    assert await other.write(encode(readings(2)), 2, idempotent=False) == Stored(1, 1)
    assert other.connection is not before
    await other.close()
    await readings_connection.execute("alter role postgres set ingest.session = 'another'")
    try:
        failed_open = await open_failure(one)
        assert (failed_open.verdict, failed_open.reason) == (Verdict.HOLD, "configuration")
    finally:
        await readings_connection.execute("alter role postgres reset ingest.session")
    assert await one.write(encode(readings(2)), 2, idempotent=False) == Stored(0, 2)
    await one.close()


async def backend_of(connection: asyncpg.Connection[Any]) -> str:
    """Return the server process of a connection, as KnownServer names it."""
    began_s = await connection.fetchval(
        "select extract(epoch from backend_start)::text from pg_stat_activity where pid = $1",
        connection.get_server_pid(),
    )
    return f"{connection.get_server_pid()} {began_s}"


async def test_process_that_got_the_pid_of_a_cut_one_is_not_ended(readings_url: str) -> None:
    """A pid is used again: perhaps for a connection of another instance, in a transaction."""
    name = {"application_name": "iot-ingest writer 0"}
    other = await asyncpg.connect(readings_url, server_settings=name)
    await other.execute("begin")
    for cut, ends in ((f"{other.get_server_pid()} 1.0", False), (await backend_of(other), True)):
        known = KnownServer(2)
        known.leave(cut)
        sink = make_sink(readings_url, UNSAFE, known=known)
        await sink.open()
        await sink.close()
        await asyncio.sleep(0.1)
        assert other.is_closed() == ends
    await other.close()


async def test_connection_that_hangs_at_the_server_counts_as_one_of_ours(
    readings_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does there: no new one is opened until it has ended."""
    monkeypatch.setattr(checked_connection, "HUNG_S", 0.05)
    known = KnownServer(2)
    hanging = await asyncpg.connect(
        readings_url, server_settings={"application_name": "iot-ingest writer 0"}
    )
    known.leave(await backend_of(hanging))
    sleep = asyncio.create_task(hanging.execute("select pg_sleep(0.5)"))
    await asyncio.sleep(0.1)
    one, other = (make_sink(readings_url, UNSAFE, known=known) for _ in range(2))
    await one.open()
    failed = await open_failure(other)
    assert (failed.verdict, failed.reason) == (Verdict.WAIT, "too_many_connections")
    assert failed.message == "1 connections that we cut still hang at the server (PgSleep)"
    await sleep
    await other.open()
    for each in (one, other, hanging):
        await each.close()


OURS = """select count(*)
from pg_stat_activity where application_name like 'iot-ingest%' and datname = current_database()"""

WAITS = """select count(*)
from pg_stat_activity where wait_event = 'SyncRep' and datname = current_database()"""


async def standby(operator: asyncpg.Connection[Any], name: str) -> None:
    """Have each commit wait for this standby; for none if it is empty."""
    await operator.execute(f"alter system set synchronous_standby_names = '{name}'")
    await operator.execute("select pg_reload_conf()")
    while await operator.fetchval("show synchronous_standby_names") != name:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_missing_standby_is_named_and_takes_no_connections(
    readings_url: str, readings_connection: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit waits for ever then. A probe commits nothing, sees ours that hang, and ends."""
    for module in (checked_connection, durability):
        monkeypatch.setattr(module, "HUNG_S", 0.3)
    known = KnownServer(2)
    settings = Settings(command_s_max=0.5, database_unsafe=True)
    names = ("iot-ingest writer 0", "iot-ingest writer 1")
    sinks = [make_sink(readings_url, settings, name=name, known=known) for name in names]
    for sink in sinks:  # a connection with the staging table drops it when it ends
        await sink.write(encode(readings(1)), 1, idempotent=True)
    await standby(readings_connection, "nobody")
    try:
        for number, sink in enumerate(sinks):
            with pytest.raises(WriteFailed) as failed:
                await sink.write(encode(readings(5, start=5 * number)), 5, idempotent=False)
            assert failed.value.verdict in (Verdict.RETRY, Verdict.WAIT)
        sinks.append(make_sink(readings_url, settings, name="iot-ingest dlq replay"))
        for sink in [*sinks, *sinks]:  # the last one is as of another process
            waits = await open_failure(sink)
            assert (waits.verdict, waits.reason) == (Verdict.WAIT, NO_STANDBY)
            assert waits.message.startswith("commits wait for a synchronous standby (")
            assert await readings_connection.fetchval(OURS) <= 4
        found = database_checks(await examine(readings_connection), settings, service_runs=True)
        (check,) = [each for each in found if each.name == "standby"]
        assert check.state == "FAIL"
    finally:
        await standby(readings_connection, "")
    while await readings_connection.fetchval(WAITS):  # noqa: ASYNC110  # another process ends that
        await asyncio.sleep(0.01)
    for number, sink in enumerate(sinks[:2]):
        rows = encode(readings(5, start=5 * number))
        stored = await sink.write(rows, 5, idempotent=True)
        assert stored.committed + stored.duplicate == 5
    assert await readings_connection.fetchval("select count(*) from readings") == 10
    for sink in sinks:
        await sink.close()
