"""Partitions for readings that find none: late ones, and those far ahead.

Shared by the sinks of one process. After a write that found no partition, the sink asks here which
times have one, and whether the others can get one.
Promises: bounded: at most AT_ONCE_MAX partitions for one write, none for a time older than
`late_us_max`, none if the table has `partitions_max`, and after a failure none for a while. So a
write waits a few seconds at most, and once. All else is set aside, and comes back by itself.
Does not: raise an error of the driver, or hold the connection of a sink.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import DRIVER_ERRORS, DatabaseUrl, Timeouts, text_of
from ingest.sinks.postgres.housekeeping.making import make_partition
from ingest.sinks.postgres.housekeeping.opening import opened
from ingest.sinks.postgres.housekeeping.partitions import gaps_of
from ingest.sinks.postgres.housekeeping.spans import Span
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View, look_at
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import Occasionally, get_logger

AT_ONCE_MAX = 32
LOOK_S_MIN = 0.5  # between two looks at the catalog that change nothing
FAILED_S_MIN, FAILED_S_MAX = 2.0, 60.0  # after a partition could not be made
WARNING_S = 600.0

log = get_logger("housekeeping")


class Limits(NamedTuple):
    """What readings may cause: the settings of these names, as numbers."""

    late_us_max: int
    partitions_max: int


class NoPartition(NamedTuple):
    """Why a time has no partition. `final`: it gets none later, either."""

    message: str
    final: bool


class LatePartitions:
    """Knows which times have a partition, and makes missing ones. For one event loop."""

    def __init__(
        self, url: DatabaseUrl, timeouts: Timeouts, *, span: str, table: str, limits: Limits
    ) -> None:
        self._url = url
        self._timeouts = timeouts
        self._span = span
        self._table = table
        self._limits = limits
        self._making = asyncio.Lock()
        self._view: View | None = None
        self._lower: list[int] = []  # of the partitions, sorted
        self._upper: list[int] = []
        self._looked_s = self._not_before_s = float("-inf")
        self._failures = 0
        self._why = ""  # of the last failure
        self.made = 0
        self._occasionally = Occasionally(WARNING_S)

    @property
    def knows(self) -> bool:
        """Whether the bounds of the partitions are known: the table is partitioned by time."""
        return self._view is not None and self._view.kind == PARTITIONED

    def is_covered(self, ts_us: int) -> bool:
        """Whether a time has a partition, as far as we know."""
        at = bisect_right(self._lower, ts_us) - 1
        return at >= 0 and ts_us < self._upper[at]

    async def make_for(self, times_us: Iterable[int]) -> bool:
        """Look which of these times have no partition; make what may be made.

        Returns whether the same write may succeed now: all of them have one. Takes some seconds at
        most.
        """
        times = list(times_us)
        async with self._making:
            fresh = monotonic_s() - self._looked_s < LOOK_S_MIN
            if fresh and all(map(self.is_covered, times)):
                return True  # another write of this process had them made
            if monotonic_s() < self._not_before_s:
                return False
            try:
                async with asyncio.timeout(self._timeouts.command_s_max):
                    await self._look_and_make(times)
            except (asyncpg.PostgresError, *DRIVER_ERRORS, StartError, ValueError) as error:
                self._failed(text_of(error))
        return self.knows and all(map(self.is_covered, times))

    async def _look_and_make(self, times: list[int]) -> None:
        async with opened(self._url(), self._timeouts) as connection:
            await self._look(connection)
            view = self._view
            missing = self._wanted(view, times) if view is not None else []
            if view is None or not missing:
                self._not_before_s = monotonic_s() + LOOK_S_MIN  # there is nothing to make
                return
            if not view.ours:
                raise StartError("the table was partitioned by somebody else, who has to make them")
            for gap in missing[:AT_ONCE_MAX]:
                if name := await make_partition(connection, view, gap):
                    self.made += 1
                    log.info("partition_made", partition=name, why="readings found none")
            self._failures, self._why = 0, ""
            await self._look(connection)

    async def _look(self, connection: asyncpg.Connection) -> None:
        view = await look_at(connection, self._table, self._span, sizes=False)
        self._view = view
        self._lower = [each.from_us for each in view.partitions]
        self._upper = [each.to_us for each in view.partitions]
        self._looked_s = monotonic_s()

    def _wanted(self, view: View, times: list[int]) -> list[Span]:
        """Return the spans to make, the newest first: readings of today wait least."""
        oldest_us = unix_us() - self._limits.late_us_max
        late = [each for each in times if each >= oldest_us and not self.is_covered(each)]
        room = max(0, self._limits.partitions_max - len(view.partitions))
        found = gaps_of(view.partitions, view.span, late)[::-1]
        if found and not room:
            self._why = f"the table has {len(view.partitions)} partitions (partitions_max)"
        return found[:room]

    def why_not(self, ts_us: int) -> NoPartition | None:
        """Return why a time has no partition; None if it has one, or that is not known."""
        if not self.knows or self.is_covered(ts_us):
            return None
        late_us = self._limits.late_us_max
        assert self._view is not None, "it is known"
        if self._view.ours and ts_us < unix_us() - late_us:
            days = late_us // 86_400_000_000
            return NoPartition(f"older than {days} days (partition_late_days_max)", final=True)
        return NoPartition(self._why or "there is no partition for this time yet", final=False)

    def _failed(self, why: str) -> None:
        """Make none for a while; say why."""
        self._failures += 1
        self._why = why
        pause_s = backoff_s(self._failures, first_s=FAILED_S_MIN, cap_s=FAILED_S_MAX)
        self._not_before_s = monotonic_s() + pause_s
        if self._occasionally.due(why) is not None:
            log.warning("partition_not_made", why=why)
