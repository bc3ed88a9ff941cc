"""The connection a sink writes through: how it is made, and how it is cut.

Promises that no exchange takes longer than its deadline: the driver's own time-outs ask the server
to cancel and wait for it, which a frozen server never answers, so here the socket is cut instead.
Does not judge errors: the driver's pass through.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
from asyncpg import Connection
from asyncpg.connect_utils import SessionAttribute

from ingest.config.values import is_torn

# COPY fills it on the idempotent path: its types are ours, whatever became of the table's.
STAGING = "ingest_staging"
_CREATE_STAGING = f"""create temp table {STAGING} (
    ts timestamptz, device_id text collate "C", metric text collate "C", value double precision
) on commit delete rows"""

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
_SEND_BYTES = 4 * 1024**2  # the kernel cuts it to what it allows
_IDLE_IN_TRANSACTION_MS = 30_000  # our own dead transactions must not keep their locks


class Timeouts(NamedTuple):
    """How long a sink waits, and how often it checks the table. The settings say what each is."""

    connect_s_max: float
    lock_s_max: float
    statement_s_max: float
    command_s_max: float
    schema_check_s: float


class Expired(Exception):
    """The deadline passed and the connection was cut; the server may go on all the same."""


# What the driver raises where no server spoke. Of a server's own errors see asyncpg.PostgresError.
DRIVER_ERRORS = (
    OSError,  # sockets, TLS, names, time-outs
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    RuntimeError,  # uvloop, on a transport that is closed
    Expired,
)


async def connect(
    database_url: str, *, name: str, statement_s_max: float, lock_s_max: float
) -> Connection:
    """Connect to a server that can be written to. Raises the driver's errors; the caller limits."""
    connection: Connection = await asyncpg.connect(
        database_url,
        target_session_attrs=SessionAttribute.read_write,
        server_settings={
            "application_name": name,
            "statement_timeout": str(max(1, round(statement_s_max * 1000))),
            "lock_timeout": str(max(1, round(lock_s_max * 1000))),
            "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_MS),
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "timezone": "UTC",
        },
    )
    _tune(connection)
    return connection


def address(database_url: str) -> str:
    """Return where a URL leads, `host:port` or a socket's folder; never who logs in."""
    parts = urlsplit(database_url)
    if is_torn(parts):
        return "the database"
    query = dict(parse_qsl(parts.query))
    hosts = unquote(parts.netloc.rpartition("@")[2]) or query.get("host") or os.getenv("PGHOST")
    port = query.get("port") or os.getenv("PGPORT") or "5432"
    return hosts if hosts and re.search(r"^/|:\d+$", hosts) else f"{hosts or 'localhost'}:{port}"


async def prepare_for_copy(connection: Connection) -> None:
    """Make the staging table, once per connection. Needs the TEMP privilege."""
    await connection.execute(_CREATE_STAGING)


async def prepare_for_insert(connection: Connection) -> None:
    """Let timestamps be passed as (microseconds since 2000,): exact, no datetime per row."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda parts: parts,
        decoder=lambda parts: parts,
        format="tuple",
    )


def _tune(connection: Connection) -> None:
    """Give the socket room for a whole batch; notice a dead peer while idle, in some 25 s.

    A batch of 5,000 rows has 300 kB and a Unix socket takes 200 kB at once: the rest would wait for
    the loop, which under load is busy with posts for milliseconds, and the server with it.
    """
    transport: asyncio.BaseTransport = connection._transport  # type: ignore[attr-defined]
    line = transport.get_extra_info("socket")
    if line is None:
        return
    # uvloop's socket object cannot set options; a duplicate of its descriptor shares them.
    with socket.socket(fileno=os.dup(line.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        if line.family not in (socket.AF_INET, socket.AF_INET6):
            return
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):  # not all of them everywhere
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@contextmanager
def deadline(connection: Connection, limit_s: float) -> Iterator[None]:
    """Cut the connection if the body takes longer than `limit_s`; the body then raises Expired."""
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
        raise
    finally:
        timer.cancel()


async def close_politely(connection: Connection, limit_s: float = 1.0) -> None:
    """Say goodbye to the server, or cut the line after `limit_s`. Raises nothing of the driver."""
    try:
        with deadline(connection, limit_s):
            await connection.close(timeout=limit_s)
    except (asyncpg.PostgresError, *DRIVER_ERRORS):
        pass
    finally:
        connection.terminate()
