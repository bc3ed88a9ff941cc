"""The times whose readings have left the table by way of the archive, as the rollups see them.

A day of such a time is apart: its readings are in files, and late ones are in the table, or on the
way from there into the files. So its rollups are computed by rollup_archived.py alone.
Does not: read a file. The driver's errors pass through.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import archived, registry
from ingest.sinks.postgres.housekeeping.archived import Contents
from ingest.sinks.postgres.housekeeping.rollup_tables import RollupSpans, tables_of
from ingest.sinks.postgres.housekeeping.spans import BEGINNING_US, END_US, TimeSpan, literal
from ingest.sinks.postgres.housekeeping.view import View
from ingest.sinks.postgres.target import TargetTable

# States of retention.py in which readings may be neither in a file nor in the table.
_ON_THE_WAY = frozenset({"detaching", "detached", "written"})
_DROPPED = "dropped"
DAYS_MAX = 1_000  # that are looked at, or named

_ATTACHED = """
select inhrelid::int8 as oid from pg_inherits i where inhrelid = any ($1::oid[])
and not coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)"""


class Left(NamedTuple):
    """What has left. `days` has whole days, apart from each other and sorted.

    `hidden`: days with readings in a detached table, where no query sees them. `lost`: they were in
    the archive, which does not know them any more.
    """

    days: list[TimeSpan]
    contents: list[Contents]
    hidden: list[TimeSpan]
    lost: list[TimeSpan]

    @property
    def condition(self) -> str:
        """What SQL asks of `hour`: whether it is apart."""
        return within(self.days)

    @property
    def hidden_days(self) -> str:
        """What SQL asks of `hour`: whether some readings of its day cannot be read now."""
        return within(self.hidden)

    def is_apart(self, ts_us: int) -> bool:
        """Whether the day of a time is apart."""
        at = bisect_right(self.days, ts_us, key=lambda each: each.from_us) - 1
        return at >= 0 and ts_us < self.days[at].to_us

    def of(self, span: TimeSpan) -> list[Contents]:
        """Return what the archive has of a time."""
        return [each for each in self.contents if overlap(TimeSpan(each.from_us, each.to_us), span)]

    def is_hidden(self, span: TimeSpan) -> bool:
        """Whether some of its readings cannot be read now."""
        return any(overlap(each, span) for each in self.hidden)


NOTHING_LEFT = Left([], [], [], [])


def overlap(one: TimeSpan, other: TimeSpan) -> bool:
    """Whether two spans have a moment in common."""
    return one.from_us < other.to_us and other.from_us < one.to_us


def within(spans: Iterable[TimeSpan]) -> str:
    """Return what SQL asks of `hour`: whether it is in one of these."""
    conditions = []
    for each in spans:
        lower = "'-infinity'" if each.from_us == BEGINNING_US else literal(each.from_us)
        upper = "'infinity'" if each.to_us == END_US else literal(each.to_us)
        conditions.append(f"hour >= {lower} and hour < {upper}")
    return f"({' or '.join(conditions)})" if conditions else "false"


async def left(connection: Connection, table: str, spans: RollupSpans) -> Left:
    """Return what has left a table; nothing if this role may not see it."""
    entries = (await registry.entries(connection, table, registry.ARCHIVE)).values()
    known = [each for each in entries if {"oid", "from_us", "to_us"} <= each.keys()]
    _, readable = await registry.name_beside(connection, table)
    contents = await archived.contents(connection, table) if readable else []
    bounds = [TimeSpan(each.from_us, each.to_us) for each in contents]
    gone = [entry for entry in known if entry.get("state") == _DROPPED]
    on_the_way = [entry for entry in known if entry.get("state") in _ON_THE_WAY]
    oids = [entry["oid"] for entry in on_the_way]
    attached = {row["oid"] for row in await connection.fetch(_ATTACHED, oids)} if oids else set()
    hidden = [_bounds(entry) for entry in on_the_way if entry["oid"] not in attached]
    lost = [each for each in map(_bounds, gone) if not _is_in_one(each, bounds)]

    def days(found: list[TimeSpan]) -> list[TimeSpan]:
        return joined([whole(each, spans.day_us) for each in found])

    return Left(days([*bounds, *hidden, *lost]), contents, days(hidden), lost)


def _bounds(entry: dict[str, Any]) -> TimeSpan:
    return TimeSpan(entry["from_us"], entry["to_us"])


def _is_in_one(span: TimeSpan, others: list[TimeSpan]) -> bool:
    at = bisect_right(others, span.from_us, key=lambda each: each.from_us) - 1
    return at >= 0 and span.to_us <= others[at].to_us


def whole(span: TimeSpan, unit_us: int) -> TimeSpan:
    """Return the whole hours or days (`unit_us`) that a span touches."""
    from_us, to_us = span
    if from_us != BEGINNING_US:
        from_us = from_us // unit_us * unit_us
    if to_us != END_US:
        to_us = -(-to_us // unit_us) * unit_us
    return TimeSpan(from_us, to_us)


def joined(spans: list[TimeSpan]) -> list[TimeSpan]:
    """Return the same times, sorted, and those that touch as one."""
    found: list[TimeSpan] = []
    for each in sorted(spans):
        if found and each.from_us <= found[-1].to_us:
            found[-1] = TimeSpan(found[-1].from_us, max(found[-1].to_us, each.to_us))
        else:
            found.append(each)
    return found


async def days_with_late(
    connection: Connection, view: View, known: Left, spans: RollupSpans
) -> list[int]:
    """Return the starts of the days that are apart, and have late readings not in their rollups.

    At most DAYS_MAX. None if there are no records, or this role may not see them.
    """
    names = tables_of(TargetTable(schema=view.schema, table=view.name))
    readable = await connection.fetchval(
        "select bool_and(coalesce(has_table_privilege(to_regclass(name), 'SELECT'), false)) "
        "from unnest($1::text[]) name",
        [names.late, names.due],
    )
    if not known.days or not readable:
        return []
    rows = await connection.fetch(
        f"""select distinct floor(extract(epoch from hour) * 1000000 / {spans.day_us})::int8 as day
        from (select hour from {names.late} union all select hour from {names.due}) as found
        where {known.condition} and isfinite(hour) order by day limit {DAYS_MAX}"""  # noqa: S608
    )
    return [row["day"] * spans.day_us for row in rows]
