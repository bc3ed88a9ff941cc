"""How far the rollups of a table are, in the registry; and what retention must call.

A rollup of a time that has left the table is final: its hours are frozen, whether the readings are
in an archive, or dropped, or in a detached table on the way there. A late reading of a frozen hour
is counted (`late_left`), and in no rollup.
The driver's errors pass through.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    TimeSpan,
    joined,
    literal,
    overlap,
    whole,
)
from ingest.sinks.postgres.housekeeping.runs import NotYet
from ingest.sinks.postgres.housekeeping.table_state import View
from ingest.sinks.postgres.schema import TargetTable
from ingest.system.logs import get_logger
from ingest.years import partition_life
from ingest.years.rollups import tables
from ingest.years.rollups.tables import HOUR_US, Key, tables_of

KEY = "rollups"  # in the registry
NOT_COMPUTED = "the rollups of this time are not computed yet"
LATE_MISSING = "late readings of this time are not in its rollups yet"

log = get_logger("rollups")


class Progress(NamedTuple):
    """Times in Unix microseconds.

    Hours before `until_us` and days before `days_until_us` are computed; None: none yet. `gone` are
    times whose readings were removed, and not to an archive. They have whole hours, are apart from
    each other, and sorted. `off`: nothing is computed; only `gone` grows. `late_left` is how many
    late readings came when their time had left.
    """

    until_us: int | None = None
    days_until_us: int | None = None
    gone: tuple[TimeSpan, ...] = ()
    off: bool = False
    late_left: int = 0


async def progress(connection: Connection, table: str) -> Progress | None:
    """Return how far they are; None if there are none, or they are off."""
    at = await last(connection, table)
    return None if at is None or at.off else at


async def last(connection: Connection, table: str) -> Progress | None:
    """Return how far they are, also if they are off; None if they have never been on."""
    found = (await registry.entries(connection, table, KEY)).get("")
    if found is None:
        return None
    gone = [TimeSpan(*each) for each in found.get("gone", ())]
    if (raw_from_us := found.get("raw_from_us")) is not None:  # of 0.1.0, in place of `gone`
        before = TimeSpan(BEGINNING_US, raw_from_us)
        gone = joined([*gone, whole(before, HOUR_US)])
    at = Progress(found.get("until_us"), found.get("days_until_us"), tuple(gone))
    return at._replace(off=found.get("off") is True, late_left=found.get("late_left", 0))


async def put(connection: Connection, registry_name: str, at: Progress) -> None:
    """Store how far they are, in the caller's transaction."""
    values: dict[str, Any] = at._asdict() | {"gone": [list(each) for each in at.gone]}
    await registry.put(connection, registry_name, {KEY: values})


async def frozen(connection: Connection, table: str, at: Progress) -> list[TimeSpan]:
    """Return the hours whose rollups are final: whole, sorted, and apart from each other."""
    files = (await registry.entries(connection, table, registry.FILES)).values()
    spans = [TimeSpan(each["from_us"], each["to_us"]) for each in files]
    spans += await partition_life.left(connection, table)
    return joined([*at.gone, *(whole(each, HOUR_US) for each in spans)])


def frozen_until(spans: Sequence[TimeSpan], hour_us: int) -> int | None:
    """Return until when the rollups are final from an hour on; None: they are not."""
    at = bisect_right(spans, hour_us, key=lambda each: each.from_us) - 1
    return spans[at].to_us if at >= 0 and hour_us < spans[at].to_us else None


async def leave(
    connection: Connection,
    view: View,
    before_us: int,
    *,
    from_us: int = BEGINNING_US,
    wanted: bool = False,
    failed: Mapping[Key, str] | None = None,
) -> None:
    """Call it before the readings of a time leave the table.

    Raises NotYet if a rollup still needs these readings; also if rollups are `wanted`, and their
    tables could not be made yet. Those that have `failed` are given up: nothing computes them any
    more. It is None if the readings are not in an archive afterwards: then they are needed too.
    """
    at = await progress(connection, view.table)
    if at is None:
        if wanted:
            raise NotYet(NOT_COMPUTED)
        return
    if at.until_us is None or at.until_us < before_us:
        raise NotYet(NOT_COMPUTED)
    names = tables_of(TargetTable(schema=view.schema, table=view.name))
    older = _older(await frozen(connection, view.table, at), TimeSpan(from_us, before_us))
    keys = tables.columns(failed or ())
    if await connection.fetchval(
        f"select exists (select from {names.late} where {older}) "  # noqa: S608
        f"or exists (select from {names.due} where {older} and not {tables.IS_OF_KEYS})",
        *keys,
    ):
        raise NotYet(LATE_MISSING)
    if failed:
        for row in await connection.fetch(
            f"delete from {names.due} where {older} and {tables.IS_OF_KEYS} "  # noqa: S608
            "returning hour::text as hour, device_id, metric",
            *keys,
        ):
            hour, device_id, metric = row
            log.warning("rollup_given_up", hour=hour, device_id=device_id, metric=metric)


async def left(connection: Connection, view: View, span: TimeSpan) -> None:
    """Call it in the transaction in which the readings of a time are dropped without an archive.

    From now on the rollups of that time are final, also if they are off and on again.
    """
    at = await last(connection, view.table)
    if at is not None:
        name, _ = await registry.name_beside(connection, view.table)
        gone = joined([*at.gone, whole(span, HOUR_US)])
        await put(connection, name, at._replace(gone=tuple(gone)))


def _older(frozen: Sequence[TimeSpan], span: TimeSpan) -> str:
    """Return what SQL asks of `hour`: whether a rollup of it may still need readings of a time."""
    final = [each for each in frozen if overlap(each, whole(span, HOUR_US))]
    older = f"hour < {literal(span.to_us)} and not {tables.within(final)}"
    if span.from_us != BEGINNING_US:
        older += f" and hour > {literal(span.from_us)}::timestamptz - '1 h'::interval"
    return older
