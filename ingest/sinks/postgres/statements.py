"""The statements that store encoded rows: COPY, COPY with a staging table, INSERT of arrays.

Each of them names the table with its schema, and begins with the check: in the same transaction,
after the table is locked, the server compares its catalog with what the full check found. So no
ALTER TABLE can come between. If there is a difference, it fails with ALTERED before it reads a row.

Promises: `store_staged` and `insert_arrays` store a row once, however often it is sent.
Does not: begin or end a transaction, or judge errors; the driver's errors pass through. The
statements of declared tables are in column_statements.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex
from typing import NamedTuple

import asyncpg

from ingest.model.block import HEADER, PG_EPOCH_US, TRAILER, decode_rows
from ingest.sinks.postgres.batch_tables import New, TableRows
from ingest.sinks.postgres.schema import KEY_LIST, STATE, Look, literal

ALTERED = "3F000"  # of the check; also of a schema that is gone

# COPY fills it on the idempotent path. Its types are ours, whatever types the table has now.
STAGING = "pg_temp.ingest_staging"
# This commit needs no disk: a crash ends the session and its temporary tables. And it must not wait
# for a synchronous standby that is missing.
MAKE_STAGING = """begin; set local synchronous_commit = off;
create temp table ingest_staging (
    ts timestamptz, device_id text collate "C", metric text collate "C", value double precision
) on commit delete rows; commit"""
EMPTY_STAGING = f"delete from {STAGING}"  # noqa: S608
_COPY_STAGED = f"copy {STAGING} ({KEY_LIST}) from stdin (format binary)"


# What has a lock on the table ($1), or on a part of it, that a write must wait for, or waits for
# one before us; in words, the oldest transaction first. Of a query only the first word is told: the
# rest may have readings. What the role of the service may not see is null, and left out.
LOCKED_BY = """
select concat_ws(', ', coalesce('process ' || l.pid, 'a prepared transaction')
                       || ' of the database locks the table',
    regexp_replace(coalesce(nullif(a.application_name, ''), a.usename), '[^[:print:]]', '?', 'g'),
    a.state, 'in a transaction for ' || date_trunc('second', clock_timestamp() - a.xact_start),
    'last command ' || substring(a.query from '^\\s*([A-Za-z]+)'))
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.relation in (select to_regclass($1) union
                     select inhrelid from pg_inherits where inhparent = to_regclass($1))
  and l.database = (select oid from pg_database where datname = current_database())
  and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
order by not l.granted, a.xact_start limit 1"""


class Statements(NamedTuple):
    """The statements for the table `readings` on one connection.

    `prepare` makes the check ready. `check` is the check alone, for the begin of a transaction;
    `checked_copy` is the check and a COPY in one message, so in one transaction. The other four
    must come after `check`. `insert_like_stored` stores a row like one that the table has, with the
    next larger value, so it is new; if the table is empty, one with the time of now.
    """

    prepare: str
    check: str
    checked_copy: str
    copy: str
    insert_staged: str
    insert_values: str
    insert_like_stored: str
    make_staging: str = MAKE_STAGING
    empty_staging: str = EMPTY_STAGING

    async def store_staged(self, connection: asyncpg.Connection, rows: TableRows) -> New:
        """COPY encoded rows into the staging table, and INSERT the new ones.

        Call it in a transaction, on a connection that has the staging table.
        """
        await copy(connection, _COPY_STAGED, rows.tuples)
        return New(count_of(await connection.execute(self.insert_staged)))

    async def insert_arrays(self, connection: asyncpg.Connection, rows: TableRows) -> New:
        """INSERT encoded rows as arrays."""
        readings = list(decode_rows(b"".join(rows.tuples)))
        tag = await connection.execute(
            self.insert_values,
            [(each.ts_us - PG_EPOCH_US,) for each in readings],
            [each.device_id for each in readings],
            [each.metric for each in readings],
            [each.value for each in readings],
        )
        return New(count_of(tag))


def check_of(found: Look) -> tuple[str, str]:
    """Return the check of a table that the full check has found: how it is prepared, and itself.

    LOCK comes first, and takes no snapshot: so the check sees what was committed before the lock,
    at each isolation level. Its error is a cast to a schema of that name: the server has no
    function that raises an error. The name of the check is new for each connection: a session that
    is not ours has none of this name.
    """
    table, name = found.target.name, f"ingest_check_{token_hex(4)}"
    prepare = f"""prepare {name} as
select '"the table was altered after iot-ingest checked it"'::text::regnamespace from pg_class c
where c.oid = {literal(table)}::regclass
and (c.oid <> {found.oid} or ({STATE}) <> '{found.state}'::xid[])"""  # noqa: S608
    return prepare, f"lock table only {table} in row exclusive mode; execute {name}"


def statements_for(found: Look) -> Statements:
    """Return the statements for the table `readings` that the full check has found."""
    prepare, check = check_of(found)
    table, columns = found.target.name, found.target.column_list
    copy = f"copy {table} ({columns}) from stdin (format binary)"
    insert, once = f"insert into {table} ({columns})", f"on conflict ({columns}) do nothing"
    return Statements(
        prepare=prepare,
        check=check,
        checked_copy=f"{check}; {copy}",
        copy=copy,
        insert_staged=f"{insert} select {KEY_LIST} from {STAGING} order by {KEY_LIST} {once}",  # noqa: S608
        insert_values=f"""{insert}
select * from unnest($1::timestamptz[], $2::text[], $3::text[], $4::float8[]) as r ({KEY_LIST})
order by ts, device_id collate "C", metric collate "C", value {once}""",  # noqa: S608
        insert_like_stored=f"""{insert}
select ts, device_id, metric,
       case when value = 0 then 5e-324 else value * (1 + 2.220446049250313e-16::float8) end
from ((select {columns} from {table} limit 1)
      union all (select now(), 'iot-ingest', 'try', 1 where not exists (select from {table}))
     ) as r ({KEY_LIST})
{once}""",  # noqa: S608
    )


async def prepare_for_insert(connection: asyncpg.Connection) -> None:
    """Let timestamps be passed as (microseconds since 2000,): exact, and without a datetime."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda parts: parts,
        decoder=lambda parts: parts,
        format="tuple",
    )


async def copy(connection: asyncpg.Connection, statement: str, tuples: Sequence[bytes]) -> int:
    """COPY encoded rows in one message; return how many rows the server took."""
    # The driver does not check this, and would then raise an error that is not one of its own.
    if connection.is_closed():
        raise asyncpg.InterfaceError("the connection was cut before the rows were sent")
    # Not `copy_to_table`: it cannot send the check with the COPY. Not as bytes: those are a path.
    source = memoryview(b"".join((HEADER, *tuples, TRAILER)))
    return count_of(await connection._copy_in(statement, source, None))  # type: ignore[attr-defined]


def count_of(tag: str) -> int:
    """Return the rows of a command tag such as `COPY 5` or `INSERT 0 5`."""
    return int(tag.rsplit(" ", 1)[1])
