"""What `ingest doctor` finds out about the database: one question to it, one sentence per answer.

Changes nothing there. Raises what the driver raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest.config.settings import Settings
from ingest.system.clock import unix_us

if TYPE_CHECKING:
    import asyncpg

    from ingest.sinks.postgres.durability import Finding

OK, WARN, FAIL = "ok", "warn", "FAIL"
VERSION_MIN = 13
CLOCK_S_MAX = 1.0

_QUESTION = """
select current_setting('server_version') as version,
       current_setting('server_version_num')::int / 10000 as major,
       pg_is_in_recovery() as standby,
       current_setting('default_transaction_read_only') = 'on' as read_only,
       current_setting('max_connections')::int
           - current_setting('superuser_reserved_connections')::int as connections_max,
       (select count(*) from pg_stat_activity where backend_type = 'client backend'
           and pid <> pg_backend_pid() and application_name not like 'iot-ingest%') as connections,
       (select rolconnlimit from pg_roles where rolname = current_user) as role_connections_max,
       current_user::text as role,
       current_database()::text as database,
       has_database_privilege(current_database(), 'TEMP') as may_temp,
       to_regclass('readings') is not null as there,
       has_table_privilege(to_regclass('readings'), 'INSERT') as may_insert,
       has_table_privilege(to_regclass('readings'), 'SELECT') as may_select,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) as may_create,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint as now_us"""


class Check(NamedTuple):
    """One finding: what was looked at, `ok`, `warn` or `FAIL`, and a sentence."""

    name: str
    state: str
    detail: str


async def database_checks(
    connection: asyncpg.Connection[Any], settings: Settings, *, service_runs: bool
) -> list[Check]:
    """Ask the database and judge its answers."""
    from ingest.sinks.postgres import durability, schema  # noqa: PLC0415

    before_us = unix_us()
    row = await connection.fetchrow(_QUESTION)
    after_us = unix_us()
    assert row is not None
    found = dict(row)
    found["ahead_s"] = (found["now_us"] - (before_us + after_us) / 2) / 1e6
    found["doubt_s"] = (after_us - before_us) / 2e6
    found["difference"] = await schema.difference(connection)
    kept = await durability.findings(connection)
    checks = [_version(found), _writable(found), *_durable(kept, settings)]
    checks += [_table(found, settings), _privileges(found)]
    return [*checks, _clock(found), _connections(found, settings, service_runs=service_runs)]


def _version(found: dict[str, Any]) -> Check:
    said = f"PostgreSQL {found['version']}, database {found['database']}, role {found['role']}"
    if found["major"] < VERSION_MIN:
        return Check("version", FAIL, f"{said}: at least {VERSION_MIN} is needed; upgrade it")
    return Check("version", OK, said)


def _writable(found: dict[str, Any]) -> Check:
    if found["standby"]:
        return Check("writable", FAIL, "this is a standby; point database_url to the primary")
    if found["read_only"]:
        return Check(
            "writable", FAIL, "default_transaction_read_only is on; turn it off for the role"
        )
    return Check("writable", OK, "a primary that takes writes")


def _durable(kept: list[Finding], settings: Settings) -> Iterator[Check]:
    for name, value, risk, refuses, mend in kept:
        said = f"{value}: {risk}; {mend}" if risk else value
        if refuses and settings.database_unsafe:
            said += " (database_unsafe: it is used all the same)"
        refused = refuses and not settings.database_unsafe
        yield Check(name, FAIL if refused else WARN if risk else OK, said)


def _table(found: dict[str, Any], settings: Settings) -> Check:
    if found["difference"] is None:
        return Check("table", OK, "readings is as it must be")
    if not found["there"] and settings.schema_apply and found["may_create"]:
        return Check("table", OK, "readings is not there yet; `ingest serve` makes it at start")
    advice = "" if found["there"] else "; a role that may create tables must run it"
    return Check("table", FAIL, f"{found['difference']}{advice}")


def _privileges(found: dict[str, Any]) -> Check:
    named = {"INSERT": found["may_insert"], "SELECT": found["may_select"]}
    missing = [name for name, granted in named.items() if found["there"] and not granted]
    if not found["may_temp"]:
        missing.append("TEMP on the database")
    if missing:
        return Check(
            "privileges",
            FAIL,
            f"role {found['role']} lacks {', '.join(missing)}; let the table's owner run "
            f"`ingest schema apply --role {found['role']}`",
        )
    return Check("privileges", OK, "INSERT, SELECT and TEMP")


def _clock(found: dict[str, Any]) -> Check:
    ahead_s, doubt_s = found["ahead_s"], found["doubt_s"]
    said = f"the database's is {ahead_s:+.3f} s from ours (known to {doubt_s:.3f} s)"
    if abs(ahead_s) - doubt_s > CLOCK_S_MAX:
        return Check("clock", WARN, f"{said}; readings without ts get our time: run NTP on both")
    return Check("clock", OK, said)


def _connections(found: dict[str, Any], settings: Settings, *, service_runs: bool) -> Check:
    free = found["connections_max"] - found["connections"]
    limit, bound = found["role_connections_max"], "max_connections"
    if limit is not None and 0 <= limit < free:
        free, bound = limit, "the role's CONNECTION LIMIT"
    said = f"{free} of {found['connections_max']} are left for us, {settings.writers} writers"
    if free < settings.writers and not service_runs:
        return Check("connections", FAIL, f"{said}; raise {bound} or lower writers")
    if free < settings.writers + 2:
        return Check("connections", WARN, f"{said}; raise {bound}, there is little room")
    return Check("connections", OK, said)
