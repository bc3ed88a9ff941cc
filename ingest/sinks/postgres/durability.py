"""Examines the server: whether what it has committed outlives a crash; and more for doctor.

`ack=committed` depends on the first. So does the journal, which removes a file once its readings
are in the table. That check is one query. It reads the settings as they are for this connection:
those of the server, of the database and of the role. The driver's errors pass through.
Does not: change anything in the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ingest.sinks.postgres.connection import HUNG_S, Connection
from ingest.sinks.postgres.schema import READINGS, Target, TargetTable, look, quoted
from ingest.system.clock import unix_us

OVERRIDE = "--database-unsafe true"

# The table, its partitions, and what else inherits from it, such as the chunks of a hypertable.
_QUESTION = """
with recursive tree (id) as (
    select to_regclass($1)::oid union select inhrelid from pg_inherits join tree on inhparent = id)
select current_setting('fsync') as fsync,
       current_setting('full_page_writes') as full_page_writes,
       current_setting('synchronous_commit') as synchronous_commit,
       current_setting('synchronous_standby_names') as standbys,
       (select oid::regclass::text from pg_class join tree on oid = id
        where relpersistence = 'u' order by 1 limit 1) as unlogged"""

# Each of these settings may be `off`, and this is what a crash then does.
OFF = {
    "fsync": "a crash of the machine can destroy the whole database",
    "full_page_writes": "a crash of the machine can tear pages beyond repair",
    "synchronous_commit": "a crash can undo the last committed readings",
}
UNLOGGED = "a crash of the server empties it"
# `on` waits for the disk of a standby, `remote_apply` for more, and these two for less. All four
# wait for the disk of the primary, so a crash of the primary alone loses nothing.
STANDBY_BEHIND = {
    "local": "a failover loses readings that no standby has",
    "remote_write": "a failover may lose readings that are only in the memory of a standby",
}


class Finding(NamedTuple):
    """One thing that was checked: its name, its value, and what is wrong with it.

    `risk` is empty if nothing is wrong. `refuses`: the database must not be called durable;
    otherwise a warning is enough. `fix` is what to do.
    """

    name: str
    value: str
    risk: str = ""
    refuses: bool = False
    fix: str = ""


async def findings(connection: Connection, target: Target = READINGS) -> list[Finding]:
    """Ask the server; return one finding for each thing that was checked."""
    row = await connection.fetchrow(_QUESTION, target.name)
    assert row is not None, "the question always has one row"
    return list(_judge(dict(row), target))


def _judge(found: dict[str, Any], target: Target = READINGS) -> Iterator[Finding]:
    for name, risk in OFF.items():
        value = str(found[name])
        if value == "off":
            yield Finding(name, value, risk, True, f"set {name} = on")
        elif found["standbys"] and name == "synchronous_commit" and value in STANDBY_BEHIND:
            yield Finding(name, value, STANDBY_BEHIND[value], fix=f"set {name} = on")
        else:
            yield Finding(name, value)
    if unlogged := found["unlogged"]:
        fix = f"alter table {unlogged} set logged"
        yield Finding(f"table {unlogged}", "unlogged", UNLOGGED, True, fix)
    else:
        yield Finding(f"table {target.name}", "logged")


def fault(found: list[Finding]) -> str | None:
    """Return why the database must not be called durable, or None if it may."""
    wrong = [each for each in found if each.refuses]
    text = "; ".join(f"{each.name} is {each.value}: {each.risk} ({each.fix})" for each in wrong)
    return text or None


def refusal(fault: str) -> str:
    """Return the message of a service that refuses the database for this fault."""
    return (
        f"the database may lose what it has committed: {fault}; fix that, or accept the risk with "
        f"{OVERRIDE}"
    )


_EXAMINED = """
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
    row = await connection.fetchrow(_EXAMINED, HUNG_S, target.name, schema_name)
    after_us = unix_us()
    assert row is not None
    seen = await look(connection, target)
    return {
        **row,
        "ahead_s": (row["now_us"] - (before_us + after_us) / 2) / 1e6,
        "doubt_s": (after_us - before_us) / 2e6,
        "table": seen.target.name,
        "difference": seen.difference,
        "durability": await findings(connection, target),
    }
