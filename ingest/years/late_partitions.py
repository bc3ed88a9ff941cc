"""Partitions for readings that find none: late ones, and those far ahead.

Promises: bounded: for one write partitions of a table are made for AT_ONCE_S, in transactions of
GROUP_MAX, and at most AT_ONCE_MAX; none for a time older than the limit, within a day half of those
that `partitions_max` leaves, and after a failure none for a while. So a write waits some seconds at
most, and once; and no sender takes all partitions at once. All else is set aside, and comes back by
itself.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ingest.sinks.postgres.connection import Connection, DatabaseUrl, Timeouts
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.known_partitions import KnownPartitions, LateLimit
from ingest.sinks.postgres.housekeeping.making import GROUP_MAX, make_partitions
from ingest.sinks.postgres.housekeeping.partitions import (
    DAY_US,
    Partition,
    TimeSpan,
    archived_spans,
    gaps_of,
)
from ingest.sinks.postgres.housekeeping.table_state import View
from ingest.sinks.postgres.schema import TargetTable
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import get_logger
from ingest.years.retention import Policy, is_confirmed

# For one write. A device with a wrong clock delays the others of a batch for no longer than this;
# a user who brings in years of readings has each of these days made after few writes.
AT_ONCE_S, AT_ONCE_MAX = 1.0, 512

log = get_logger("housekeeping")


class LatePartitions(KnownPartitions):
    """Knows which times have a partition, and makes missing ones. For one event loop.

    `url` is that of the role that makes them. Readings that `policy` would let leave at once,
    without an archive, get none: but only once a person has confirmed it.
    """

    def __init__(
        self,
        url: DatabaseUrl,
        timeouts: Timeouts,
        *,
        span: str,
        target: TargetTable,
        limit: LateLimit,
        partitions_max: int,
        policy: Policy | None,
    ) -> None:
        super().__init__(url, timeouts, span=span, target=target, limit=limit)
        self._configured = limit
        self._partitions_max = partitions_max
        self._policy = policy
        self._archived: list[TimeSpan] = []
        self.made_s: deque[float] = deque()  # when each one of the last day was made

    async def look(self, connection: Connection) -> None:
        """Look at what is archived and at what a person has confirmed, then at the table."""
        table = self.target.name
        self._archived = await archived_spans(connection, table)
        answers = await registry.entries(connection, table, registry.KEEP_HOT)
        self.limit = self._limit_under(answers.get(""))
        await super().look(connection)

    def _limit_under(self, answer: Mapping[str, Any] | None) -> LateLimit:
        """Return the limit after the last confirmation, which may be None."""
        policy = self._policy
        if policy is None or policy.archive_dir or policy.keep_us >= self._configured.us_max:
            return self._configured
        if not is_confirmed(policy, answer):
            return self._configured
        return LateLimit(policy.keep_us, f"{policy.keep_hot} (keep_hot)")

    def to_make(self, times_us: Sequence[int]) -> list[TimeSpan]:
        """Return the spans to make now, the newest first: readings of today wait least."""
        view = self.view
        if view is None or not view.ours or self.rests:
            return []
        oldest_us = unix_us() - self.limit.us_max
        most = min(AT_ONCE_MAX, self._may_make(view))
        found: list[TimeSpan] = []
        for each in sorted(set(times_us), reverse=True):
            if len(found) >= most or each < oldest_us:
                break
            if not (found and found[-1].from_us <= each) and not self.is_covered(each):
                found += gaps_of(view.partitions, view.span, [each], self._archived)
        return found

    async def make(self, connection: Connection, spans: Sequence[TimeSpan], asked_s: float) -> None:
        """Make partitions until AT_ONCE_S are over."""
        for at in range(0, len(spans), GROUP_MAX):
            await self._make(connection, spans[at : at + GROUP_MAX])
            if monotonic_s() > asked_s + AT_ONCE_S:
                break

    async def _make(self, connection: Connection, spans: Sequence[TimeSpan]) -> None:
        """Make a group of partitions, and know them without a look: that takes long with many."""
        view = self.view
        assert view is not None, "the spans come from it"
        made, failed = await make_partitions(connection, view, spans)
        for bounds, name in made.items():
            if name:
                self.made_s.append(monotonic_s())
                log.info("partition_made", partition=name, why="readings found none")
                partition = Partition(name, *bounds, 0, True)
                insort(view.partitions, partition, key=lambda each: each.from_us)
        self.know(view)
        if not all(made.values()) and not connection.is_closed():  # somebody else has made one
            await self.look(connection)
        if failed is not None:
            raise failed

    def _may_make(self, view: View) -> int:
        """Return how many of those that were free a day ago may still be made: half of them."""
        while self.made_s and self.made_s[0] < monotonic_s() - DAY_US / 1e6:
            self.made_s.popleft()
        free = self._partitions_max - len(view.partitions)
        return (free - len(self.made_s) + 1) // 2

    def makes_none(self, view: View) -> str:
        """Return that `partitions_max` leaves no more, or nothing."""
        if self._may_make(view) > 0:
            return ""
        return (
            f"the table has {len(view.partitions)}; {len(self.made_s)} were made within a day: at "
            f"most half of those that partitions_max ({self._partitions_max}) leaves"
        )
