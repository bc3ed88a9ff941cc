"""The table of readings for a reconciliation: one run's rows, streamed in the order of ts.

Promises: one consistent snapshot, of the primary only (a standby may lag behind); bounded memory;
nothing is written. The URL is never part of an error's text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from loadgen.proof.readings import REFUSED_METRIC
from loadgen.proof.table_names import TableNames

CONNECT_S_MAX = 10.0
FETCH_ROWS = 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PG_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01

# The view of `readings` and of all declared tables, if there are any: it is in the same schema.
_VIEW = """
select format('%I.%I', n.nspname, v.relname) from pg_class t
join pg_class v on v.relnamespace = t.relnamespace and v.relname = 'all_readings'
join pg_namespace n on n.oid = t.relnamespace where t.oid = to_regclass($1) and v.relkind = 'v'"""
# The key's index has all columns and this order; the collation is that of the column.
_ROWS = """
select {names.columns} from {names.table}
where {names.device_id} collate "C" >= $1 and {names.device_id} collate "C" < $2
order by {names.ts}
"""


class TableError(Exception):
    """The table cannot be read; the text says why."""


async def check_table(database_url: str, names: TableNames) -> None:
    """Check that a reconciliation is possible. Raises TableError."""
    async with _connected(database_url, names):
        pass


async def refuses(database_url: str, names: TableNames, plan_us: int, device: str) -> bool | None:
    """Whether a row with REFUSED_METRIC breaks a constraint; None: no privilege to try.

    The row is inserted and rolled back. Raises TableError.
    """
    async with _connected(database_url, names) as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(
                f"insert into {names.table} ({names.columns}) values ($1, $2, $3, 0.5)",  # noqa: S608
                _EPOCH + timedelta(microseconds=plan_us),
                device,
                REFUSED_METRIC,
            )
        except asyncpg.InsufficientPrivilegeError:
            return None
        except (asyncpg.CheckViolationError, asyncpg.RaiseError):
            return True
        finally:
            await transaction.rollback()
    return False


async def stream_rows(
    database_url: str, names: TableNames, prefix: str, feed: Callable[[Sequence[Any]], None]
) -> None:
    """Hand all readings of the devices that begin with `prefix` to `feed`, thousands at a time.

    They may be in declared tables, too.

    A row is (ts in Unix microseconds, device_id, metric, value). Raises TableError.
    """
    async with _connected(database_url, names) as connection:
        await connection.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            encoder=lambda us: (us - _PG_EPOCH_US,),
            decoder=lambda parts: parts[0] + _PG_EPOCH_US,
            format="tuple",
        )
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute("set local statement_timeout = 0")
            await connection.execute("set local idle_in_transaction_session_timeout = 0")
            view = await connection.fetchval(_VIEW, names.table)
            rows_of = _ROWS.format(names=TableNames(view) if view else names)
            end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
            cursor = await connection.cursor(rows_of, prefix, end)
            while rows := await cursor.fetch(FETCH_ROWS):
                feed(rows)
                await asyncio.sleep(0)  # so that signals are handled


@asynccontextmanager
async def _connected(database_url: str, names: TableNames) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a primary that has the table. Raises TableError, also for errors in the block."""
    try:
        connection = await asyncpg.connect(database_url, timeout=CONNECT_S_MAX)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise TableError(f"cannot connect to the database: {_told(error)}") from error
    try:
        if await connection.fetchval("select pg_is_in_recovery()"):
            raise TableError("the database is a standby: it may lag behind; name the primary")
        await connection.execute(f"select {names.columns} from {names.table} limit 0")  # noqa: S608
        yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise TableError(f"cannot read the table: {_told(error)}") from error
    finally:
        with suppress(OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
            await connection.close(timeout=CONNECT_S_MAX)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
