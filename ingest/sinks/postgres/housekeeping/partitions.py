"""The partitions of a table by time: which ones there are, and which time has none.

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
from ingest.sinks.postgres.housekeeping.spans import (
    BEGINNING_US,
    END_US,
    TimeSpan,
    partition_name,
    span_bounds,
    spans_between,
)

__all__ = ["Partition", "gaps", "partition_name", "partitions", "span_bounds"]

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
    wanted = spans_between(span, from_us, to_us)
    return [gap for each in wanted for gap in _gaps_in(found, each)]


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
