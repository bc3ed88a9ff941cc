"""Makes a partition: a table of its own, which is then attached.

To attach a table takes SHARE UPDATE EXCLUSIVE on the parent, so that writes go on. CREATE TABLE ..
PARTITION OF would lock it against them. All of it is one transaction: if it is cut off, nothing is
left. The new table is empty, and nobody else sees it yet, so the check of its rows costs nothing.
Promises: columns, constraints and key are those of the parent; so is the owner.
Does not: decide which ones are made. The driver's errors pass through.
"""

from __future__ import annotations

import asyncpg
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import bounds_entry
from ingest.sinks.postgres.housekeeping.spans import (
    NAME_BYTES_MAX,
    TimeSpan,
    literal,
    partition_name,
)
from ingest.sinks.postgres.housekeeping.view import View
from ingest.sinks.postgres.target import quoted

LOCK_MS = 1_000  # for the lock of the parent: somebody may be changing the table
_SAME_NAME_MAX = 100
_OVERLAPS = "42P17"
_ALONE = "select pg_advisory_xact_lock(hashtextextended('iot-ingest partitions', $1::int8))"
# Of the parent: where its partitions are to be.
_TABLESPACE = """
select s.spcname from pg_class c join pg_tablespace s on s.oid = c.reltablespace where c.oid = $1"""


async def make_partition(connection: Connection, view: View, bounds: TimeSpan) -> str | None:
    """Make and attach a partition; return its name. None: a part of its time has one by now.

    Raises StartError if the role may not. Waits for locks as long as LOCK_MS.
    """
    if view.cannot_make:
        raise StartError(view.cannot_make)
    try:
        async with connection.transaction():
            await connection.execute(
                f"set local lock_timeout = {LOCK_MS}; set local client_min_messages = warning"
            )
            await connection.execute(_ALONE, view.oid)
            name = await _free_name(connection, view, bounds)
            await _make(connection, view, name, bounds)
            known = await registry.make(connection, view.table, view.owner)
            entry = bounds_entry(bounds.from_us, bounds.to_us)
            await registry.put(connection, known, registry.PARTITION + name, entry)
            # A restored partition that had this name was dropped by hand: this one may leave.
            await registry.remove(connection, known, registry.PINNED + name)
    except asyncpg.InvalidObjectDefinitionError as error:
        if error.sqlstate != _OVERLAPS:
            raise
        return None
    return name


async def _make(connection: Connection, view: View, name: str, bounds: TimeSpan) -> None:
    table = f"{quoted(view.schema)}.{quoted(name)}"
    space = await connection.fetchval(_TABLESPACE, view.oid)
    await connection.execute(
        f"create table {table} (like {view.table} including all excluding indexes "
        f"excluding identity){f' tablespace {quoted(space)}' if space else ''}"
    )
    if view.role != view.owner:
        await connection.execute(f"alter table {table} owner to {quoted(view.owner)}")
    lower, upper = literal(bounds.from_us), literal(bounds.to_us)
    await connection.execute(
        f"alter table {view.table} attach partition {table} for values from ({lower}) to ({upper})"
    )


async def _free_name(connection: Connection, view: View, bounds: TimeSpan) -> str:
    """Return the name of a partition; if a table has it, the next one, such as .._2.

    A partition that was detached keeps its name, and its readings; an archived one its files.
    """
    wanted = partition_name(view.name, view.span, bounds.from_us)
    files = await registry.entries(connection, view.table, registry.FILES + wanted)
    for number in range(1, _SAME_NAME_MAX):
        ending = f"_{number}" if number > 1 else ""
        name = wanted.encode()[: NAME_BYTES_MAX - len(ending)].decode(errors="ignore") + ending
        taken = f"{quoted(view.schema)}.{quoted(name)}"
        held = files.get(ending)  # the files of this name: of a time that has this one in it?
        if held and not held["from_us"] <= bounds.from_us < bounds.to_us <= held["to_us"]:
            continue
        if await connection.fetchval("select to_regclass($1) is null", taken):
            return name
    raise StartError(f"there are {_SAME_NAME_MAX} tables whose names begin with {wanted}")


async def mark_ours(connection: Connection, view: View) -> None:
    """Note that housekeeping makes the partitions of this table, and how long their spans are."""
    known = await registry.make(connection, view.table, view.owner)
    await registry.put(connection, known, registry.TABLE + view.name, {"span": view.span})
