"""How far the rollups of a table are, in the registry; and what retention must call.

The driver's errors pass through.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.plan import NotYet
from ingest.sinks.postgres.housekeeping.rollup_tables import tables_of
from ingest.sinks.postgres.housekeeping.spans import literal
from ingest.sinks.postgres.housekeeping.view import View
from ingest.sinks.postgres.target import TargetTable

KEY = "rollups"  # in the registry
NOT_COMPUTED = "the rollups of this time are not computed yet"


class Progress(NamedTuple):
    """Times in Unix microseconds.

    Hours before `until_us` and days before `days_until_us` are computed; None: none yet. Readings
    before `raw_from_us` have been removed: late ones of that time are left out.
    """

    until_us: int | None = None
    days_until_us: int | None = None
    raw_from_us: int | None = None


async def progress(connection: Connection, table: str) -> Progress | None:
    """Return how far they are; None if there are none, or they are off."""
    found = (await registry.entries(connection, table, KEY)).get("")
    if found is None:
        return None
    return Progress(*(found.get(name) for name in Progress._fields))


async def put(connection: Connection, registry_name: str, at: Progress) -> None:
    """Store how far they are, in the caller's transaction."""
    values: dict[str, Any] = at._asdict()
    await registry.put(connection, registry_name, KEY, values)


async def leave(
    connection: Connection, view: View, before_us: int, *, wanted: bool = False
) -> None:
    """Call it before the readings of the time before are removed.

    Raises NotYet if a rollup still needs these readings; also if rollups are `wanted`, and their
    tables could not be made yet.
    """
    at = await progress(connection, view.table)
    if at is None:
        if wanted:
            raise NotYet(NOT_COMPUTED)
        return
    if why := await _needs(connection, view, at, before_us):
        raise NotYet(why)


async def left(connection: Connection, view: View, before_us: int) -> None:
    """Call it after they were removed: from now on the rollups of that time stay as they are."""
    at = await progress(connection, view.table)
    if at is not None and (at.raw_from_us is None or at.raw_from_us < before_us):
        name, _ = await registry.name_beside(connection, view.table)
        await put(connection, name, at._replace(raw_from_us=before_us))


async def _needs(connection: Connection, view: View, at: Progress, before_us: int) -> str:
    if at.until_us is None or at.until_us < before_us:
        return NOT_COMPUTED
    names = tables_of(TargetTable(schema=view.schema, table=view.name))
    older = f"hour < {literal(before_us)}"
    if at.raw_from_us is not None:
        older += f" and hour >= {literal(at.raw_from_us)}"
    late = await connection.fetchval(
        f"select exists (select from {names.late} where {older}) "  # noqa: S608
        f"or exists (select from {names.due} where {older})"
    )
    return "late readings of this time are not in its rollups yet" if late else ""
