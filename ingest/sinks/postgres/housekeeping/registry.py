"""The table `ingest_housekeeping` beside the readings table: what was done, and what was answered.

A readings table of another name has its own, such as `ingest_housekeeping_NAME`: two tables of one
schema must not take each other's partitions, files and rollups for their own.
Keys: `table/NAME` (a table whose partitions we make: its span), `partition/NAME` (made or adopted
by us: its bounds), `answer/keep_hot` (what a person confirmed), `archive/NAME` (how far the archive
of a span is), `files/NAME` (what is in the archive), `pinned/NAME`, `schema` (the version of all
this, see runs.py). The owner writes it; the role that writes readings need not see it.
Promises: each write is one statement of the caller's transaction. The driver's errors pass through.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.schema import NAME_BYTES_MAX, quoted, shortened
from ingest.sinks.postgres.schema import TABLE as READINGS_TABLE

NAME = "ingest_housekeeping"
TABLE, PARTITION, KEEP_HOT = "table/", "partition/", "answer/keep_hot"
ARCHIVE, PINNED, FILES = "archive/", "pinned/", "files/"
SCHEMA = "schema"
SCHEMA_VERSION = 1  # what this program reads and writes here; a registry without a number has 0

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
