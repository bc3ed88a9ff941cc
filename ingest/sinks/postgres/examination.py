"""Examines the database for `ingest doctor`: one query, and the checks that the start makes too.

Raises the driver's errors.
Does not: change anything in the database.
"""

from __future__ import annotations

from typing import Any

from asyncpg import Connection

from ingest.sinks.postgres import durability, known_server, schema
from ingest.sinks.postgres.target import READINGS, TargetTable, quoted
from ingest.system.clock import unix_us

_QUESTION = """
select current_setting('server_version') as version,
       current_setting('server_version_num')::int / 10000 as major,
       pg_is_in_recovery() as standby,
       current_setting('default_transaction_read_only') = 'on' as read_only,
       current_setting('max_connections')::int
           - current_setting('superuser_reserved_connections')::int as connections_max,
       (select count(*) from pg_stat_activity where backend_type = 'client backend'
           and pid <> pg_backend_pid() and application_name not like 'iot-ingest%') as connections,
       (select count(*) from pg_stat_activity where usename = session_user
           and wait_event = 'SyncRep'
           and clock_timestamp() - state_change > make_interval(secs => $1)) as standby_waits,
       (select rolconnlimit from pg_roles where rolname = current_user) as role_connections_max,
       current_user::text as role,
       current_database()::text as database,
       has_database_privilege(current_database(), 'TEMP') as may_temp,
       to_regclass($2) is not null as there,
       has_table_privilege(to_regclass($2), 'INSERT') as may_insert,
       has_table_privilege(to_regclass($2), 'SELECT') as may_select,
       coalesce(case when $3::text = '' then has_schema_privilege(current_schema(), 'CREATE')
                else has_schema_privilege(to_regnamespace($3)::oid, 'CREATE') end, false)
           as may_create,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint as now_us"""


async def examine(connection: Connection, target: TargetTable = READINGS) -> dict[str, Any]:
    """Return the columns of the query by name, and some more values.

    `ahead_s` is how far the database's clock is ahead of ours, give or take `doubt_s`. `table` is
    the table's name with its schema. `difference` says how it differs from the one that we need, or
    is None. `durability` is a list of Finding.
    """
    before_us = unix_us()
    schema_name = quoted(target.schema) if target.schema else ""
    row = await connection.fetchrow(_QUESTION, known_server.HUNG_S, target.name, schema_name)
    after_us = unix_us()
    assert row is not None
    look = await schema.look(connection, target)
    return {
        **row,
        "ahead_s": (row["now_us"] - (before_us + after_us) / 2) / 1e6,
        "doubt_s": (after_us - before_us) / 2e6,
        "table": look.target.name,
        "difference": look.difference,
        "durability": await durability.findings(connection, target),
    }
