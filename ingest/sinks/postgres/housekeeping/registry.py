"""The table `ingest_housekeeping` beside the readings table: what was done, and what was answered.

A readings table of another name has its own, such as `ingest_housekeeping_NAME`: two tables of one
schema must not take each other's partitions, files and rollups for their own.
Keys: `table/NAME` (a table whose partitions we make: its span), `partition/NAME` (made or adopted
by us: its bounds), `answer/keep_hot` (what a person confirmed), `archive/NAME` (how far the archive
of a span is), `files/NAME` (what is in the archive), `pinned/NAME`, `schema` (the version of all
this). The owner writes it; the role that writes readings need not see it.
The version is one number. The readings table has none: each writer compares it with what is needed,
and one that fits is written to by older and newer programs alike. What the number guards is the
registry: an older program that misread it could drop what a newer one keeps.
Promises: each write is one statement of the caller's transaction. A step to the next version is
made whole or not at all, and never twice; only `upgrade` makes one. The driver's errors pass
through.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import orjson
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.schema import NAME_BYTES_MAX, quoted, shortened
from ingest.sinks.postgres.schema import TABLE as READINGS_TABLE
from ingest.system.clock import monotonic_s

NAME = "ingest_housekeeping"
TABLE, PARTITION, KEEP_HOT = "table/", "partition/", "answer/keep_hot"
ARCHIVE, PINNED, FILES = "archive/", "pinned/", "files/"
SCHEMA = "schema"
SCHEMA_VERSION = 1  # what this program reads and writes here; a registry without a number has 0
LOOK_AGAIN_S = 0.5  # while another run is at work
_LOCK = "hashtextextended('iot-ingest housekeeping', $1::int8)"
_BESIDE = """
select n.nspname::text as schema, c.relname::text as name
from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)"""
_READABLE = """
select name, coalesce(has_table_privilege(to_regclass(name), 'SELECT'), false) as readable
from format('%I.%I', $1::text, $2::text) as name"""


def name_for(table: str) -> str:
    """Return the name of the registry of a table; both without schema and quotes."""
    if table == READINGS_TABLE:
        return NAME
    name = f"{NAME}_{table}"
    if len(name.encode()) <= NAME_BYTES_MAX:
        return name
    return shortened(name, "_" + hashlib.sha256(table.encode()).hexdigest()[:8])


async def name_beside(connection: Connection, table: str) -> tuple[str, bool]:
    """Return the name of the registry of a table, with its schema; and whether we can read it."""
    found = await connection.fetchrow(_BESIDE, table)
    if found is None:
        return NAME, False
    (row,) = await connection.fetch(_READABLE, found["schema"], name_for(found["name"]))
    return row["name"], row["readable"]


async def exists(connection: Connection, registry: str) -> bool:
    """Whether there is a registry of this name (of `name_beside`), readable or not."""
    return bool(await connection.fetchval("select to_regclass($1) is not null", registry))


async def make(connection: Connection, table: str, owner: str | None = None) -> str:
    """Make the registry beside the table if it is missing; return its name with its schema.

    `owner` is that of the table; it owns the registry too. Who writes to it calls this first: it
    raises StartError if a newer program has changed what is kept there.
    """
    name, readable = await name_beside(connection, table)
    if readable:
        if why := refusal(await version_in(connection, name)):
            raise StartError(why)
    else:
        await connection.execute(
            f"create table if not exists {name} (key text primary key, value jsonb not null, "
            "at timestamptz not null default now())"
        )
        if owner is not None:
            await connection.execute(f"alter table {name} owner to {quoted(owner)}")
        await connection.execute(
            f"insert into {name} (key, value) values ($1, jsonb_build_object('version', $2::int)) "  # noqa: S608
            "on conflict do nothing",
            SCHEMA,
            SCHEMA_VERSION,
        )
    return name


async def entries(connection: Connection, table: str, prefix: str) -> dict[str, Any]:
    """Return the values whose keys begin with `prefix`, by the rest of the key.

    Returns nothing if there is no registry, or this role may not read it. Values are objects; what
    somebody else has put there, is left out.
    """
    name, readable = await name_beside(connection, table)
    if not readable:
        return {}
    rows = await connection.fetch(
        f"select substr(key, length($1) + 1) as rest, value::text as value from {name} "  # noqa: S608
        "where starts_with(key, $1) order by key",
        prefix,
    )
    found = ((row["rest"], orjson.loads(row["value"])) for row in rows)
    return {rest: value for rest, value in found if isinstance(value, dict)}


async def has_any(connection: Connection, table: str, keys: Sequence[str]) -> bool:
    """Whether the registry has one of these keys; False if this role may not read it."""
    name, readable = await name_beside(connection, table)
    if not readable:
        return False
    return bool(
        await connection.fetchval(
            f"select exists (select from {name} where key = any($1::text[]))",  # noqa: S608
            keys,
        )
    )


async def put(connection: Connection, registry: str, values: Mapping[str, Any]) -> None:
    """Store values in the registry of this name, by their keys."""
    await connection.execute(
        f"insert into {registry} (key, value) "  # noqa: S608
        "select key, value::jsonb from unnest($1::text[], $2::text[]) as new (key, value) "
        "on conflict (key) do update set value = excluded.value, at = now()",
        list(values),
        [orjson.dumps(each).decode() for each in values.values()],
    )


async def remove(connection: Connection, registry: str, *keys: str) -> None:
    """Remove keys; they may be missing."""
    await connection.execute(f"delete from {registry} where key = any($1::text[])", keys)  # noqa: S608


@asynccontextmanager
async def alone(
    connection: Connection, table_oid: int, *, within_s: float = 0.0
) -> AsyncIterator[None]:
    """Hold the lock of the only run on a table. Raises OtherRun if another session keeps it."""
    end_s = monotonic_s() + within_s
    while not await connection.fetchval(f"select pg_try_advisory_lock({_LOCK})", table_oid):
        if monotonic_s() >= end_s:
            raise OtherRun("another housekeeping run is under way")
        await asyncio.sleep(LOOK_AGAIN_S)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"select pg_advisory_unlock({_LOCK})", table_oid)


class OtherRun(StartError):
    """Another run of housekeeping is under way on this table."""


class SchemaState(NamedTuple):
    """The version found: None without a registry, -1 if it is no number. `registry` is its name.

    `needs` is a sentence if somebody must act. `refuses`: until then nothing may be changed.
    """

    version: int | None
    registry: str = NAME
    needs: str = ""
    refuses: bool = False


async def state_of(connection: Connection, table: str) -> SchemaState:
    """Read the version beside a table. What this role may not read is not there for it."""
    name, readable = await name_beside(connection, table)
    if not readable:
        return SchemaState(None, name)
    version = await version_in(connection, name)
    if why := refusal(version):
        return SchemaState(version, name, why, refuses=True)
    needs = ""
    if version < SCHEMA_VERSION:
        needs = (
            f"the schema has version {version}, and this program has {SCHEMA_VERSION}: it works "
            "with both; run `ingest schema upgrade` when all processes are of the new version"
        )
    return SchemaState(version, name, needs)


async def version_in(connection: Connection, registry: str) -> int:
    """Return the version in the registry of this name; 0 if it has none, -1 if it is no number."""
    found = await connection.fetchval(
        f"select coalesce(value->>'version', '') from {registry} where key = $1",  # noqa: S608
        SCHEMA,
    )
    if found is None:
        return 0
    return int(found) if re.fullmatch("[0-9]{1,9}", found) else -1


def refusal(version: int) -> str:
    """Return why nothing may be changed under this version, or nothing."""
    if 0 <= version <= SCHEMA_VERSION:
        return ""
    said = f"version {version}" if version >= 0 else "a version that is no number"
    return (
        f"the schema has {said} (key `{SCHEMA}` of {NAME}), and this program knows "
        f"{SCHEMA_VERSION}: run the newer program again; until then no partition is made, archived "
        "or dropped, and readings are written as before"
    )


class Upgrade(NamedTuple):
    """A step to version `to`; `do` gets the connection and the name of the registry."""

    to: int
    words: str
    do: Callable[[Connection, str], Awaitable[None]]


async def _only_the_number(connection: Connection, name: str) -> None:
    """Version 1 is what was kept before there were numbers."""


STEPS = (Upgrade(1, "write down the version", _only_the_number),)


def steps_from(version: int | None) -> list[Upgrade]:
    """Return the steps that are missing, in order."""
    return [each for each in STEPS if version is not None and version < each.to]


async def upgrade(connection: Connection, table: str, oid: int) -> list[str]:
    """Do the missing steps; return them in words. Raises StartError if it may not, or is too old.

    No run of housekeeping is under way meanwhile: else it raises OtherRun.
    """
    done: list[str] = []
    async with alone(connection, oid):
        found = await state_of(connection, table)
        if found.refuses:
            raise StartError(found.needs)
        for step in steps_from(found.version):
            async with connection.transaction():
                await step.do(connection, found.registry)
                entry = {"version": step.to}
                await put(connection, found.registry, {SCHEMA: entry})
            done.append(f"version {step.to}: {step.words}")
    return done
