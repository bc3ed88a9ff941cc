"""Computes each hour once, when it is over, and each day from its hours.

An hour is read in parts, each a statement of about a second. Its rollups and how far we are are
stored in one transaction.
Promises: after a kill it begins at the hour that was not stored. The driver's errors pass through.
"""

from __future__ import annotations

import asyncio

from ingest.sinks.postgres.housekeeping import rollup_late, rollup_sql
from ingest.sinks.postgres.housekeeping.rollup_run import US, Run
from ingest.sinks.postgres.housekeeping.spans import TimeSpan, literal
from ingest.system.clock import monotonic_s

PART_S_MIN, PART_S_MAX = 0.4, 1.6  # a part of an hour becomes longer or shorter outside of it
WRITERS_S_MAX = 5.0
WRITERS_POLL_S = 0.05
REMOVED_ROWS = 20_000  # rollups that are removed by one statement

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


async def compute_hours(run: Run) -> None:
    """Compute the hours that are over, oldest first, until the run ends."""
    closed_us, until_us = await run.closed_us(), run.at.until_us
    if until_us is not None and until_us > closed_us:  # the clock was set back
        days_us = min(run.day(closed_us), run.at.days_until_us or 0)
        await run.put(run.at._replace(until_us=closed_us, days_until_us=days_us))
    elif until_us != closed_us and await _writers_have_ended(run):
        await run.connection.execute(rollup_sql.MAKE_PARTS)
        while not run.ended() and run.at.until_us != closed_us:
            await _compute_next(run, closed_us)
            await run.rest()


async def _compute_next(run: Run, closed_us: int) -> None:
    """Compute the next hour that has readings; with none, all is computed until `closed_us`."""
    until_us = run.at.until_us
    since = "ts > '-infinity'" if until_us is None else f"ts >= {literal(until_us)}"
    first_us = await run.connection.fetchval(
        f"select {US.format('ts')} from {run.target.source} r "  # noqa: S608
        f"where {since} and ts < {literal(closed_us)} order by ts limit 1"
    )
    if first_us is None:
        await _computed_until(run, closed_us, None)
        return
    hour_us = run.hour(first_us)
    if (gone_until_us := run.at.gone_until(hour_us)) is not None:
        await _computed_until(run, min(gone_until_us, closed_us), None)
    elif run.left.is_apart(hour_us):
        await rollup_late.put_off(
            run, run.target.source, TimeSpan(hour_us, hour_us + run.spans.hour_us)
        )
        await _computed_until(run, hour_us + run.spans.hour_us, None)
    elif await _sum_parts(run, hour_us):
        await _computed_until(run, hour_us + run.spans.hour_us, hour_us)


async def _sum_parts(run: Run, hour_us: int) -> bool:
    """Fill the table of parts with those of an hour; return False if the run ended before.

    A run that has begun an hour may take as long again for it: an hour must end at some time.
    """
    await run.connection.execute(rollup_sql.EMPTY_PARTS)
    from_us, end_us = hour_us, hour_us + run.spans.hour_us
    while from_us < end_us:
        to_us = min(end_us, from_us + run.part_us)
        began_s = monotonic_s()
        async with run.connection.transaction():
            await run.connection.execute(_HASHED)
            await run.connection.execute(rollup_sql.part(run.target, from_us, to_us))
        took_s = monotonic_s() - began_s
        if took_s > PART_S_MAX:
            run.part_us = max(1_000, (to_us - from_us) // 2)
        elif took_s < PART_S_MIN and to_us - from_us == run.part_us:
            run.part_us = min(run.spans.hour_us, 2 * run.part_us)
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
            statement = rollup_sql.hour_of_parts(run.target, hour_us)
            await rollup_late.store(
                run, statement, run.target.source, TimeSpan(hour_us, hour_us + run.spans.hour_us)
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
    if until_us is None or day_us is None or day_us + run.spans.day_us > until_us:
        return None
    return day_us


async def compute_days(run: Run) -> None:
    """Compute the days whose hours are all computed; days without readings are passed over."""
    while not run.ended() and (day_us := next_day_us(run)) is not None:
        async with run.connection.transaction():
            next_us = day_us + run.spans.day_us
            statement = rollup_sql.day(run.target, run.spans, day_us)
            day = TimeSpan(day_us, next_us)
            done = await rollup_late.store(run, statement, run.names.hourly, day, "hour")
            if done == "INSERT 0 0":
                next_us = await _next_with_hours_us(run, next_us)
            await run.put(run.at._replace(days_until_us=next_us))
        await run.rest()


async def _next_with_hours_us(run: Run, from_us: int) -> int:
    """Return the start of the first day from then on that has rollups of hours, or of the last."""
    hour_us = await run.connection.fetchval(
        f"select {US.format('min(hour)')} from {run.names.hourly} "  # noqa: S608
        f"where hour >= {literal(from_us)}"
    )
    until_us = run.at.until_us or from_us
    return max(from_us, run.day(until_us if hour_us is None else min(hour_us, until_us)))


async def has_older(run: Run, from_us: int) -> bool:
    """Whether there are rollups of the time before."""
    found: bool = await run.connection.fetchval(
        f"select exists (select from {run.names.daily} where day < {literal(from_us)}) "  # noqa: S608
        f"or exists (select from {run.names.hourly} where hour < {literal(from_us)})"
    )
    return found


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
