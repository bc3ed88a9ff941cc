"""The statements that store encoded rows: COPY, COPY with a staging table, INSERT of arrays.

Promises: `store_staged` and `insert_arrays` store a row once, however often it is sent.
Does not: begin or end a transaction, or judge errors; the driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
from asyncpg import Connection

from ingest.model.rows import HEADER, PG_EPOCH_US, TRAILER, decode_rows
from ingest.sinks.postgres.schema import KEY, KEY_LIST, TABLE, TYPE_GUARD

# COPY fills it on the idempotent path. Its types are ours, whatever types the table has now.
STAGING = "ingest_staging"
_CREATE_STAGING = f"""create temp table {STAGING} (
    ts timestamptz, device_id text collate "C", metric text collate "C", value double precision
) on commit delete rows"""

# The guard in the INSERT is a WITH that is parsed and never run: see schema.TYPE_GUARD.
_INSERT = f"with guard as (select from {TABLE} where {TYPE_GUARD}) insert into {TABLE} ({KEY_LIST})"
_ONCE = f"on conflict ({KEY_LIST}) do nothing"
_INSERT_STAGED = f"""{_INSERT}
select {KEY_LIST} from pg_temp.{STAGING} order by {KEY_LIST} {_ONCE}"""  # noqa: S608
_INSERT_ARRAYS = f"""{_INSERT}
select * from unnest($1::timestamptz[], $2::text[], $3::text[], $4::float8[]) as r ({KEY_LIST})
order by ts, device_id collate "C", metric collate "C", value {_ONCE}"""  # noqa: S608
# A row like one that the table has, with the next larger value, so it is a new row. If the table is
# empty: one with the time of now.
_INSERT_LIKE_STORED = f"""{_INSERT}
select ts, device_id, metric,
       case when value = 0 then 5e-324 else value * (1 + 2.220446049250313e-16::float8) end
from ((select {KEY_LIST} from {TABLE} limit 1)
      union all (select now(), 'iot-ingest', 'try', 1 where not exists (select from {TABLE}))) as r
{_ONCE}"""  # noqa: S608
EMPTY_STAGING = f"delete from pg_temp.{STAGING}"  # noqa: S608


async def prepare_for_copy(connection: Connection) -> None:
    """Make the staging table, once for each connection. Needs the TEMP privilege."""
    await connection.execute(_CREATE_STAGING)


async def prepare_for_insert(connection: Connection) -> None:
    """Let timestamps be passed as (microseconds since 2000,): exact, and without a datetime."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda parts: parts,
        decoder=lambda parts: parts,
        format="tuple",
    )


async def copy(connection: Connection, tuples: Sequence[bytes], *, staging: bool = False) -> int:
    """COPY encoded rows in one message; return how many rows the server took."""
    # The driver does not check this, and would then raise an error that is not one of its own.
    if connection.is_closed():
        raise asyncpg.InterfaceError("the connection was cut before the rows were sent")
    tag = await connection.copy_to_table(
        STAGING if staging else TABLE,
        schema_name="pg_temp" if staging else None,
        # One message. Not as bytes: the driver takes bytes for a path.
        source=memoryview(b"".join((HEADER, *tuples, TRAILER))),  # type: ignore[arg-type]
        columns=KEY,
        format="binary",
        where=None if staging else TYPE_GUARD,
    )
    return _count(tag)


async def store_staged(connection: Connection, tuples: Sequence[bytes]) -> int:
    """COPY encoded rows into the staging table, and INSERT the new ones; return how many.

    Call it in a transaction.
    """
    await copy(connection, tuples, staging=True)
    return _count(await connection.execute(_INSERT_STAGED))


async def insert_arrays(connection: Connection, tuples: Sequence[bytes]) -> int:
    """INSERT encoded rows as arrays; return how many are new."""
    rows = list(decode_rows(b"".join(tuples)))
    tag = await connection.execute(
        _INSERT_ARRAYS,
        [(row.ts_us - PG_EPOCH_US,) for row in rows],
        [row.device_id for row in rows],
        [row.metric for row in rows],
        [row.value for row in rows],
    )
    return _count(tag)


async def insert_like_stored(connection: Connection) -> int:
    """INSERT a row like one that the table has; return how many are new. The caller undoes it."""
    return _count(await connection.execute(_INSERT_LIKE_STORED))


def _count(tag: str) -> int:
    """Return the rows of a command tag such as `COPY 5` or `INSERT 0 5`."""
    return int(tag.rsplit(" ", 1)[1])
