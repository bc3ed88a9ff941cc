"""The partitions of a table by time: which ones there are, and which time has none.

A span of time, UTC, is a day, or a month of the calendar; each gets a partition. Times are Unix
microseconds; a span is half open. It is calculated with whole numbers, since datetime ends at the
year 9999, and a table may have more.
Promises: bounds are read from the catalog, where they are in force, never from a name.
Does not: make or drop a partition. The driver's errors pass through.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.schema import shortened

NONE, DAY, MONTH = "none", "day", "month"
DAY_US = 86_400_000_000
BEGINNING_US, END_US = -(2**63), 2**63 - 1  # of a partition without a lower or upper bound

RATE_OF = 7  # partitions, from which the growth is seen
FULL_S_MAX = 365 * 86_400.0  # later than that is no forecast
# The bounds are text of the session's own time zone, and its cast reads them in the same way. A
# bound of several columns, of a list or of a hash does not match: such a partition is left out. So
# is one with infinite times alone.
# Without `offset 0` the server would read and match the text again for each use of it.
_PARTITIONS = r"""
select name, from_us, to_us, bytes, {ours} as ours from (
    select c.oid, c.relname::text as name,
           regexp_match(pg_get_expr(c.relpartbound, c.oid),
               '^FOR VALUES FROM \((?:''(?!infinity)([^'']*)''|MINVALUE)\) '
               'TO \((?:''(?!-infinity)([^'']*)''|MAXVALUE)\)$')
               as bounds,
           case when $2 then coalesce(pg_total_relation_size(c.oid), 0) else 0 end as bytes
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = to_regclass($1) and c.relispartition offset 0) as child,
    lateral (select coalesce((extract(epoch from nullif(bounds[1], '-infinity')::timestamptz)
                 * 1000000)::int8, $3) as from_us,
             coalesce((extract(epoch from nullif(bounds[2], 'infinity')::timestamptz)
                 * 1000000)::int8, $4) as to_us
             offset 0) as read
where bounds is not null order by from_us"""
# With thousands of partitions the server compares faster than we.
_OURS = """exists (select from {registry} as r where r.key = '{prefix}' || name
    and r.value = jsonb_build_object('from_us', from_us, 'to_us', to_us))"""


class Partition(NamedTuple):
    """A partition: its table without the schema, and its bounds: Unix microseconds, half open.

    `bytes` has the indexes too. `ours`: it was made or adopted by us, as the registry says.
    """

    name: str
    from_us: int
    to_us: int
    bytes: int
    ours: bool


async def partitions(connection: Connection, table: str, *, sizes: bool = True) -> list[Partition]:
    """Return the partitions by time, sorted by `from_us`. Without `sizes` all `bytes` are 0.

    Sizes need a lock (ACCESS SHARE) on each partition for a moment.
    """
    name, readable = await registry.name_beside(connection, table)
    ours = _OURS.format(registry=name, prefix=registry.PARTITION) if readable else "false"
    sql = _PARTITIONS.format(ours=ours)
    rows = await connection.fetch(sql, table, sizes, BEGINNING_US, END_US)
    return [Partition(*row) for row in rows]


def bounds_entry(from_us: int, to_us: int) -> dict[str, int]:
    """Return what the registry has of a partition of ours, under `partition/NAME`."""
    return {"from_us": from_us, "to_us": to_us}


def gaps(
    found: Sequence[TimeSpan | Partition], span: str, from_us: int, to_us: int
) -> list[TimeSpan]:
    """Return the spans between two times that have no partition, in order.

    If a partition of an operator covers a part of a day or month, the rest of it is a gap.
    `found` is sorted by `from_us`.
    """
    missing: list[TimeSpan] = []
    while from_us < to_us:
        bounds = span_bounds(span, from_us)
        missing += _gaps_in(found, bounds)
        from_us = bounds.to_us
    return missing


def _gaps_in(found: Sequence[TimeSpan | Partition], span: TimeSpan) -> list[TimeSpan]:
    missing: list[TimeSpan] = []
    at = span.from_us
    first = max(0, bisect_right(found, span.from_us, key=lambda each: each.from_us) - 1)
    for each in found[first:]:
        if each.from_us >= span.to_us:
            break
        if each.to_us <= at:
            continue
        if each.from_us > at:
            missing.append(TimeSpan(at, each.from_us))
        at = each.to_us
    if at < span.to_us:
        missing.append(TimeSpan(at, span.to_us))
    return missing


def gaps_of(
    found: Sequence[TimeSpan | Partition],
    span: str,
    times_us: Iterable[int],
    archived: Sequence[TimeSpan] = (),
) -> list[TimeSpan]:
    """Return the gaps that have at least one of these times, in order.

    A gap lies within one of the spans `archived`, or outside of all: so it can be merged with the
    files of that span. They are sorted, and do not overlap.
    """
    by_bounds: dict[TimeSpan, list[int]] = {}
    for each in times_us:
        for part in cut_at(span_bounds(span, each), archived):
            if part.from_us <= each < part.to_us:
                by_bounds.setdefault(part, []).append(each)
    return [
        gap
        for bounds, inside in sorted(by_bounds.items())
        for gap in _gaps_in(found, bounds)
        if any(gap.from_us <= each < gap.to_us for each in inside)
    ]


def cut_at(gap: TimeSpan, archived: Sequence[TimeSpan]) -> list[TimeSpan]:
    """Return the parts of a gap, each within one of the spans `archived`, or outside of all."""
    first = bisect_right(archived, gap.from_us, key=lambda each: each.to_us)
    end = bisect_left(archived, gap.to_us, key=lambda each: each.from_us)
    inside = {us for span in archived[first:end] for us in span if gap.from_us < us < gap.to_us}
    return [TimeSpan(*part) for part in pairwise(sorted({*gap, *inside}))]


async def archived_spans(connection: Connection, table: str) -> list[TimeSpan]:
    """Return the spans that have files in an archive, sorted; not a whole table of before."""
    found = (await registry.entries(connection, table, registry.FILES)).values()
    bounds = sorted(TimeSpan(each["from_us"], each["to_us"]) for each in found)
    return [each for each in bounds if each.from_us != BEGINNING_US]


class Growth(NamedTuple):
    """How fast a table grows, and in how many seconds its oldest partition will leave (or inf)."""

    bytes_per_s: float
    ends_in_s: float

    def full_in_s(self, free_bytes: int) -> float | None:
        """Return in how many seconds a disk with so much room is full; None: not within a year."""
        left_s = free_bytes / self.bytes_per_s
        return left_s if left_s <= min(self.ends_in_s, FULL_S_MAX) else None


def growth(found: Sequence[Partition], now_us: int, keep_us: int | None) -> Growth | None:
    """Return how the table grows, from its last whole partitions; None if it has none.

    `keep_us` is how long readings stay in it; None: for ever.
    """
    whole = [each for each in found if each.from_us > BEGINNING_US and each.to_us <= now_us]
    last = whole[-RATE_OF:]
    grown = sum(each.bytes for each in last)
    if not grown:
        return None
    span_s = sum(each.to_us - each.from_us for each in last) / 1e6
    ends_in_s = math.inf
    if keep_us is not None:
        ends_in_s = (whole[0].to_us + keep_us - now_us) / 1e6
    return Growth(grown / span_s, ends_in_s)


class TimeSpan(NamedTuple):
    """From `from_us` until before `to_us`."""

    from_us: int
    to_us: int


def overlap(one: TimeSpan, other: TimeSpan) -> bool:
    """Whether two spans have a moment in common."""
    return one.from_us < other.to_us and other.from_us < one.to_us


def whole(span: TimeSpan, unit_us: int) -> TimeSpan:
    """Return the whole hours or days (`unit_us`) that a span touches."""
    from_us, to_us = span
    if from_us != BEGINNING_US:
        from_us = from_us // unit_us * unit_us
    if to_us != END_US:
        to_us = -(-to_us // unit_us) * unit_us
    return TimeSpan(from_us, to_us)


def joined(spans: Iterable[TimeSpan]) -> list[TimeSpan]:
    """Return the same times, sorted, and those that touch as one."""
    found: list[TimeSpan] = []
    for each in sorted(spans):
        if found and each.from_us <= found[-1].to_us:
            found[-1] = TimeSpan(found[-1].from_us, max(found[-1].to_us, each.to_us))
        else:
            found.append(each)
    return found


def span_bounds(span: str, ts_us: int) -> TimeSpan:
    """Return the day or month (`span`) of a time."""
    day = ts_us // DAY_US
    if span == DAY:
        return TimeSpan(day * DAY_US, (day + 1) * DAY_US)
    if span != MONTH:
        raise ValueError(f"there are no spans of {span!r}")
    year, month, _ = _date(day)
    after = (year + month // 12, month % 12 + 1)
    return TimeSpan(_day(year, month, 1) * DAY_US, _day(*after, 1) * DAY_US)


def partition_name(table: str, span: str, from_us: int) -> str:
    """Return the name of a partition, such as readings_p20261127, or readings_p202611.

    A long name of the table is cut, so that the result fits PostgreSQL.
    """
    year, month, day = _date(from_us // DAY_US)
    date = f"{year:04d}{month:02d}" + (f"{day:02d}" if span == DAY else "")
    return shortened(table, f"_p{date}")


def literal(ts_us: int) -> str:
    """Return a time as SQL reads it in each time zone, such as '2026-11-27 00:00:00+00'."""
    if ts_us == BEGINNING_US:
        return "minvalue"
    if ts_us == END_US:
        return "maxvalue"
    day, rest_us = divmod(ts_us, DAY_US)
    year, month, date = _date(day)
    minutes, us = divmod(rest_us, 60_000_000)
    seconds = f"{us // 1_000_000:02d}" + (f".{us % 1_000_000:06d}" if us % 1_000_000 else "")
    time = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds}+00"
    era = "" if year > 0 else " BC"
    return f"'{year if year > 0 else 1 - year:04d}-{month:02d}-{date:02d} {time}{era}'"


def _date(day: int) -> tuple[int, int, int]:
    """Return year, month and day of the day with this number; 0 is 1970-01-01.

    Years begin in March here, so that a leap day is the last day of its year.
    """
    day += 719_468  # since 0000-03-01
    era, day = divmod(day, 146_097)  # 400 years
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    date = day - (153 * month + 2) // 5 + 1
    return era * 400 + year + (month >= 10), month + 3 if month < 10 else month - 9, date


def _day(year: int, month: int, date: int) -> int:
    """Return the number of a day: the inverse of `_date`."""
    year -= month <= 2
    era, year = divmod(year, 400)
    in_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + date - 1
    return era * 146_097 + 365 * year + year // 4 - year // 100 + in_year - 719_468
