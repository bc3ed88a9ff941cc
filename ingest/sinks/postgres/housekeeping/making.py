"""Makes partitions: each is a table of its own, which is then attached.

To attach a table takes SHARE UPDATE EXCLUSIVE on the parent, so that writes go on. CREATE TABLE ..
PARTITION OF would lock it against them. All of it is one transaction: if it is cut off, nothing is
left. The new table is empty, and nobody else sees it yet, so the check of its rows costs nothing.
Some are made in one transaction: to commit each one alone would take longer than to make it.
Promises: columns, constraints and key are those of the parent; so is the owner. Partitions that
somebody else has made can be adopted: retention and archive may then remove them.
Does not: decide which ones are made. The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import Partition, bounds_entry
from ingest.sinks.postgres.housekeeping.spans import (
    NONE,
    TimeSpan,
    literal,
    partition_name,
)
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View
from ingest.sinks.postgres.target import quoted, shortened

GROUP_MAX = 16  # in one transaction: it takes some tenths of a second if there are thousands
FAILED_MAX = 3  # of a group: then the others would probably fail too
LOCK_MS = 1_000  # for the lock of the parent: somebody may be changing the table
_SAME_NAME_MAX = 100
_OVERLAPS = "42P17"
_ALONE = "select pg_advisory_xact_lock(hashtextextended('iot-ingest partitions', {oid}))"
_ANY_IS_THERE = "select bool_or(to_regclass(name) is not null) from unnest($1::text[]) as name"
# Of the parent: where its partitions are to be.
_TABLESPACE = """
select s.spcname from pg_class c join pg_tablespace s on s.oid = c.reltablespace where c.oid = $1"""


async def make_partitions(
    connection: Connection, view: View, spans: Sequence[TimeSpan]
) -> tuple[dict[TimeSpan, str], Exception | None]:
    """Make and attach partitions, at most GROUP_MAX, in one transaction.

    If one of them cannot be made, each is made by itself, until FAILED_MAX have failed. Returns the
    names by their spans, and the first failure, which is StartError if the role may not. A name is
    empty if a part of its time has a partition by now. Waits for locks as long as LOCK_MS.
    """
    if view.cannot_make:
        return {}, StartError(view.cannot_make)
    if len(spans) > 1:
        try:
            names = await make_group(connection, view, spans)
            return dict(zip(spans, names, strict=True)), None
        except (asyncpg.PostgresError, StartError) as error:
            if _fails_for_all(connection, error):
                return {}, error
    made: dict[TimeSpan, str] = {}
    failed: list[Exception] = []
    for bounds in spans:
        try:
            (made[bounds],) = await make_group(connection, view, [bounds])
        except (asyncpg.PostgresError, StartError) as error:
            if getattr(error, "sqlstate", None) == _OVERLAPS:
                made[bounds] = ""
                continue
            failed.append(error)
            if _fails_for_all(connection, error) or len(failed) == FAILED_MAX:
                break
    return made, failed[0] if failed else None


def _fails_for_all(connection: Connection, error: Exception) -> bool:
    """Whether no other partition could be made now, either."""
    return connection.is_closed() or isinstance(error, asyncpg.LockNotAvailableError)


async def make_group(connection: Connection, view: View, spans: Sequence[TimeSpan]) -> list[str]:
    """Make and attach partitions in one transaction: all of them or none. Return their names."""
    async with connection.transaction():
        await connection.execute(
            f"set local lock_timeout = {LOCK_MS}; set local client_min_messages = warning; "
            f"{_ALONE.format(oid=view.oid)}"
        )
        space = await connection.fetchval(_TABLESPACE, view.oid)
        names = await _wanted_names(connection, view, spans)
        if names:
            # All tables first: after each attachment the server reads all bounds of the parent.
            tables = [_make(view, name, space) for name in names]
            attached = [_attach(view, *each) for each in zip(names, spans, strict=True)]
            await connection.execute("; ".join(tables + attached))
        else:
            for bounds in spans:
                names.append(await _free_name(connection, view, bounds))
                made = _make(view, names[-1], space)
                await connection.execute(f"{made}; {_attach(view, names[-1], bounds)}")
        known = await registry.make(connection, view.table, view.owner)
        entries = {
            registry.PARTITION + name: bounds_entry(*bounds)
            for name, bounds in zip(names, spans, strict=True)
        }
        await registry.put(connection, known, entries)
        # A restored partition that had such a name was dropped by hand: this one may leave.
        await registry.remove(connection, known, *(registry.PINNED + name for name in names))
    return names


def _make(view: View, name: str, space: str | None) -> str:
    table = f"{quoted(view.schema)}.{quoted(name)}"
    made = (
        f"create table {table} (like {view.table} including all excluding indexes "
        f"excluding identity){f' tablespace {quoted(space)}' if space else ''}"
    )
    if view.role == view.owner:
        return made
    return f"{made}; alter table {table} owner to {quoted(view.owner)}"


def _attach(view: View, name: str, bounds: TimeSpan) -> str:
    lower, upper = literal(bounds.from_us), literal(bounds.to_us)
    table = f"{quoted(view.schema)}.{quoted(name)}"
    return (
        f"alter table {view.table} attach partition {table} for values from ({lower}) to ({upper})"
    )


async def _wanted_names(connection: Connection, view: View, spans: Sequence[TimeSpan]) -> list[str]:
    """Return the names that partitions usually have; nothing if one of them is not free."""
    names = [partition_name(view.name, view.span, each.from_us) for each in spans]
    tables = [f"{quoted(view.schema)}.{quoted(name)}" for name in names]
    keys = [registry.FILES + name for name in names]
    free = (
        len(set(names)) == len(names)
        and not await connection.fetchval(_ANY_IS_THERE, tables)
        and not await registry.has_any(connection, view.table, keys)
    )
    return names if free else []


async def _free_name(connection: Connection, view: View, bounds: TimeSpan) -> str:
    """Return the name of a partition; if a table has it, the next one, such as .._2.

    A partition that was detached keeps its name, and its readings; an archived one its files.
    """
    wanted = partition_name(view.name, view.span, bounds.from_us)
    files = await registry.entries(connection, view.table, registry.FILES + wanted)
    for number in range(1, _SAME_NAME_MAX):
        ending = f"_{number}" if number > 1 else ""
        name = shortened(wanted, ending)
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
    await registry.put(connection, known, {registry.TABLE + view.name: {"span": view.span}})


def adoptable(view: View, names: Sequence[str]) -> list[Partition]:
    """Return those of the named partitions (without names: of all) that are not ours yet.

    Raises StartError if the table is not partitioned by time, or has no partition of that name.
    """
    if view.kind != PARTITIONED:
        raise StartError(f"{view.table} is not partitioned by its time: there is nothing to adopt")
    by_name = {each.name: each for each in view.partitions}
    if unknown := [each for each in names if each not in by_name]:
        raise StartError(f"{view.table} has no partition {unknown[0]} with bounds of its time")
    chosen = [by_name[each] for each in dict.fromkeys(names)] if names else view.partitions
    return [each for each in chosen if not each.ours]


async def adopt(connection: Connection, view: View, chosen: Sequence[Partition], span: str) -> None:
    """Enter the partitions, and the table, as ours, with the bounds that they have now.

    New partitions will have a `span` each. Raises StartError if this role may not make or drop
    partitions, or if there is no span.
    """
    if view.cannot_make:
        raise StartError(view.cannot_make)
    if span == NONE:
        raise StartError("set partition_span to day or month: new partitions get this span")
    async with connection.transaction():
        kept = await registry.make(connection, view.table, view.owner)
        made: dict[str, object] = {registry.TABLE + view.name: {"span": span}}
        for each in chosen:
            made[registry.PARTITION + each.name] = bounds_entry(each.from_us, each.to_us)
        await registry.put(connection, kept, made)
