"""The job of housekeeping that ends a DETACH .. CONCURRENTLY which somebody else did not end.

If it is cut off while it waits, the server leaves the partition half detached: no query sees it, no
reading can be written to it, and no other partition can be made in its place. It cannot be undone,
so the only way is to complete it. After that the table is like each one that was detached by hand:
it stays as it is, and readings of its time get a new partition.
Does not: touch a partition that retention has begun to detach, or one in a table that is not ours.
"""

from __future__ import annotations

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import life
from ingest.sinks.postgres.housekeeping.plan import Step
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View

FINISH = "finish"
WHY = (
    "its DETACH .. CONCURRENTLY was cut off: until it is completed, no reading of its time can be "
    "stored"
)

# Before PostgreSQL 14 there is no such column, and no such detach.
_PENDING = """
select c.relname::text as name, c.oid::int8 as oid, format('%I.%I', n.nspname, c.relname) as table
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = relnamespace
where i.inhparent = $1::oid and coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)"""


class HalfDetached:
    """Implements plan.Job."""

    kinds = frozenset({FINISH})

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return a step for the partition that is half detached. The server allows one at most."""
        if view.kind != PARTITIONED or not view.ours:
            return []
        return [Step(FINISH, name, WHY) for name in await _of_others(connection, view)]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """End the detach, if it was not ended meanwhile. Waits for queries that use the table."""
        table = (await _of_others(connection, view)).get(step.partition)
        if table is None:
            return
        await connection.execute(f"alter table {view.table} detach partition {table} finalize")


async def _of_others(connection: Connection, view: View) -> dict[str, str]:
    """Return the half detached partitions that retention knows nothing of: name, and as in SQL."""
    rows = await connection.fetch(_PENDING, view.oid)
    if not rows:
        return {}
    begun = await life.entries(connection, view.table)
    ours = {each.oid for each in begun.values() if each.state is life.State.DETACHING}
    return {row["name"]: row["table"] for row in rows if row["oid"] not in ours}
