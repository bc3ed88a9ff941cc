"""A curve of one series from its rollups, with the readings of the hours that have none.

Promises: it equals the curve of the readings, but for late ones that wait for the next run of the
housekeeping, and late ones of times that have left the table. Then the past costs a row a day or
an hour, and no reading.
Does not: answer steps that are not whole hours. The driver's errors pass through.
"""

from __future__ import annotations

from ingest.sinks.postgres.connection import Connection, Record
from ingest.sinks.postgres.housekeeping.partitions import literal
from ingest.sinks.postgres.lookup import mean
from ingest.sinks.postgres.schema import TargetTable
from ingest.years.rollups.state import Progress, progress
from ingest.years.rollups.tables import DAY_US, HOUR_US, tables_of

_READABLE = """
select bool_and(coalesce(has_table_privilege(to_regclass(name), 'SELECT'), false))
from unnest($1::text[]) name"""
Piece = tuple[str, int, int]  # "day", "hour" or "ts", and from when until before when


async def rolled_curve(
    connection: Connection,
    target: TargetTable,
    series: tuple[str, str],
    span: tuple[int, int],
    step: int,
) -> list[Record] | None:
    """Return rows of ts_us, min, mean, max, count, one for each step that has readings.

    `series` are device and metric; `span` and `step` are microseconds. Returns None if the readings
    must be asked: there are no rollups for it, or this role may not read them.
    """
    if step % HOUR_US:
        return None
    at = await progress(connection, target.name)
    if at is None or at.until_us is None:
        return None
    if step % DAY_US:  # a day would be in several steps
        at = at._replace(days_until_us=None)
    parts = pieces(at, *span)
    names = tables_of(target)
    if all(kind == "ts" for kind, _, _ in parts):
        return None
    if not await connection.fetchval(_READABLE, [names.hourly, names.daily]):
        return None
    sources = {
        "day": (names.daily, "day, min, max, sum, count"),
        "hour": (names.hourly, "hour, min, max, sum, count"),
        "ts": (f"{target.source} r", "ts, value, value, value, 1::bigint"),
    }
    union = " union all ".join(
        f"select {sources[kind][1]} from {sources[kind][0]} where device_id = $1 and metric = $2 "  # noqa: S608
        f"and {kind} >= {literal(from_us)} and {kind} < {literal(to_us)}"
        for kind, from_us, to_us in parts
    )
    rows: list[Record] = await connection.fetch(
        f"""select (extract(epoch from bucket) * 1000000)::int8 as ts_us, min, mean, max, count
        from (
            select date_bin('{step} microseconds', at, 'epoch'::timestamptz) as bucket,
                min(least), max(greatest), sum(n)::int8 as count,
                {mean("total", "sum(n)")} as mean
            from ({union}) as u (at, least, greatest, total, n) group by 1) b
        order by bucket""",  # noqa: S608
        *series,
    )
    return rows


def pieces(at: Progress, from_us: int, to_us: int) -> list[Piece]:
    """Return which table answers which part of a time: whole days, else whole hours, else readings.

    The pieces follow each other, and together they are the time.
    """
    hours = (_up(from_us, HOUR_US), min(_down(to_us, HOUR_US), at.until_us or 0))
    if hours[0] >= hours[1]:
        return [("ts", from_us, to_us)]
    days = (_up(hours[0], DAY_US), min(_down(hours[1], DAY_US), at.days_until_us or 0))
    if days[0] >= days[1]:
        days = (hours[0], hours[0])
    found: list[Piece] = [
        ("ts", from_us, hours[0]),
        ("hour", hours[0], days[0]),
        ("day", *days),
        ("hour", days[1], hours[1]),
        ("ts", hours[1], to_us),
    ]
    return [each for each in found if each[1] < each[2]]


def _down(ts_us: int, unit_us: int) -> int:
    return ts_us // unit_us * unit_us


def _up(ts_us: int, unit_us: int) -> int:
    return -(-ts_us // unit_us) * unit_us
