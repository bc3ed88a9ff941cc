"""One run of the rollups: what all its parts use.

The driver's errors pass through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import rollup_state
from ingest.sinks.postgres.housekeeping.rollup_left import NOTHING_LEFT
from ingest.sinks.postgres.housekeeping.rollup_state import Progress
from ingest.sinks.postgres.housekeeping.rollup_tables import RollupSpans, tables_of
from ingest.sinks.postgres.target import TargetTable
from ingest.system.clock import monotonic_s

# Of a pause. Work shorter than REST_S_MIN gets none: its time is added to that of the next work.
REST_S_MIN, REST_S_MAX = 0.005, 2.0
US = "(extract(epoch from {}) * 1000000)::int8"
Key = tuple[str, str, str]  # hour, as the server prints it; device, metric


class Run:
    """`target` has its schema. `at` is how far the rollups are, `left` what is in the archive.

    `part_us` is the length of a part of an hour that takes about a second. `taken` are those that
    are computed now; `failed` those that cannot be computed, and why.
    """

    def __init__(
        self,
        connection: Connection,
        oid: int,
        target: TargetTable,
        *,
        spans: RollupSpans,
        end_s: float,
        stopped: Callable[[], bool],
        part_us: int,
    ) -> None:
        self.connection = connection
        self.oid = oid
        self.target = target
        self.names = tables_of(target)
        self.spans = spans
        self.stopped = stopped
        self._end_s = end_s
        self._rested_s = monotonic_s()
        self.part_us = part_us
        self.registry = ""
        self.at = Progress()
        self.left = NOTHING_LEFT
        self.taken: list[Key] = []
        self.failed: dict[Key, str] = {}

    def ended(self) -> bool:
        """Whether the time of the run is over."""
        return self.stopped() or monotonic_s() >= self._end_s

    async def rest(self) -> None:
        """Pause for as long as the work since the last pause took: others need the CPU too.

        So a run takes about half of one core of the server. A pause has a bound, REST_S_MAX.
        """
        worked_s = monotonic_s() - self._rested_s
        if worked_s >= REST_S_MIN:
            await asyncio.sleep(min(worked_s, REST_S_MAX))
            self._rested_s = monotonic_s()

    async def put(self, at: Progress) -> None:
        """Store how far the rollups are, in the transaction of the caller if there is one."""
        await rollup_state.put(self.connection, self.registry, at)
        self.at = at

    def hour(self, ts_us: int) -> int:
        """Return the start of the hour of a time."""
        return ts_us // self.spans.hour_us * self.spans.hour_us

    def day(self, ts_us: int) -> int:
        """Return the start of the day of a time."""
        return ts_us // self.spans.day_us * self.spans.day_us

    async def closed_us(self) -> int:
        """Return the end of the last hour that may be computed, by the server's clock now."""
        now_us: int = await self.connection.fetchval(f"select {US.format('clock_timestamp()')}")
        return self.hour(now_us - self.spans.close_us)
