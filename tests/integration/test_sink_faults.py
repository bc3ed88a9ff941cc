"""The sink when the server freezes, locks, hangs up or is cut off: in time, and never twice."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.sinks.postgres import durability
from ingest.sinks.postgres.connection import text_of
from ingest.sinks.postgres.schema import TargetTable
from ingest.sinks.postgres.sink import SinkPostgres
from ingest.system.clock import monotonic_s
from tests.support.faulty_proxy import FaultyProxy
from tests.support.rows import encode, readings

QUICK: dict[str, Any] = {
    "database_unsafe": True,  # the tests' server does not fsync
    "connect_s_max": 0.5,
    "command_s_max": 0.5,
}
COUNT = "select count(*) from readings"
FATAL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"  # fields of a message
LAZY = """create function lazy() returns trigger language plpgsql as $$ begin
    perform pg_sleep(20); return null; end $$;
create trigger lazy before insert on readings for each statement execute function lazy()"""


@pytest.fixture
async def sink(operator: asyncpg.Connection, shared_url: str) -> AsyncIterator[SinkPostgres]:
    """Give an open sink with short deadlines."""
    sink = make_sink(shared_url, Settings(**QUICK), name="under test")
    await sink.open()
    yield sink
    await sink.close()


@pytest.fixture
async def line(operator: asyncpg.Connection, shared_url: str) -> AsyncIterator[FaultyProxy]:
    """Give a TCP connection to the server's socket, through a proxy of the test."""
    query = parse_qs(urlsplit(shared_url).query)
    async with FaultyProxy.to_unix(f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}") as line:
        yield line


def by_tcp(url: str, line: FaultyProxy) -> str:
    """Return the URL of the same database by this proxy."""
    return f"postgresql://postgres@127.0.0.1:{line.port}{urlsplit(url).path}"


async def failure(sink: SinkPostgres, rows: list[Reading], *, idempotent: bool = False) -> Any:
    """Write rows that must fail, and return how."""
    with pytest.raises(WriteFailed) as failed:
        await sink.write(encode(rows), len(rows), idempotent=idempotent)
    return failed.value


async def backend_pid(operator: asyncpg.Connection) -> int:
    """Return the process that serves the sink."""
    return int(
        await operator.fetchval(
            "select pid from pg_stat_activity where application_name = 'under test'"
        )
    )


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process, and continue it in the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def until(operator: asyncpg.Connection, query: str, expected: object) -> None:
    """Wait until a query returns the expected value, some seconds at most."""
    for _ in range(500):
        if await operator.fetchval(query) == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {expected}: {query}")


async def test_locked_table_is_retried(sink: SinkPostgres, operator: asyncpg.Connection) -> None:
    """The server sends 55P03 before any deadline of ours. It is told who, and no value of it."""
    await operator.execute("set application_name = 'a-migration'")
    async with operator.transaction():
        await operator.execute("lock table readings; update readings set value = 12345")
        failed = await failure(sink, readings(5))
    assert (failed.verdict, failed.sqlstate) == (Verdict.RETRY, "55P03")
    process = f"process {operator.get_server_pid()} of the database locks the table"
    told = "a-migration, idle in transaction, in a transaction for 00:00:00, last command lock"
    assert failed.message.partition("; ")[2] == f"{process}, {told}"
    assert not failed.doubtful
    assert await sink.write(encode(readings(5)), 5, idempotent=True) == Stored(5, 0)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_slow_statement_is_stopped_by_the_server(
    sink: SinkPostgres, operator: asyncpg.Connection, idempotent: bool
) -> None:
    """57014 is a definite answer. Our own deadline is later."""
    await operator.execute(LAZY)
    failed = await failure(sink, readings(5), idempotent=idempotent)
    assert (failed.verdict, failed.sqlstate) == (Verdict.RETRY, "57014")
    assert not failed.doubtful


async def test_backend_terminated_in_a_copy_waits_in_doubt(
    shared_url: str, operator: asyncpg.Connection
) -> None:
    """57P01, or a closed connection: it is not known whether the rows are stored."""
    await operator.execute(LAZY)
    sink = make_sink(shared_url, Settings(database_unsafe=True), name="under test")
    await sink.open()
    task = asyncio.create_task(failure(sink, readings(5)))
    await asyncio.sleep(0.1)
    pid = await backend_pid(operator)
    await operator.execute("select pg_terminate_backend($1, 5000)", pid)
    failed = await task
    assert failed.verdict is Verdict.WAIT
    assert failed.doubtful


async def test_connection_lost_while_idle_is_replaced_unseen(
    sink: SinkPostgres, operator: asyncpg.Connection
) -> None:
    """A restart between two batches costs no failed batch."""
    pid = await backend_pid(operator)
    await operator.execute("select pg_terminate_backend($1, 5000)", pid)
    await asyncio.sleep(0.05)
    assert await sink.write(encode(readings(5)), 5, idempotent=False) == Stored(5, 0)


async def test_transaction_whose_connection_was_cut_is_told_in_words(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """The driver names its own method, which hides why."""
    other = await asyncpg.connect(shared_url)

    async def cut() -> None:
        async with other.transaction():
            await operator.execute("select pg_terminate_backend($1, 5000)", other.get_server_pid())
            while not other.is_closed():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    with pytest.raises(asyncpg.InterfaceError) as raised:
        await cut()
    assert text_of(raised.value) == "the server closed the connection"


async def test_write_after_the_last_message_of_a_server_is_a_closed_connection(
    sink: SinkPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that stops sends FATAL before it closes: the text says so, no error is logged."""
    assert sink.connection is not None
    protocol: Any = sink.connection._protocol  # type: ignore[attr-defined]
    protocol.data_received(b"E" + (4 + len(FATAL)).to_bytes(4) + FATAL)
    failed = await failure(sink, readings(5))
    assert (failed.verdict, failed.message) == (Verdict.WAIT, "the server closed the connection")
    del protocol
    gc.collect()  # a future whose exception nobody has read is logged when it is removed
    await asyncio.sleep(0)
    assert not caplog.records
    assert await sink.write(encode(readings(5)), 5, idempotent=True) == Stored(5, 0)


async def test_connection_cut_as_its_last_reply_came_waits(
    sink: SinkPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a process stood still, reply and deadline come at once, and the deadline counts."""
    real = durability.findings

    async def cut_after(connection: asyncpg.Connection, target: TargetTable) -> Any:
        found = await real(connection, target)
        connection.terminate()
        return found

    monkeypatch.setattr(durability, "findings", cut_after)
    monkeypatch.setattr(sink.tables[None], "checked_s", float("-inf"))  # a look is due
    rows = encode(readings(5))
    with pytest.raises(WriteFailed) as failed:
        await sink.write(rows, 5, idempotent=False)
    assert failed.value.verdict is Verdict.WAIT
    monkeypatch.undo()
    assert await sink.write(rows, 5, idempotent=False) == Stored(5, 0)


async def test_late_commit_of_a_frozen_backend_is_no_double(
    line: FaultyProxy, shared_url: str, operator: asyncpg.Connection
) -> None:
    """A time-out does not mean "not written": the rows come late, and the retry finds them."""
    sink = make_sink(by_tcp(shared_url, line), Settings(**QUICK), name="under test")
    await sink.open()
    rows = readings(500)
    line.stall("to_client")  # the way back stays open, as over a real network
    with frozen(await backend_pid(operator)):
        failed = await failure(sink, rows)
        assert (failed.verdict, failed.sqlstate) == (Verdict.RETRY, None)
        assert failed.doubtful
        assert await operator.fetchval(COUNT) == 0
    await until(operator, COUNT, 500)
    line.resume()
    assert await sink.write(encode(rows), 500, idempotent=True) == Stored(0, 500)
    assert await operator.fetchval(COUNT) == 500
    await sink.close()


@pytest.mark.parametrize("count", [10, 20_000])
async def test_frozen_backend_is_left_in_time(
    sink: SinkPostgres, operator: asyncpg.Connection, count: int
) -> None:
    """The deadline holds whether or not the batch fits into the socket. Rows are stored once."""
    rows = readings(count)
    with frozen(await backend_pid(operator)):
        began_s = monotonic_s()
        failed = await failure(sink, rows)
        assert 0.4 < monotonic_s() - began_s < 1.5
        assert (failed.verdict, failed.doubtful) == (Verdict.RETRY, True)
    stored = await sink.write(encode(rows), count, idempotent=True)
    assert stored.committed + stored.duplicate == count
    assert await operator.fetchval(COUNT) == count


async def test_time_out_before_the_commit_leaves_no_doubt(
    sink: SinkPostgres, operator: asyncpg.Connection
) -> None:
    """On the idempotent path no row is stored until COMMIT is sent."""
    with frozen(await backend_pid(operator)):
        failed = await failure(sink, readings(5), idempotent=True)
    assert failed.verdict is Verdict.RETRY
    assert not failed.doubtful


async def test_cancellation_and_close_do_not_wait_for_a_frozen_backend(
    sink: SinkPostgres, operator: asyncpg.Connection
) -> None:
    """The driver's own way to cancel asks the server first."""
    with frozen(await backend_pid(operator)):
        task = asyncio.create_task(sink.write(encode(readings(5)), 5, idempotent=False))
        await asyncio.sleep(0.05)
        began_s = monotonic_s()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert monotonic_s() - began_s < 0.3
    await sink.open()
    pid = await operator.fetchval(
        """select pid from pg_stat_activity where application_name = 'under test'
        and state = 'idle' order by backend_start desc limit 1"""
    )
    with frozen(pid):
        began_s = monotonic_s()
        await sink.close()
        assert monotonic_s() - began_s < 1.5


async def test_abort_while_rows_are_dead_lettered_commits_nothing(
    sink: SinkPostgres, operator: asyncpg.Connection
) -> None:
    """The commit fails on the cut connection, with doubt."""
    await operator.execute("alter table readings add check (value <> 0)")

    async def set_aside(_: object) -> None:
        sink.abort()

    with pytest.raises(WriteFailed) as failed:
        await sink.write_isolating(encode(readings(5)), 5, set_aside)
    assert failed.value.verdict is Verdict.WAIT
    assert await operator.fetchval(COUNT) == 0


async def test_lost_reply_of_a_commit_is_doubt_and_the_retry_no_double(
    line: FaultyProxy, shared_url: str, operator: asyncpg.Connection
) -> None:
    """The same on the idempotent path, where only the COMMIT can leave a doubt."""
    await operator.execute(
        """create function lazy() returns trigger language plpgsql as $$ begin
            perform pg_sleep(0.3); return null; end $$;
        create constraint trigger lazy after insert on readings deferrable initially deferred
            for each row execute function lazy()"""
    )
    sink = make_sink(by_tcp(shared_url, line), Settings(database_unsafe=True), name="under test")
    await sink.open()
    task = asyncio.create_task(failure(sink, readings(1), idempotent=True))
    under_way = "select query from pg_stat_activity where application_name = 'under test'"
    await until(operator, under_way, "commit")
    line.lose_replies(until=b"COMMIT\0")
    failed = await task
    assert (failed.verdict, failed.doubtful) == (Verdict.WAIT, True)
    assert await sink.write(encode(readings(1)), 1, idempotent=True) == Stored(0, 1)
    await sink.close()


async def test_tcp_connection_notices_a_dead_peer(line: FaultyProxy, shared_url: str) -> None:
    """Keepalive is on, in uvloop too, whose socket object cannot set it."""
    sink = make_sink(by_tcp(shared_url, line), Settings(database_unsafe=True))
    await sink.open()
    connection: Any = sink.connection
    fileno = connection._transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(fileno)) as same:
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
    await sink.close()
