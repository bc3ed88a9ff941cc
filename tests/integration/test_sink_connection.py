"""The sink's connections: what waits, what pauses writes; time limits, poolers, hung sessions."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.app.metrics_and_causes import advice, next_step
from ingest.cli.doctor.checks import database_checks
from ingest.config.settings import Settings
from ingest.model.block import Refusal
from ingest.model.causes import NO_STANDBY, Verdict, WriteFailed
from ingest.model.ports import Stored
from ingest.sinks.postgres import checked_connection, durability, schema
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.connection import address, identity
from ingest.sinks.postgres.durability import examine
from ingest.system.clock import monotonic_s
from tests.support.rows import encode, readings
from tests.support.sink_ways import open_failure


async def url_failure(url: str) -> WriteFailed:
    """Open a sink that must fail, and return how."""
    return await open_failure(make_sink(url, Settings(connect_s_max=0.5, database_unsafe=True)))


async def test_nobody_listening_waits(free_port: int) -> None:
    """A refused connection says nothing about the rows."""
    failed = await url_failure(f"postgresql://postgres:secret@127.0.0.1:{free_port}/x")
    assert (failed.verdict, failed.reason) == (Verdict.WAIT, "unreachable")
    assert not failed.doubtful
    assert failed.message.startswith(f"127.0.0.1:{free_port}: ")
    assert not {"postgres", "secret"} & set(re.findall("[a-z]+", failed.message))


WAIT, HOLD = Verdict.WAIT, Verdict.HOLD


@pytest.mark.parametrize(
    ("url", "verdict", "reason", "told"),
    [
        ("postgresql://p@/p?host=/nonexistent/folder", WAIT, "unreachable", "/nonexistent/folder:"),
        ("postgresql://p@nowhere.invalid/x", WAIT, "", ""),  # the name may become known again
        ("postgresql://u@h:port/db", HOLD, "configuration", ""),
        ("mysql://u@h/db", HOLD, "configuration", ""),
        ("{}&connect_timeout=3", HOLD, "configuration", "connect_timeout"),
        ("{}&work_mem=none", HOLD, "configuration", "work_mem"),
        ("no_such_", HOLD, "database_missing", ""),
        ("nobody_knows_me", HOLD, "authentication", ""),
    ],
)
async def test_url_that_leads_nowhere_waits_or_holds(
    readings_url: str, url: str, verdict: Verdict, reason: str, told: str
) -> None:
    """A server that is not there yet is waited for. What only an operator can mend holds."""
    if url == "no_such_":
        url = readings_url.replace("@/test_", "@/no_such_")
    elif url == "nobody_knows_me":
        url = readings_url.replace("postgres@", "nobody_knows_me@")
    failed = await url_failure(url.format(readings_url))
    assert failed.verdict is verdict
    assert failed.reason.startswith(reason)
    assert told in failed.message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no_such_host"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "unreachable"),
        (TimeoutError(), "unreachable"),
    ],
)
async def test_unknown_host_is_not_taken_for_an_outage(
    error: OSError, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator has to correct the URL; a name server that is away is an outage."""

    async def connect(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncpg, "connect", connect)
    failed = await url_failure("postgresql://u@nowhere/x")
    assert (failed.verdict, failed.reason) == (Verdict.WAIT, reason)
    told = next_step(reason, advice(Settings(database_url="x"), "INGEST_DATABASE_URL"))
    assert ("Is it a container?" in told) == (reason == "no_such_host")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u:p@h:1/db", "h:1/db"),
        ("postgresql://other:q@h:1/db", "h:1/db"),
        ("postgresql://u@h", "h:5432/u"),
        ("postgresql:///?host=/run/pg&dbname=d%20b&user=u", "/run/pg/d b"),
        ("postgresql://u@h1:1,h2:2/db", "h1:1,h2:2/db"),
    ],
)
def test_identity_names_the_database_and_not_who_logs_in(url: str, named: str) -> None:
    """A new password or role is the same database."""
    assert identity(url) == named


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://u:p@h:1/db?user=u&password=p", "h:1"),
        ("postgresql://u:p@h/db", "h:5432"),
        ("postgresql://u:p@[::1]/db", "[::1]:5432"),
        ("postgresql://u:p@h1:1,h2:2/db", "h1:1,h2:2"),
        ("postgresql://u:p@%2Frun%2Fpg/db", "/run/pg"),
        ("postgresql:///db?host=h&port=7&password=p", "h:7"),
        ("postgresql:///db", "localhost:5432"),
        ("postgresql://u:p@s@h/db", "the database"),
        ("postgresql://u:12/p@h/db", "the database"),
        ("postgresql://u:12?p@h/db", "the database"),
        ("postgresql://u:12#p@h/db", "the database"),
    ],
)
def test_address_tells_where_and_never_who(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part before the @ is never shown, even if a password was not escaped."""
    for name in ("PGHOST", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    assert address(url) == told


def test_address_of_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver connects there if the URL names no other address."""
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("PGPORT", "6")
    assert address("postgresql://u@/db") == "elsewhere:6"


async def test_server_that_never_speaks_waits_within_the_deadline() -> None:
    """The kernel of a frozen server accepts connections, and no answer comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began_s = monotonic_s()
        failed = await url_failure(f"postgresql://p@127.0.0.1:{silent.getsockname()[1]}/x")
    assert failed.verdict is Verdict.WAIT
    assert failed.message.endswith(": no answer in time")
    assert monotonic_s() - began_s < 2


async def test_abort_at_any_moment_of_the_opening_fails_with_wait(readings_url: str) -> None:
    """Also between two steps of a statement, of which the driver says nothing in its own words."""
    ends = set[object]()
    for number in range(30):
        sink = make_sink(readings_url, Settings(database_unsafe=True))
        opening = asyncio.create_task(sink.open())
        opening_s = 0.0004 * number
        asyncio.get_running_loop().call_later(opening_s, sink.abort)
        try:
            await opening
            ends.add("open")
        except WriteFailed as failed:
            ends.add(failed.verdict)
        sink.abort()
        await sink.close()
    assert Verdict.WAIT in ends
    assert ends <= {Verdict.WAIT, "open"}


async def test_abort_while_connecting_ends_the_wait() -> None:
    """A drain does not wait for a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = make_sink(
            f"postgresql://p@127.0.0.1:{silent.getsockname()[1]}/x", Settings(database_unsafe=True)
        )
        task = asyncio.create_task(sink.open())
        await asyncio.sleep(0.05)
        sink.abort()
        began_s = monotonic_s()
        await asyncio.sleep(0)
        assert not task.done()
        sink.abort()  # while it ends: as when a drain's deadline and this one come together
        with pytest.raises(WriteFailed):
            await task
    assert monotonic_s() - began_s < 1


async def test_wrong_password_holds(
    readings_connection: asyncpg.Connection, readings_url: str
) -> None:
    """28P01. With the right password writing goes on."""
    operator = readings_connection
    await operator.execute("create role guarded login password 'right'")
    await operator.execute(
        "grant usage on schema public to guarded; grant all on readings to guarded"
    )
    rules = Path(await operator.fetchval("show hba_file"))
    before = rules.read_text()
    try:
        rules.write_text(f"local all guarded scram-sha-256\n{before}")
        await operator.execute("select pg_reload_conf()")
        await asyncio.sleep(0.1)
        failed = await url_failure(readings_url.replace("postgres@", "guarded:wrong@"))
        assert (failed.verdict, failed.sqlstate) == (Verdict.HOLD, "28P01")
        assert failed.reason == "authentication"
        sink = make_sink(
            readings_url.replace("postgres@", "guarded:right@"), Settings(database_unsafe=True)
        )
        assert await sink.write(encode(readings(1)), 1, idempotent=False) == Stored(1, 0)
        await sink.close()
    finally:
        rules.write_text(before)
        await operator.execute("select pg_reload_conf()")
        await operator.execute("drop owned by guarded; drop role guarded")


ROLES = {
    "53300": ("connection limit 0", Verdict.WAIT),
    "25006": ("", Verdict.WAIT),
    "42501": ("", Verdict.HOLD),
}


@pytest.mark.parametrize("sqlstate", sorted(ROLES))
async def test_role_that_is_kept_out_gets_its_verdict(
    readings_connection: asyncpg.Connection, readings_url: str, sqlstate: str
) -> None:
    """No connection left, read-only (like a standby), or no right to a temporary table."""
    operator = readings_connection
    options, verdict = ROLES[sqlstate]
    await operator.execute(f"create role limited login {options}")
    try:
        if sqlstate == "25006":
            await operator.execute("alter role limited set default_transaction_read_only = on")
        if sqlstate == "42501":
            name = await operator.fetchval("select current_database()")
            await operator.execute(f"revoke temp on database {name} from public")
        failed = await url_failure(readings_url.replace("postgres@", "limited@"))
        assert (failed.verdict, failed.sqlstate) == (verdict, sqlstate)
    finally:
        await operator.execute("drop role limited")


async def test_role_of_least_privilege_can_write_every_way(
    readings_connection: asyncpg.Connection, readings_url: str
) -> None:
    """INSERT, SELECT and TEMP are enough."""
    operator = readings_connection
    database = await operator.fetchval("select current_database()")
    await operator.execute(
        f"""create role least login; revoke temp on database {database} from public;
        alter table readings add check (value < 1000)"""
    )
    await schema.apply(operator, role="least")
    sink = make_sink(readings_url.replace("postgres@", "least@"), Settings(database_unsafe=True))
    rows = readings(10)
    assert await sink.write(encode(rows), 10, idempotent=False) == Stored(10, 0)
    assert await sink.write(encode(rows), 10, idempotent=True) == Stored(0, 10)

    async def set_aside(bad: list[Refusal]) -> None:
        assert [each.row for each in bad] == [10]

    rows.append(rows[0]._replace(value=1_000.0))
    isolated = await sink.write_isolating(encode([*rows, *readings(4, start=50)]), 15, set_aside)
    assert isolated == Stored(4, 10)
    await sink.close()
    await operator.execute("drop owned by least; drop role least")


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
