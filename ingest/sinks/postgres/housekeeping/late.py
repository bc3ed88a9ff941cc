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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import DatabaseUrl, Timeouts, text_of
from ingest.sinks.postgres.housekeeping import archived, registry
from ingest.sinks.postgres.housekeeping.keeping import Policy, is_confirmed
from ingest.sinks.postgres.housekeeping.making import make_partition
from ingest.sinks.postgres.housekeeping.opening import opened
from ingest.sinks.postgres.housekeeping.partitions import gaps_of
from ingest.sinks.postgres.housekeeping.spans import TimeSpan
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View, look_at
from ingest.sinks.postgres.session import as_start_error
from ingest.sinks.postgres.target import TargetTable
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import Occasionally, get_logger

AT_ONCE_MAX = 32
LOOK_S_MIN, FRESH_S = 2.0, 15.0  # between two looks at the catalog; how long one is believed
FAILED_S_MIN, FAILED_S_MAX = 2.0, 60.0  # after a partition could not be made
WARNING_S = 600.0

log = get_logger("housekeeping")


class LateLimits(NamedTuple):
    """What readings may cause. `late_us_max`: older ones get no partition.

    Nor do those that `policy` would let leave at once, without an archive: but only once a person
    has confirmed it.
    """

    late_us_max: int
    partitions_max: int
    late_named: str  # how long that is, and the setting of it
    policy: Policy | None = None

    def under(self, answer: Mapping[str, Any] | None) -> LateLimits:
        """Return the limits after the last confirmation, which may be None."""
        policy = self.policy
        if policy is None or policy.archive_dir or policy.keep_us >= self.late_us_max:
            return self
        if not is_confirmed(policy, answer):
            return self
        return self._replace(
            late_us_max=policy.keep_us, late_named=f"{policy.keep_hot} (keep_hot)", policy=None
        )


class NoPartition(NamedTuple):
    """Why a time has no partition. `final`: it gets none later, either."""

    message: str
    final: bool


class LatePartitions:
    """Knows which times have a partition, and makes missing ones. For one event loop.

    `url` is that of the role that makes them. `eager`: the sink also asks before it looks for rows
    that are refused; a replay by hand does nothing else.
    """

    def __init__(
        self,
        url: DatabaseUrl,
        timeouts: Timeouts,
        *,
        span: str,
        target: TargetTable,
        limits: LateLimits,
        eager: bool = False,
    ) -> None:
        self.eager = eager
        self._url = url
        self._timeouts = timeouts
        self._span = span
        self._target = target
        self._configured = self._limits = limits
        self._making = asyncio.Lock()
        self._view: View | None = None
        self._lower: list[int] = []  # of the partitions, sorted
        self._upper: list[int] = []
        self._archived: list[TimeSpan] = []
        self._looked_s = self._not_before_s = float("-inf")
        self._is_away = False  # the database could not be looked at
        self._failures = 0
        self._why = ""  # of the last failure
        self.made = 0
        self._occasionally = Occasionally(WARNING_S)

    @property
    def knows(self) -> bool:
        """Whether the bounds of the partitions are known, and no older than some seconds."""
        return self._partitioned is not None and self._age_s < FRESH_S

    @property
    def _partitioned(self) -> View | None:
        """The view, if only the bounds of the partitions decide which times have one."""
        view = self._view
        if view is None or view.kind != PARTITIONED or view.has_default:
            return None
        return view

    @property
    def _age_s(self) -> float:
        return monotonic_s() - self._looked_s

    def is_covered(self, ts_us: int) -> bool:
        """Whether a time has a partition, as far as we know."""
        at = bisect_right(self._lower, ts_us) - 1
        return at >= 0 and ts_us < self._upper[at]

    async def make_for(self, times_us: Sequence[int]) -> bool:
        """Look which of these times have no partition; make what may be made.

        Returns whether the same write may succeed now: all of them have one. Takes some seconds at
        most, and after a failure nothing for a while.
        """
        async with self._making:
            seen = self._age_s < LOOK_S_MIN and not self._to_make(times_us)
            rests = self._is_away and monotonic_s() < self._not_before_s
            if not (seen or rests):
                await self._try_to_make(times_us)
        return self.knows and all(map(self.is_covered, times_us))

    async def _try_to_make(self, times_us: Sequence[int]) -> None:
        self._is_away = True
        try:
            async with asyncio.timeout(self._timeouts.command_s_max):
                await self._look_and_make(times_us)
        except (StartError, TimeoutError) as error:
            self._failed(text_of(error))

    async def _look_and_make(self, times_us: Sequence[int]) -> None:
        url = self._url()
        async with opened(url, self._timeouts) as connection:
            with as_start_error(url):
                await self._look(connection)
                view, missing = self._view, self._to_make(times_us)
                if view is None or not missing:
                    self._warn(times_us)
                    return
                for gap in missing:
                    if name := await make_partition(connection, view, gap):
                        self.made += 1
                        log.info("partition_made", partition=name, why="readings found none")
                self._failures, self._why = 0, ""
                await self._look(connection)

    async def _look(self, connection: Connection) -> None:
        view = await look_at(
            connection, self._target.name, self._span, target=self._target, sizes=False
        )
        self._archived = await archived.spans(connection, view.table)
        answers = await registry.entries(connection, view.table, registry.KEEP_HOT)
        self._limits = self._configured.under(answers.get(""))
        self._view = view
        self._lower = [each.from_us for each in view.partitions]
        self._upper = [each.to_us for each in view.partitions]
        self._looked_s = monotonic_s()
        self._is_away = False

    def _to_make(self, times_us: Sequence[int]) -> list[TimeSpan]:
        """Return the spans to make now, the newest first: readings of today wait least."""
        view = self._partitioned
        if view is None or not view.ours or monotonic_s() < self._not_before_s:
            return []
        oldest_us = unix_us() - self._limits.late_us_max
        most = min(AT_ONCE_MAX, self._limits.partitions_max - len(view.partitions))
        found: list[TimeSpan] = []
        for each in sorted(set(times_us), reverse=True):
            if len(found) >= most or each < oldest_us:
                break
            if not (found and found[-1].from_us <= each) and not self.is_covered(each):
                found += gaps_of(view.partitions, view.span, [each], self._archived)
        return found

    def why_not(self, ts_us: int) -> NoPartition | None:
        """Return why a time has no partition; None if it has one, or that is not known."""
        view = self._partitioned
        if view is None or self.is_covered(ts_us):
            return None
        late_us = self._limits.late_us_max
        if view.ours and ts_us < unix_us() - late_us:
            return NoPartition(f"older than {self._limits.late_named}", final=True)
        return NoPartition(
            f"there is no partition for this time: {self._reason(view)}", final=False
        )

    def _reason(self, view: View) -> str:
        if view.cannot_make:
            return view.cannot_make
        if not view.ours:
            return "the table was partitioned by somebody else"
        if len(view.partitions) >= self._limits.partitions_max:
            return f"the table has {len(view.partitions)} (partitions_max)"
        return self._why or "it will be made soon"

    def _failed(self, why: str) -> None:
        """Make none for a while; say why."""
        pause_s = backoff_s(self._failures, first_s=FAILED_S_MIN, cap_s=FAILED_S_MAX)
        self._failures += 1
        self._why = why
        self._not_before_s = monotonic_s() + pause_s
        if self._occasionally.due(why) is not None:
            log.warning("partition_not_made", why=why)

    def _warn(self, times_us: Sequence[int]) -> None:
        """Say why there is none for one of these times, if somebody has to fix that."""
        whys = filter(None, map(self.why_not, times_us))
        why = next((each.message for each in whys if not each.final), "")
        if why and self._occasionally.due(why) is not None:
            log.warning("partition_not_made", why=why)
