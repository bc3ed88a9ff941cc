"""Connections to PostgreSQL: how one is made, how it is cut, and what its errors say.

Promises: no exchange takes longer than its deadline. The driver's own time-outs ask the server to
cancel, and wait for its answer. A frozen server never answers, so here the socket is cut instead.
A connection that a command yields turns each failure into a StartError, without a password in its
text. All others let the driver's errors pass through.
Does not: judge errors of a write; sqlstate.py does.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from ingest.config.values import is_torn, mask_url
from ingest.model.causes import CONFIGURATION, NO_SUCH_HOST, UNREACHABLE
from ingest.model.errors import StartError
from ingest.sinks.postgres.sqlstate import reason_for

# What an annex needs of asyncpg, which only this folder knows.
Connection = asyncpg.Connection
Record = asyncpg.Record
PostgresError = asyncpg.PostgresError

HUNG_S = 5.0  # a server process that is so long at one statement hangs, if its client is gone
HOUSEKEEPING = "iot-ingest housekeeping"  # as pg_stat_activity shows it
_UNRETRIEVED = "Future exception was never retrieved"
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
_SEND_BYTES = 4 * 1024**2  # the kernel reduces it to its own limit
_IDLE_IN_TRANSACTION_MS = 30_000  # a transaction of ours that is dead must not keep its locks


DatabaseUrl = Callable[[], str]  # the URL now: a file of it may change while we run


class Timeouts(NamedTuple):
    """How long a sink waits, and how often it checks the table: the settings of the same names."""

    connect_s_max: float
    lock_s_max: float
    statement_s_max: float
    command_s_max: float
    schema_check_s: float


class Expired(Exception):
    """The deadline passed, and the connection was cut. The server may still go on."""


class SessionNotKept(Exception):
    """The connection is not one session of the server: a pooler is between."""

    def __init__(self) -> None:
        super().__init__(
            "the connection to the database does not keep its session: a pooler (PgBouncer) is "
            "between, in transaction or statement mode, or without a reset; set pool_mode = "
            "session and server_reset_query = DISCARD ALL there, or connect to the server itself"
        )


# Whether something of another client is there, right after the connect. PgBouncer renames prepared
# statements, such as this query, in all modes but `session`; older ones leave what _settings sets.
_FOREIGN = """
select coalesce(current_setting('ingest.session', true), '') <> ''
    or exists (select from pg_prepared_statements where name like 'PGBOUNCER%')"""


# What the driver raises if the server has sent no error. Errors of the server are PostgresError.
DRIVER_ERRORS = (
    OSError,  # sockets, TLS, names, time-outs
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    RuntimeError,  # uvloop, on a transport that is closed
    Expired,
    SessionNotKept,
)


async def connect(
    database_url: str,
    *,
    name: str,
    statement_s_max: float,
    lock_s_max: float,
    within_s: float = 5.0,
) -> Connection:
    """Connect to a server that can be written to, and set the time limits of the session.

    The caller limits the time to `within_s`, of which each of several hosts has its share. Raises
    the driver's errors, and SessionNotKept.
    """
    _forget_unreachable_futures()
    connection = await _first_that_writes(database_url, name, within_s)
    ours = False
    try:
        _tune(connection)
        await refuse_shared(connection)
        await connection.execute(_settings(statement_s_max, lock_s_max))
        ours = True
    finally:
        if not ours:
            connection.terminate()
    return connection


# Of one of several hosts: then the next one is tried.
_NEXT_HOST = (
    OSError,  # it cannot be reached, or does not answer in time
    asyncpg.TargetServerAttributeNotMatched,  # it is a standby
    asyncpg.CannotConnectNowError,  # it starts, or shuts down
    asyncpg.ConnectionDoesNotExistError,  # it was cut off
)


async def _first_that_writes(database_url: str, name: str, within_s: float) -> Connection:
    """Try the hosts in order. The driver would spend all the time on one that does not answer."""
    urls = each_host(database_url)
    for left, url in zip(range(len(urls) - 1, -1, -1), urls, strict=True):
        try:
            async with asyncio.timeout(within_s / len(urls) if left else None):
                connection: Connection = await asyncpg.connect(
                    url,
                    target_session_attrs=SessionAttribute.read_write,
                    server_settings={"application_name": name, "timezone": "UTC"},
                )
                return connection
        except _NEXT_HOST:
            if not left:
                raise
    raise AssertionError("the last host returns or raises")


def each_host(database_url: str) -> list[str]:
    """Return one URL for each host that stands before the path of the URL."""
    parts = urlsplit(database_url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts or is_torn(parts):
        return [database_url]
    return [parts._replace(netloc=f"{user}{at}{each}").geturl() for each in hosts.split(",")]


async def refuse_shared(connection: Connection) -> None:
    """Raise SessionNotKept if a pooler shares the session of this new connection with others."""
    if await connection.fetchval(_FOREIGN):
        raise SessionNotKept


def limits_ms(statement_s_max: float, lock_s_max: float) -> tuple[int, ...]:
    """Return the limits of a session: of a statement, of a lock, of an idle transaction."""
    return (
        max(1, round(statement_s_max * 1000)),
        max(1, round(lock_s_max * 1000)),
        _IDLE_IN_TRANSACTION_MS,
    )


def _settings(statement_s_max: float, lock_s_max: float) -> str:
    """Return the statements that set the session. A pooler refuses most of them as parameters."""
    statement, lock, idle = limits_ms(statement_s_max, lock_s_max)
    return f"""set statement_timeout = {statement}; set lock_timeout = {lock};
    set idle_in_transaction_session_timeout = {idle};
    set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3;
    set ingest.session = 'ours'"""


def address(database_url: str) -> str:
    """Return the `host:port` or the socket's folder of a URL, without user and password."""
    parts = urlsplit(database_url)
    if is_torn(parts):
        return "the database"
    query = dict(parse_qsl(parts.query))
    hosts = unquote(parts.netloc.rpartition("@")[2]) or query.get("host") or os.getenv("PGHOST")
    port = query.get("port") or os.getenv("PGPORT") or "5432"
    return hosts if hosts and re.search(r"^/|:\d+$", hosts) else f"{hosts or 'localhost'}:{port}"


def identity(database_url: str) -> str:
    """Return `host:port/database`: which database a URL names, whoever logs in."""
    parts = urlsplit(database_url)
    query = dict(parse_qsl(parts.query))
    user = unquote((parts.netloc.rpartition("@")[0]).partition(":")[0]) or query.get("user")
    named = unquote(parts.path.lstrip("/")) or query.get("dbname") or query.get("database")
    return f"{address(database_url)}/{named or os.getenv('PGDATABASE') or user or ''}"


def unreachable_reason(error: BaseException) -> str:
    """Return NO_SUCH_HOST if name servers do not know the host, else UNREACHABLE.

    Name servers that do not answer may be away together with the database: UNREACHABLE.
    """
    unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
    return NO_SUCH_HOST if unknown else UNREACHABLE


def text_of(error: BaseException) -> str:
    """Return the text of an error for people. Some errors of the driver have none."""
    if _is_of_a_closed_connection(error):
        return "the server closed the connection"
    name = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return str(error) or name


def _is_of_a_closed_connection(error: BaseException) -> bool:
    """Whether the driver, or uvloop, says in its own words that the connection has ended."""
    if isinstance(error, asyncpg.InternalClientError):
        return str(error).startswith("cannot switch to state")
    closed = {RuntimeError: "handler is closed", asyncpg.InterfaceError: "connection is closed"}
    return any(isinstance(error, kind) and text in str(error) for kind, text in closed.items())


def _forget_unreachable_futures() -> None:
    """Have the event loop drop the driver's futures that nobody can retrieve. Repeatable.

    A server that ends an idle connection sends its last message some milliseconds before it closes
    it. The driver does not treat this message. If a COPY begins in between, it reports a fault of
    its own, and leaves a future behind that no caller can reach. The write whose future it was has
    failed with an error of its own, which is reported. Nothing else is hidden.
    """
    loop = asyncio.get_running_loop()
    if loop.get_exception_handler() is None:
        loop.set_exception_handler(_without_unreachable_futures)


def _without_unreachable_futures(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    lost = isinstance(context.get("exception"), asyncpg.ConnectionDoesNotExistError)
    if not (lost and str(context.get("message")).startswith(_UNRETRIEVED)):
        loop.default_exception_handler(context)


def _tune(connection: Connection) -> None:
    """Let the socket take a whole batch at once, and notice a dead peer while idle, in some 25 s.

    A batch of 5,000 rows has 300 kB, and a Unix socket takes 200 kB at once. The rest would wait
    for the event loop, which under load is busy with posts for milliseconds. Meanwhile the server
    would wait too.
    """
    transport: asyncio.BaseTransport = connection._transport  # type: ignore[attr-defined]
    own = transport.get_extra_info("socket")
    if own is None:
        return
    # uvloop's socket object cannot set options. A duplicate of its descriptor shares them.
    with socket.socket(fileno=os.dup(own.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        if own.family not in (socket.AF_INET, socket.AF_INET6):
            return
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):  # not every system has all of them
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@contextmanager
def deadline(connection: Connection, limit_s: float) -> Iterator[None]:
    """Cut the connection if the body takes longer than `limit_s`, and raise Expired then.

    If it is cut between two steps of a statement, the driver misses its own parts (AttributeError).
    Here that is an error of the driver, as in all other moments.
    """
    expired = False

    def cut() -> None:
        nonlocal expired
        expired = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(limit_s, cut)
    try:
        yield
    except Exception as error:
        if expired:
            raise Expired(f"no answer within {limit_s:g} s") from error
        if isinstance(error, AttributeError) and connection.is_closed():
            raise asyncpg.InterfaceError("the connection was cut") from error
        raise
    finally:
        timer.cancel()


class OneConnection:
    """A part with one connection, which its own methods open."""

    def __init__(self) -> None:
        self.connection: Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that nobody has closed."""
        return self.connection is not None and not self.connection.is_closed()

    async def close(self) -> None:
        """Close in order, within a second."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await close_politely(connection)

    def drop(self) -> None:
        """Cut the connection, whatever is under way on it."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.terminate()


async def close_politely(connection: Connection, limit_s: float = 1.0) -> None:
    """Close in order, or cut the connection after `limit_s`. Raises no error of the driver."""
    try:
        with deadline(connection, limit_s):
            await connection.close(timeout=limit_s)
    except (asyncpg.PostgresError, *DRIVER_ERRORS):
        pass
    finally:
        connection.terminate()


class DatabaseRefused(StartError):
    """The database cannot be used; `reason` is why, as in WriteFailed."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return reason_for("25006")
    if isinstance(error, (ValueError, SessionNotKept)):  # the URL, a certificate, a pooler
        return CONFIGURATION
    code = getattr(error, "sqlstate", None)
    return reason_for(code) if code else unreachable_reason(error)


@contextmanager
def as_start_error(url: str) -> Iterator[None]:
    """Turn errors of the driver into DatabaseRefused, with the name of the database in the text."""
    try:
        yield
    except (asyncpg.PostgresError, *DRIVER_ERRORS, ValueError) as error:
        code = getattr(error, "sqlstate", None)
        suffix = f" (SQLSTATE {code})" if code else ""
        text = f"the database {mask_url(url)}: {text_of(error)}{suffix}"
        raise DatabaseRefused(text, _reason(error)) from error


@asynccontextmanager
async def connected(url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield a connection of a command; raise StartError if there is none within `connect_s_max`.

    The server may be a standby.
    """
    with as_start_error(url):
        # The driver's own time-out counts for each host anew, so there is one for all of them.
        async with asyncio.timeout(timeouts.connect_s_max):
            found = await asyncpg.connect(url, command_timeout=timeouts.command_s_max)
        try:
            await refuse_shared(found)
        except SessionNotKept:
            found.terminate()
            raise
    try:
        yield found
    finally:
        await close_politely(found)


# Servers before PostgreSQL 17 have no such limit.
_NO_LIMIT = """
select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout'"""


@asynccontextmanager
async def opened(url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield a connection of a housekeeping run, with the role that owns the table.

    Each failure, also of what is done with it, is a StartError.
    """
    with as_start_error(url):
        async with opened_as(HOUSEKEEPING, url, timeouts) as connection:
            yield connection


@asynccontextmanager
async def opened_as(name: str, url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield a connection to a server that can be written to. The driver's errors pass through.

    A statement waits for a lock no longer than `lock_s_max`, and takes no longer than
    `statement_s_max`. A transaction may take longer, whatever limit the role has.
    """
    async with asyncio.timeout(timeouts.connect_s_max):
        connection = await connect(
            url,
            name=name,
            statement_s_max=timeouts.statement_s_max,
            lock_s_max=timeouts.lock_s_max,
            within_s=timeouts.connect_s_max,
        )
    try:
        await connection.execute(_NO_LIMIT)
        yield connection
    finally:
        await close_politely(connection)
