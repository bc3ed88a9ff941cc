"""The jobs for the partitions of coming days: they are made ahead, so that no write waits for one.

It covers the times that a reading may have: from now to `ts_ahead_s_max` ahead, and some spans
more, so that a few days without housekeeping do no harm. Somebody who is about to bring older
readings into the table can have it begin earlier.
"""

from __future__ import annotations

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import archived, life
from ingest.sinks.postgres.housekeeping.making import (
    GROUP_MAX,
    make_partitions,
    mark_ours,
)
from ingest.sinks.postgres.housekeeping.partitions import cut_at, gaps
from ingest.sinks.postgres.housekeeping.plan import Step
from ingest.sinks.postgres.housekeeping.spans import (
    DAY_US,
    TimeSpan,
    partition_name,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View

MAKE, FINISH = "make", "finish"
WHY = (
    "its DETACH .. CONCURRENTLY was cut off: until it is completed, no reading of its time can be "
    "stored"
)

# Before PostgreSQL 14 there is no such column, and no such detach.
_PENDING = """
select c.relname::text as name, c.oid::int8 as oid, format('%I.%I', n.nspname, c.relname) as table
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = relnamespace
where i.inhparent = $1::oid and coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)"""
AHEAD_US_MAX = 400 * DAY_US  # further ahead a reading makes its own partition


class PartitionsAhead:
    """Implements plan.Job. `ahead_s` is `ts_ahead_s_max`, `spans` how many more are made.

    With `from_us` it begins at that time, and makes none if there would be more than
    `partitions_max`.
    """

    kinds = frozenset({MAKE})

    def __init__(
        self, *, ahead_s: float, spans: int, from_us: int | None = None, partitions_max: int = 0
    ) -> None:
        self._ahead_us = min(int(ahead_s * 1e6), AHEAD_US_MAX)
        self._spans = spans
        self._from_us = from_us
        self._partitions_max = partitions_max
        self._planned: list[TimeSpan] = []
        self._made = set[TimeSpan]()  # with an earlier step of the plan

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return a step for each span that has no partition; none for a table that is not ours.

        Nor for one with a default partition, which takes all readings. Raises StartError if
        `from_us` asks for too many.
        """
        if view.kind != PARTITIONED or not view.ours or view.has_default:
            return []
        missing = self.missing(view)
        self._made.clear()
        if self._from_us is not None:
            # A partition may lie in one archived span only: it is merged with the files of that.
            files = await archived.spans(connection, view.table)
            missing = [each for gap in missing for each in cut_at(gap, files)]
            if (count := len(view.partitions) + len(missing)) > self._partitions_max:
                raise StartError(
                    f"the table would have {count:,} partitions, more than partitions_max "
                    f"({self._partitions_max:,}): none was made"
                )
        self._planned = missing
        return [
            Step(
                MAKE,
                partition_name(view.name, view.span, gap.from_us),
                "readings of this time may come soon",
                *gap,
            )
            for gap in missing
        ]

    def missing(self, view: View) -> list[TimeSpan]:
        """Return what must be covered from now on, and is not."""
        bounds = span_bounds(view.span, view.now_us + self._ahead_us)
        for _ in range(self._spans):
            bounds = span_bounds(view.span, bounds.to_us)
        from_us = view.now_us if self._from_us is None else min(view.now_us, self._from_us)
        found = gaps(view.partitions, view.span, from_us, bounds.to_us)
        return [each for each in found if each.to_us > from_us]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Make this partition, and the next ones of the plan in the same transaction.

        Another process may have made one meanwhile. If one of the next ones cannot be made, its
        own step says so.
        """
        bounds = TimeSpan(step.from_us, step.to_us)
        if bounds not in self._made:
            at = self._planned.index(bounds)
            group = [each for each in self._planned[at : at + GROUP_MAX] if each not in self._made]
            made, failed = await make_partitions(connection, view, group)
            self._made.update(made)
            if failed is not None and bounds not in made:
                raise failed

    async def begin(self, connection: Connection, view: View) -> int:
        """Make the first partitions of a table that was just made; return how many."""
        if view.kind != PARTITIONED:
            raise StartError(f"{view.table} is not partitioned by time")
        await mark_ours(connection, view)
        missing = self.missing(view)
        for at in range(0, len(missing), GROUP_MAX):
            _, failed = await make_partitions(connection, view, missing[at : at + GROUP_MAX])
            if failed is not None:
                raise failed
        return len(missing)


class HalfDetached:
    """The job that ends a DETACH .. CONCURRENTLY which somebody else did not end.

    If it is cut off while it waits, the server leaves the partition half detached: no query sees
    it, no reading can be written to it, and no other partition can be made in its place. It cannot
    be undone, so the only way is to complete it. After that the table is like each one that was
    detached by hand: it stays as it is, and readings of its time get a new partition. What
    retention has begun to detach is left alone, and so is a table that is not ours.
    """

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
    damaged = {name for name, each in begun.items() if each.state is life.State.DAMAGED}
    return {
        row["name"]: row["table"]
        for row in rows
        if row["oid"] not in ours and row["name"] not in damaged
    }
