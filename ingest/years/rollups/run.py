"""One run of the rollups: it computes hours, days, and again what late readings have changed.

Each hour is computed once, when it is over, and each day from its hours. An hour is read in parts,
each a statement of about a second. Its rollups and how far we are are stored in one transaction.
The trigger has left a record of each late reading. First they are gathered, each series of an hour
once; then these are computed from all their readings. The records of frozen hours are counted.
Promises: after a kill it begins at the hour that was not stored. A record is removed only in a
transaction that computes its series, moves it, or counts it. The driver's errors pass through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ingest.model.causes import Verdict
from ingest.sinks.postgres.connection import Connection, PostgresError, text_of
from ingest.sinks.postgres.housekeeping.partitions import TimeSpan, literal
from ingest.sinks.postgres.schema import TargetTable
from ingest.sinks.postgres.sqlstate import verdict_for
from ingest.system.clock import monotonic_s
from ingest.years.rollups import state, tables
from ingest.years.rollups.state import Progress, frozen_until
from ingest.years.rollups.tables import Key, tables_of

# Of a pause. Work shorter than REST_S_MIN gets none: its time is added to that of the next work.
REST_S_MIN, REST_S_MAX = 0.005, 2.0
PART_S_MIN, PART_S_MAX = 0.4, 1.6  # a part of an hour becomes longer or shorter outside of it
WRITERS_S_MAX = 5.0
WRITERS_POLL_S = 0.05
REMOVED_ROWS = 20_000  # rollups that are removed by one statement
KEYS_MAX = 1_000  # series of hours in one transaction
KEYS_OF_HOUR_MAX = 50_000  # the same without the index for devices
LATE_ROWS = 50_000  # records of late readings in one statement
FAILED_MAX = 2_000  # a run tries no more after so many: the oldest, whose days leave first

_US = "(extract(epoch from {}) * 1000000)::int8"
# Groups are hashed, also if the planner expects more of them than fit the memory: much faster.
_HASHED = "set local enable_sort = off"
# Transactions that have written to the table and are not over. One that was prepared has no pid.
_WRITERS = """
with recursive tree (id) as (
    select $1::oid union select inhrelid from pg_inherits join tree on inhparent = id)
select distinct virtualtransaction || ' ' || coalesce(pid, 0) as writer from pg_locks
where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
  and database = (select oid from pg_database where datname = current_database())
  and relation in (select id from tree) and pid is distinct from pg_backend_pid()"""
_HAS_DEVICE_INDEX = """
select exists (select from pg_index i where i.indrelid = $1::oid and i.indisvalid
  and i.indpred is null and (
      select array_agg(a.attname::text order by n) from generate_series(0, 2) n
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n]) = $2::text[])"""


class Run:
    """`target` has its schema. `at` is how far the rollups are, `frozen` the hours that stay.

    `part_us` is the length of a part of an hour that takes about a second. `taken` are those that
    are computed now; `failed` those that cannot be computed, and why.
    """

    def __init__(
        self,
        connection: Connection,
        oid: int,
        target: TargetTable,
        *,
        end_s: float,
        stopped: Callable[[], bool],
        part_us: int,
    ) -> None:
        self.connection = connection
        self.oid = oid
        self.target = target
        self.names = tables_of(target)
        self.stopped = stopped
        self._end_s = end_s
        self._rested_s = monotonic_s()
        self.part_us = part_us
        self.registry = ""
        self.at = Progress()
        self.frozen: Sequence[TimeSpan] = ()
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
        """Store how far the rollups are, as the last statement of the caller's transaction.

        If a later one failed, `at` would be ahead of what is stored.
        """
        await state.put(self.connection, self.registry, at)
        self.at = at

    async def count_left(self, readings: int) -> None:
        """Count late readings of frozen hours, in the transaction that removes their records."""
        if readings:
            await self.put(self.at._replace(late_left=self.at.late_left + readings))

    def hour(self, ts_us: int) -> int:
        """Return the start of the hour of a time."""
        return ts_us // tables.HOUR_US * tables.HOUR_US

    def day(self, ts_us: int) -> int:
        """Return the start of the day of a time."""
        return ts_us // tables.DAY_US * tables.DAY_US

    async def closed_us(self) -> int:
        """Return the end of the last hour that may be computed, by the server's clock now."""
        now_us: int = await self.connection.fetchval(f"select {_US.format('clock_timestamp()')}")
        return self.hour(now_us - tables.CLOSE_US)


async def compute_hours(run: Run) -> None:
    """Compute the hours that are over, oldest first, until the run ends."""
    closed_us, until_us = await run.closed_us(), run.at.until_us
    if until_us is not None and until_us > closed_us:  # the clock was set back
        days_us = min(run.day(closed_us), run.at.days_until_us or 0)
        await run.put(run.at._replace(until_us=closed_us, days_until_us=days_us))
    elif until_us != closed_us and await _writers_have_ended(run):
        await run.connection.execute(tables.MAKE_PARTS)
        while not run.ended() and run.at.until_us != closed_us:
            await _compute_next(run, closed_us)
            await run.rest()


async def _compute_next(run: Run, closed_us: int) -> None:
    """Compute the next hour that has readings; with none, all is computed until `closed_us`."""
    until_us = run.at.until_us
    since = "ts > '-infinity'" if until_us is None else f"ts >= {literal(until_us)}"
    first_us = await run.connection.fetchval(
        f"select {_US.format('ts')} from {run.target.source} r "  # noqa: S608
        f"where {since} and ts < {literal(closed_us)} order by ts limit 1"
    )
    if first_us is None:
        await _computed_until(run, closed_us, None)
        return
    hour_us = run.hour(first_us)
    if (until_us := frozen_until(run.frozen, hour_us)) is not None:
        await _computed_until(run, min(until_us, closed_us), None)
    elif await _sum_parts(run, hour_us):
        await _computed_until(run, hour_us + tables.HOUR_US, hour_us)


async def _sum_parts(run: Run, hour_us: int) -> bool:
    """Fill the table of parts with those of an hour; return False if the run ended before.

    A run that has begun an hour may take as long again for it: an hour must end at some time.
    """
    await run.connection.execute(tables.EMPTY_PARTS)
    from_us, end_us = hour_us, hour_us + tables.HOUR_US
    while from_us < end_us:
        to_us = min(end_us, from_us + run.part_us)
        began_s = monotonic_s()
        async with run.connection.transaction():
            await run.connection.execute(_HASHED)
            await run.connection.execute(tables.part(run.target, from_us, to_us))
        took_s = monotonic_s() - began_s
        if took_s > PART_S_MAX:
            run.part_us = max(1_000, (to_us - from_us) // 2)
        elif took_s < PART_S_MIN and to_us - from_us == run.part_us:
            run.part_us = min(tables.HOUR_US, 2 * run.part_us)
        from_us = to_us
        if run.stopped():
            return False
        await run.rest()
    return True


async def _computed_until(run: Run, until_us: int, hour_us: int | None) -> None:
    """Store the hour of the parts, if one is given, and that all is computed until then."""
    days_us = run.at.days_until_us
    if days_us is None:
        days_us = run.day(until_us if hour_us is None else hour_us)
    async with run.connection.transaction():
        if hour_us is not None:
            statement = tables.hour_of_parts(run.target, hour_us)
            await _store(
                run, statement, run.target.source, TimeSpan(hour_us, hour_us + tables.HOUR_US)
            )
        await run.put(run.at._replace(until_us=until_us, days_until_us=days_us))


async def _writers_have_ended(run: Run) -> bool:
    """Wait until all have ended that write now; return whether that was soon enough.

    The hours to compute are over for longer than a reading needs to be late. So what is written
    from now on leaves records, and what was written without a record is committed then.
    """
    end_s = monotonic_s() + WRITERS_S_MAX
    before = {row["writer"] for row in await run.connection.fetch(_WRITERS, run.oid)}
    left = before
    while left and monotonic_s() < end_s and not run.stopped():
        await asyncio.sleep(WRITERS_POLL_S)
        left = before & {row["writer"] for row in await run.connection.fetch(_WRITERS, run.oid)}
    return not left


def next_day_us(run: Run) -> int | None:
    """Return the start of the next day that can be computed, or None."""
    until_us, day_us = run.at.until_us, run.at.days_until_us
    if until_us is None or day_us is None or day_us + tables.DAY_US > until_us:
        return None
    return day_us


async def compute_days(run: Run) -> None:
    """Compute the days whose hours are all computed; days without readings are passed over."""
    while not run.ended() and (day_us := next_day_us(run)) is not None:
        async with run.connection.transaction():
            next_us = day_us + tables.DAY_US
            statement = tables.day(run.target, day_us)
            day = TimeSpan(day_us, next_us)
            done = await _store(run, statement, run.names.hourly, day, "hour")
            if done == "INSERT 0 0":
                next_us = await _next_with_hours_us(run, next_us)
            await run.put(run.at._replace(days_until_us=next_us))
        await run.rest()


async def _next_with_hours_us(run: Run, from_us: int) -> int:
    """Return the start of the first day from then on that has rollups of hours, or of the last."""
    hour_us = await run.connection.fetchval(
        f"select {_US.format('min(hour)')} from {run.names.hourly} "  # noqa: S608
        f"where hour >= {literal(from_us)}"
    )
    until_us = run.at.until_us or from_us
    return max(from_us, run.day(until_us if hour_us is None else min(hour_us, until_us)))


async def has_older(run: Run, from_us: int) -> bool:
    """Whether there are rollups of the time before."""
    return bool(
        await run.connection.fetchval(
            f"select exists (select from {run.names.daily} where day < {literal(from_us)}) "  # noqa: S608
            f"or exists (select from {run.names.hourly} where hour < {literal(from_us)})"
        )
    )


async def remove(run: Run, from_us: int) -> None:
    """Remove the rollups of the time before, some at a time."""
    for table, start in ((run.names.hourly, "hour"), (run.names.daily, "day")):
        older = f"select ctid from {table} where {start} < {literal(from_us)} limit {REMOVED_ROWS}"  # noqa: S608
        removed = ""
        while not run.ended() and removed != "DELETE 0":
            removed = await run.connection.execute(
                f"delete from {table} where ctid = any (array({older}))"  # noqa: S608
            )
            await run.rest()


async def is_due(run: Run) -> bool:
    """Whether there is any record that is to be gathered, or computed."""
    is_any = f"exists (select from {run.names.late}) or exists (select from {run.names.due})"  # noqa: S608
    return bool(await run.connection.fetchval(f"select {is_any}"))


async def gather(run: Run) -> None:
    """Move the records to what is due, each once; count those of frozen hours.

    Hours that are not computed yet need none: their computation sees these readings.
    """
    late, due = run.names.late, run.names.due
    some = f"select ctid from {late} limit {LATE_ROWS}"  # noqa: S608
    until = "'-infinity'" if run.at.until_us is None else literal(run.at.until_us)
    statement = f"""with gone as (
    delete from {late} where ctid = any (array({some}))
    returning hour, device_id, metric), frozen as (
    select hour from (select distinct hour from gone) as h where exists (
        select from unnest($1::text[]::timestamptz[], $2::text[]::timestamptz[]) as f (a, b)
        where hour >= a and hour < b)), kept as (
    insert into {due} (hour, device_id, metric)
    select distinct hour, device_id, metric from gone
    where hour < {until} and isfinite(hour) and hour not in (select hour from frozen)
    order by 1, 2, 3 on conflict do nothing)
select array[count(*), count(*) filter (where hour in (select hour from frozen))] from gone"""  # noqa: S608
    bounds = tables.bounds(run.frozen)
    while not run.ended():
        async with run.connection.transaction():
            count, left = await run.connection.fetchval(statement, *bounds)
            await run.count_left(left)
        if count < LATE_ROWS:
            break
        await run.rest()


async def _store(run: Run, statement: str, source: str, span: TimeSpan, start: str = "ts") -> str:
    """Execute the statement for an hour or a day; return what the server says of it.

    If the server refuses it for some series, all those of `source` in this time become due: then
    `compute` finds out which. `start` is the time in `source`.
    """
    try:
        async with run.connection.transaction():
            return str(await run.connection.execute(statement))
    except PostgresError as error:
        if not _is_of_some(error):
            raise
        await _put_off(run, source, span, start)
        return ""


def _is_of_some(error: PostgresError) -> bool:
    """Whether the server refuses some rows, and may take the others."""
    return verdict_for(error.sqlstate) is Verdict.ISOLATE


async def _put_off(run: Run, source: str, span: TimeSpan, start: str) -> None:
    """Note all series of an hour or a day as due, in place of computing it."""
    await run.connection.execute(
        f"""insert into {run.names.due} (hour, device_id, metric)
        select distinct {literal(span.from_us)}::timestamptz, device_id, metric from {source} r
        where {start} >= {literal(span.from_us)} and {start} < {literal(span.to_us)}
        order by 1, 2, 3 on conflict do nothing"""  # noqa: S608
    )


async def compute(run: Run) -> None:
    """Compute what is due, until the run ends.

    With the index for devices each series is looked up. Without it, all series of an hour that are
    due share one reading of that hour. If the server refuses some, half of them are tried, down to
    one. This one stays due, and is in `run.failed`; the others go on.
    """
    columns = (run.target.device_id, run.target.metric, run.target.ts)
    by_index = bool(await run.connection.fetchval(_HAS_DEVICE_INDEX, run.oid, columns))
    most = count = KEYS_MAX if by_index else KEYS_OF_HOUR_MAX
    some = True
    while some and not run.ended() and len(run.failed) < FAILED_MAX:
        try:
            some = await _compute_some(run, by_index=by_index, count=count)
            count = min(most, 2 * count)
        except PostgresError as error:
            if not _is_of_some(error):
                raise
            if len(run.taken) == 1:
                run.failed[run.taken[0]] = text_of(error)
            count = max(1, len(run.taken) // 2)
        await run.rest()


async def _compute_some(run: Run, *, by_index: bool, count: int) -> bool:
    """Compute `count` series, without the index those of one hour; return whether any was due.

    Those in `run.failed` are left out. They are removed from what is due in the same transaction,
    before they are computed: so each reading whose record is removed is seen. Frozen hours stay;
    an older version may have left some of these here.
    """
    due, connection = run.names.due, run.connection
    here = f"not {tables.IS_OF_KEYS}"
    if not by_index:
        here += f" and hour = (select min(hour) from {due} where {here})"  # noqa: S608
    some = f"where {here} order by hour, device_id, metric limit {count}"
    async with connection.transaction():
        rows = await connection.fetch(
            f"delete from {due} where ctid = any (array(select ctid from {due} {some})) "  # noqa: S608
            f"returning hour::text as hour, device_id, metric, {_US.format('hour')} as hour_us",
            *tables.columns(run.failed),
        )
        run.taken = [(row["hour"], row["device_id"], row["metric"]) for row in rows]
        kept = [row for row in rows if frozen_until(run.frozen, row["hour_us"]) is None]
        if kept:
            if by_index:
                statement = tables.of_keys(run.target)
            else:
                statement = tables.of_keys_of_hour(run.target, kept[0]["hour_us"])
            await connection.execute(statement, *tables.columns([row[:3] for row in kept]))
        if rows and (days_us := run.at.days_until_us) is not None:
            days = tables.days_of_keys(run.target, days_us)
            await connection.execute(days, *tables.columns(run.taken))
        await run.count_left(len(rows) - len(kept))
    return bool(rows)
