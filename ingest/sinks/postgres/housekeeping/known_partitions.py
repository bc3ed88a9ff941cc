"""Which times have a partition: the writers ask when a write has found none for some of its rows.

Shared by the sinks of one process; each table has its own. The rows that find none are known at
once, so they do not hold up the others; they are set aside, and come back by themselves. An annex
may make partitions for them: then its class takes the place of KnownPartitions.
Promises: a question takes `command_s_max` at most; after a failure there is none for a while.
Does not: raise an error of the driver, or hold the connection of a sink.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection, DatabaseUrl, Timeouts, opened, text_of
from ingest.sinks.postgres.housekeeping.partitions import DAY_US, TimeSpan, gaps_of
from ingest.sinks.postgres.housekeeping.table_state import PARTITIONED, View, look_at
from ingest.sinks.postgres.schema import TargetTable
from ingest.system.clock import monotonic_s, rfc3339_or_us, unix_us
from ingest.system.logs import Occasionally, get_logger
from ingest.system.waiting import backoff_s

LOOK_S_MIN, FRESH_S = 2.0, 15.0  # between two looks at the catalog; how long one is believed
FAILED_S_MIN, FAILED_S_MAX = 2.0, 60.0  # after a partition could not be made
WARNING_S = 600.0
LACKING_S = 330.0  # the automatic replay tries such readings again more often than this
NOT_MADE_HERE = "what makes partitions for late readings is not installed (iot-ingest[archive])"

log = get_logger("housekeeping")


class NoPartition(NamedTuple):
    """Why a time has no partition. `final`: it gets none later, either; `ended`: no newer one."""

    message: str
    final: bool
    ended: bool = False


class LateLimit(NamedTuple):
    """How late a reading may be that gets a partition, and that in words, with its setting."""

    us_max: int
    words: str


class Lack(NamedTuple):
    """Readings that wait for a person: `why` no partition can be made, seen at `at_s`.

    `from_us` and `to_us` are the oldest and the newest of their times.
    """

    from_us: int
    to_us: int
    why: str
    at_s: float


class KnownPartitions:
    """Knows which times have a partition of a table, and makes none. For one event loop.

    `url` is that of the role that owns the table. `view` is the table as it was seen last. It is
    None if not only the bounds of its partitions decide which times have one.
    """

    def __init__(
        self,
        url: DatabaseUrl,
        timeouts: Timeouts,
        *,
        span: str,
        target: TargetTable,
        limit: LateLimit,
    ) -> None:
        self.limit = limit
        self.target = target
        self.view: View | None = None
        self._url = url
        self._timeouts = timeouts
        self._span = span
        self._asking = asyncio.Lock()
        self._lower: list[int] = []  # of the partitions, sorted
        self._looked_s = self._not_before_s = float("-inf")
        self._is_away = False  # the database could not be looked at
        self._failures = 0
        self._why = ""  # of the last failure
        self._lack: Lack | None = None
        self._occasionally = Occasionally(WARNING_S)

    @property
    def knows(self) -> bool:
        """Whether the bounds of the partitions are known, and no older than some seconds."""
        return self.view is not None and self._age_s < FRESH_S

    @property
    def rests(self) -> bool:
        """Whether nothing is made now, after a failure."""
        return monotonic_s() < self._not_before_s

    @property
    def _age_s(self) -> float:
        return monotonic_s() - self._looked_s

    def is_covered(self, ts_us: int) -> bool:
        """Whether a time has a partition, as far as we know."""
        at, view = bisect_right(self._lower, ts_us) - 1, self.view
        return view is not None and at >= 0 and ts_us < view.partitions[at].to_us

    async def make_for(self, times_us: Sequence[int]) -> bool:
        """Look which of these times have no partition; make what may be made.

        Returns whether the same write may succeed now: all of them have one. Takes some seconds at
        most, and after a failure nothing for a while.
        """
        asked_s = monotonic_s()
        async with self._asking:
            seen = self._age_s < LOOK_S_MIN and not self.to_make(times_us)
            if not (seen or (self._is_away and self.rests)):
                await self._try_to_make(times_us, asked_s)
            if self.knows and all(map(self.is_covered, times_us)):
                return True
            self._note_lack(times_us)
        return False

    # What an annex has in place of this

    def to_make(self, times_us: Sequence[int]) -> list[TimeSpan]:
        """Return the spans of these times that are to be made now."""
        return []

    async def make(self, connection: Connection, spans: Sequence[TimeSpan], asked_s: float) -> None:
        """Make partitions for a write that has waited since `asked_s`."""

    def makes_none(self, view: View) -> str:
        """Return why no further partition is made, though this role may; or nothing."""
        return NOT_MADE_HERE

    async def look(self, connection: Connection) -> None:
        """Look at the table."""
        view = await look_at(
            connection, self.target.name, self._span, target=self.target, sizes=False
        )
        self.know(view)
        self._looked_s = monotonic_s()

    def know(self, view: View) -> None:
        """Take over which partitions there are."""
        self.view = view if view.kind == PARTITIONED and not view.has_default else None
        self._lower = [each.from_us for each in view.partitions]

    # What is lacking

    @property
    def lacking(self) -> str:
        """What readings wait for and only a person can do, in words; empty if none do."""
        lack = self._lack
        if lack is None or monotonic_s() - lack.at_s > LACKING_S:
            return ""
        first, last = (str(rfc3339_or_us(each - each % DAY_US))[:10] for each in lack[:2])
        return f"{self.target.table}: no partition for readings from {first} to {last}: {lack.why}"

    def seen(self, view: View) -> None:
        """Take over that somebody else has made what was lacking."""
        lack = self._lack
        if lack is not None and not gaps_of(view.partitions, view.span, lack[:2]):
            self._lack = None

    def why_not(self, ts_us: int) -> NoPartition | None:
        """Return why a time has no partition; None if it has one, or that is not known."""
        view = self.view
        if view is None or self.is_covered(ts_us):
            return None
        if view.ours and ts_us < unix_us() - self.limit.us_max:
            return NoPartition(f"older than {self.limit.words}", final=True)
        why = self._for_a_person(view) or self._why or "it will be made soon"
        table = self.target.table
        message = f"there is no partition of {table} for this time: {why}"
        ended = not view.partitions or ts_us >= view.partitions[-1].to_us
        return NoPartition(message, final=False, ended=ended)

    def _note_lack(self, times_us: Sequence[int]) -> None:
        view, lack = self.view, self._lack
        age_s = LACKING_S if lack is None else monotonic_s() - lack.at_s
        if view is None or age_s < LOOK_S_MIN:
            return
        oldest_us = unix_us() - self.limit.us_max
        times = [each for each in times_us if each >= oldest_us and not self.is_covered(each)]
        if times and (why := self._for_a_person(view)):
            if lack is not None and age_s < LACKING_S:
                times += lack[:2]
            self._lack = Lack(min(times), max(times), why, monotonic_s())

    def _for_a_person(self, view: View) -> str:
        """Return why the service makes none and will make none, or nothing."""
        if view.cannot_make:
            return view.cannot_make
        if not view.ours:
            return "the table was partitioned by somebody else"
        return self.makes_none(view)

    # One question

    async def _try_to_make(self, times_us: Sequence[int], asked_s: float) -> None:
        self._is_away = True
        try:
            async with asyncio.timeout(self._timeouts.command_s_max):
                await self._look_and_make(times_us, asked_s)
        except (StartError, TimeoutError) as error:
            self._failed(text_of(error))

    async def _look_and_make(self, times_us: Sequence[int], asked_s: float) -> None:
        async with opened(self._url(), self._timeouts) as connection:
            if self._age_s >= LOOK_S_MIN:
                await self.look(connection)
            self._is_away = False
            missing = self.to_make(times_us)
            if not missing:
                self._warn(times_us)
                return
            await self.make(connection, missing, asked_s)
            self._failures, self._why = 0, ""

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


class PartitionsOfTables:
    """What is known of the partitions of `readings` and of each declared table.

    For one event loop. `make` returns it for a table, whose schema is given, at its first question.
    `eager`: the sink also asks before it looks for rows that are refused; a replay by hand does
    nothing else.
    """

    def __init__(
        self, make: Callable[[TargetTable], KnownPartitions], *, eager: bool = False
    ) -> None:
        self.eager = eager
        self._make = make
        self._known: dict[TargetTable, KnownPartitions] = {}

    def of(self, target: TargetTable) -> KnownPartitions:
        """Return what is known of the partitions of this table."""
        if target not in self._known:
            self._known[target] = self._make(target)
        return self._known[target]

    async def make_for(self, times_us: Mapping[TargetTable, Sequence[int]]) -> bool:
        """As `make_for` of KnownPartitions, for the times of a write to several tables."""
        asked = [(self.of(target), times) for target, times in times_us.items()]
        made = [await each.make_for(times) for each, times in asked]
        # A plain table, or a hypertable, takes all times.
        return any(made) and all(
            is_made or each.view is None for is_made, (each, _) in zip(made, asked, strict=True)
        )

    @property
    def lacking(self) -> str:
        """What readings wait for and only a person can do, in words; empty if none do."""
        return "; ".join(filter(None, (each.lacking for each in self._known.values())))

    def seen(self, view: View) -> None:
        """Take over that somebody else has made what was lacking."""
        if view.target in self._known:
            self._known[view.target].seen(view)
