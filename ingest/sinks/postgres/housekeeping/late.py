"""Partitions for readings that find none: late ones, and those far ahead.

Shared by the sinks of one process. After a write that found no partition, the sink asks here which
times have one, and whether the others can get one.
Promises: bounded: for one write partitions are made for AT_ONCE_S, in transactions of GROUP_MAX,
and at most AT_ONCE_MAX in all; none for a time older than `late_us_max`, within a day half of those
that `partitions_max` leaves, and after a failure none for a while. So a write waits some seconds at
most, and once; and no sender takes all partitions at once. All else is set aside, and comes back by
itself.
Does not: raise an error of the driver, or hold the connection of a sink.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import DatabaseUrl, Timeouts, text_of
from ingest.sinks.postgres.housekeeping import archived, registry
from ingest.sinks.postgres.housekeeping.keeping import Policy, is_confirmed
from ingest.sinks.postgres.housekeeping.making import GROUP_MAX, make_partitions
from ingest.sinks.postgres.housekeeping.opening import opened
from ingest.sinks.postgres.housekeeping.partitions import Partition, gaps_of
from ingest.sinks.postgres.housekeeping.spans import DAY_US, TimeSpan
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View, look_at
from ingest.sinks.postgres.target import TargetTable
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, rfc3339_or_us, unix_us
from ingest.system.logs import Occasionally, get_logger

# For one write. A device with a wrong clock delays the others of a batch for no longer than this;
# a user who brings in years of readings has each of these days made after few writes.
AT_ONCE_S, AT_ONCE_MAX = 1.0, 512
LOOK_S_MIN, FRESH_S = 2.0, 15.0  # between two looks at the catalog; how long one is believed
FAILED_S_MIN, FAILED_S_MAX = 2.0, 60.0  # after a partition could not be made
WARNING_S = 600.0
LACKING_S = 330.0  # the automatic replay tries such readings again more often than this

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


class Lack(NamedTuple):
    """Readings that wait for a person: `why` no partition can be made, seen at `at_s`.

    `from_us` and `to_us` are the oldest and the newest of their times.
    """

    from_us: int
    to_us: int
    why: str
    at_s: float


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
        self._archived: list[TimeSpan] = []
        self._looked_s = self._not_before_s = float("-inf")
        self._is_away = False  # the database could not be looked at
        self._failures = 0
        self._why = ""  # of the last failure
        self._lack: Lack | None = None
        self.made_s: deque[float] = deque()  # when each one of the last day was made
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
        at, view = bisect_right(self._lower, ts_us) - 1, self._view
        return view is not None and at >= 0 and ts_us < view.partitions[at].to_us

    async def make_for(self, times_us: Sequence[int]) -> bool:
        """Look which of these times have no partition; make what may be made.

        Returns whether the same write may succeed now: all of them have one. Takes some seconds at
        most, and after a failure nothing for a while.
        """
        until_s = monotonic_s() + AT_ONCE_S
        async with self._making:
            seen = self._age_s < LOOK_S_MIN and not self._to_make(times_us)
            rests = self._is_away and monotonic_s() < self._not_before_s
            if not (seen or rests):
                await self._try_to_make(times_us, until_s)
            if self.knows and all(map(self.is_covered, times_us)):
                return True
            self._note_lack(times_us)
        return False

    @property
    def lacking(self) -> str:
        """What readings wait for and only a person can do, in words; empty if none do."""
        lack = self._lack
        if lack is None or monotonic_s() - lack.at_s > LACKING_S:
            return ""
        first, last = (str(rfc3339_or_us(each - each % DAY_US))[:10] for each in lack[:2])
        return f"no partition for readings from {first} to {last}: {lack.why}"

    def seen(self, view: View) -> None:
        """Take over that somebody else has made what was lacking."""
        lack = self._lack
        if lack is not None and not gaps_of(view.partitions, view.span, lack[:2]):
            self._lack = None

    def _note_lack(self, times_us: Sequence[int]) -> None:
        view, lack = self._partitioned, self._lack
        age_s = LACKING_S if lack is None else monotonic_s() - lack.at_s
        if view is None or age_s < LOOK_S_MIN:
            return
        oldest_us = unix_us() - self._limits.late_us_max
        times = [each for each in times_us if each >= oldest_us and not self.is_covered(each)]
        if times and (why := self._for_a_person(view)):
            if lack is not None and age_s < LACKING_S:
                times += lack[:2]
            self._lack = Lack(min(times), max(times), why, monotonic_s())

    async def _try_to_make(self, times_us: Sequence[int], until_s: float) -> None:
        self._is_away = True
        try:
            async with asyncio.timeout(self._timeouts.command_s_max):
                await self._look_and_make(times_us, until_s)
        except (StartError, TimeoutError) as error:
            self._failed(text_of(error))

    async def _look_and_make(self, times_us: Sequence[int], until_s: float) -> None:
        async with opened(self._url(), self._timeouts) as connection:
            if self._age_s >= LOOK_S_MIN:
                await self._look(connection)
            self._is_away = False
            missing = self._to_make(times_us)
            if not missing:
                self._warn(times_us)
                return
            for at in range(0, len(missing), GROUP_MAX):
                await self._make(connection, missing[at : at + GROUP_MAX])
                if monotonic_s() > until_s:
                    break
            self._failures, self._why = 0, ""

    async def _make(self, connection: Connection, spans: Sequence[TimeSpan]) -> None:
        """Make a group of partitions, and know them without a look: that takes long with many."""
        view = self._view
        assert view is not None, "the spans come from it"
        made, failed = await make_partitions(connection, view, spans)
        for bounds, name in made.items():
            if name:
                self.made_s.append(monotonic_s())
                log.info("partition_made", partition=name, why="readings found none")
                partition = Partition(name, *bounds, 0, True)
                insort(view.partitions, partition, key=lambda each: each.from_us)
        self._lower = [each.from_us for each in view.partitions]
        if not all(made.values()) and not connection.is_closed():  # somebody else has made one
            await self._look(connection)
        if failed is not None:
            raise failed

    async def _look(self, connection: Connection) -> None:
        view = await look_at(
            connection, self._target.name, self._span, target=self._target, sizes=False
        )
        self._archived = await archived.spans(connection, view.table)
        answers = await registry.entries(connection, view.table, registry.KEEP_HOT)
        self._limits = self._configured.under(answers.get(""))
        self._view = view
        self._lower = [each.from_us for each in view.partitions]
        self._looked_s = monotonic_s()

    def _to_make(self, times_us: Sequence[int]) -> list[TimeSpan]:
        """Return the spans to make now, the newest first: readings of today wait least."""
        view = self._partitioned
        if view is None or not view.ours or monotonic_s() < self._not_before_s:
            return []
        oldest_us = unix_us() - self._limits.late_us_max
        most = min(AT_ONCE_MAX, self._may_make(view))
        found: list[TimeSpan] = []
        for each in sorted(set(times_us), reverse=True):
            if len(found) >= most or each < oldest_us:
                break
            if not (found and found[-1].from_us <= each) and not self.is_covered(each):
                found += gaps_of(view.partitions, view.span, [each], self._archived)
        return found

    def _may_make(self, view: View) -> int:
        """Return how many of those that were free a day ago may still be made: half of them."""
        while self.made_s and self.made_s[0] < monotonic_s() - DAY_US / 1e6:
            self.made_s.popleft()
        free = self._limits.partitions_max - len(view.partitions)
        return (free - len(self.made_s) + 1) // 2

    def why_not(self, ts_us: int) -> NoPartition | None:
        """Return why a time has no partition; None if it has one, or that is not known."""
        view = self._partitioned
        if view is None or self.is_covered(ts_us):
            return None
        late_us = self._limits.late_us_max
        if view.ours and ts_us < unix_us() - late_us:
            return NoPartition(f"older than {self._limits.late_named}", final=True)
        why = self._for_a_person(view) or self._why or "it will be made soon"
        return NoPartition(f"there is no partition for this time: {why}", final=False)

    def _for_a_person(self, view: View) -> str:
        """Return why the service makes none and will make none, or nothing."""
        if view.cannot_make:
            return view.cannot_make
        if not view.ours:
            return "the table was partitioned by somebody else"
        if self._may_make(view) > 0:
            return ""
        return (
            f"the table has {len(view.partitions)}; {len(self.made_s)} were made within a day: at "
            f"most half of those that partitions_max ({self._limits.partitions_max}) leaves"
        )

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
