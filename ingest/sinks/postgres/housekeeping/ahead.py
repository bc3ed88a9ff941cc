"""The job that makes partitions ahead of time, so that no write waits for one.

It covers the times that a reading may have: from now to `ts_ahead_s_max` ahead, and some spans
more, so that a few days without housekeeping do no harm.
"""

from __future__ import annotations

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping.making import make_partition, mark_ours
from ingest.sinks.postgres.housekeeping.partitions import gaps
from ingest.sinks.postgres.housekeeping.plan import Step
from ingest.sinks.postgres.housekeeping.spans import (
    DAY_US,
    TimeSpan,
    partition_name,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View

MAKE = "make"
AHEAD_US_MAX = 400 * DAY_US  # further ahead a reading makes its own partition


class PartitionsAhead:
    """Implements plan.Job. `ahead_s` is `ts_ahead_s_max`, `spans` how many more are made."""

    kinds = frozenset({MAKE})

    def __init__(self, *, ahead_s: float, spans: int) -> None:
        self._ahead_us = min(int(ahead_s * 1e6), AHEAD_US_MAX)
        self._spans = spans

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return a step for each span that has no partition; none for a table that is not ours.

        Nor for one with a default partition, which takes all readings.
        """
        del connection
        if view.kind != PARTITIONED or not view.ours or view.has_default:
            return []
        return [
            Step(
                MAKE,
                partition_name(view.name, view.span, gap.from_us),
                "readings of this time may come soon",
                *gap,
            )
            for gap in self.missing(view)
        ]

    def missing(self, view: View) -> list[TimeSpan]:
        """Return what must be covered from now on, and is not."""
        bounds = span_bounds(view.span, view.now_us + self._ahead_us)
        for _ in range(self._spans):
            bounds = span_bounds(view.span, bounds.to_us)
        found = gaps(view.partitions, view.span, view.now_us, bounds.to_us)
        return [each for each in found if each.to_us > view.now_us]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Make one partition. Another process may have made it meanwhile."""
        await make_partition(connection, view, TimeSpan(step.from_us, step.to_us))

    async def begin(self, connection: Connection, view: View) -> int:
        """Make the first partitions of a table that was just made; return how many."""
        if view.kind != PARTITIONED:
            raise StartError(f"{view.table} is not partitioned by time")
        await mark_ours(connection, view)
        missing = self.missing(view)
        for gap in missing:
            await make_partition(connection, view, gap)
        return len(missing)
