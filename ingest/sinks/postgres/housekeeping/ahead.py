"""The job for the partitions of coming days: they are made ahead, so that no write waits for one.

It covers the times that a reading may have: from now to `ts_ahead_s_max` ahead, and some spans
more, so that a few days without housekeeping do no harm. Somebody who is about to bring older
readings into the table can have it begin earlier.
"""

from __future__ import annotations

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping.making import (
    GROUP_MAX,
    make_partitions,
    mark_ours,
)
from ingest.sinks.postgres.housekeeping.partitions import archived_spans, cut_at, gaps
from ingest.sinks.postgres.housekeeping.plan import Job, Step
from ingest.sinks.postgres.housekeeping.spans import (
    DAY_US,
    TimeSpan,
    partition_name,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View

MAKE = "make"
AHEAD_US_MAX = 400 * DAY_US  # further ahead a reading makes its own partition


class PartitionsAhead(Job):
    """A Job. `ahead_s` is `ts_ahead_s_max`, `spans` how many more are made.

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
            files = await archived_spans(connection, view.table)
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
