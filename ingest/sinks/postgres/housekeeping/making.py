"""Makes partitions: those of coming days, so that no write waits for one; and the table itself.

A partition is a table of its own, which is then attached. That takes SHARE UPDATE EXCLUSIVE on the
parent, so that writes go on. CREATE TABLE .. PARTITION OF would lock it against them. All of it is
one transaction: if it is cut off, nothing is left. The new table is empty, and nobody else sees it
yet, so the check of its rows costs nothing. Some are made in one transaction: to commit each one
alone would take longer than to make it.
Promises: columns, constraints and key are those of the parent; so is the owner. Partitions that
somebody else has made can be adopted: retention and archive may then remove them.
Does not: change a table that exists. The driver's errors pass through, but for those of
`make_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import asyncpg

from ingest.model.causes import TABLES, Verdict, WriteFailed
from ingest.model.errors import StartError
from ingest.model.tables import ColumnTable
from ingest.sinks.postgres import column_tables, schema
from ingest.sinks.postgres.connection import (
    DRIVER_ERRORS,
    Connection,
    Timeouts,
    deadline,
    opened_as,
    text_of,
)
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import (
    DAY_US,
    NONE,
    Partition,
    TimeSpan,
    archived_spans,
    bounds_entry,
    cut_at,
    gaps,
    literal,
    partition_name,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.runs import Job, Step
from ingest.sinks.postgres.housekeeping.table_state import PARTITIONED, View, look_at
from ingest.sinks.postgres.schema import READINGS, TargetTable, quoted, shortened
from ingest.sinks.postgres.sqlstate import server_failed, verdict_for
from ingest.system.logs import get_logger
from ingest.system.words import counted

GROUP_MAX = 16  # in one transaction: it takes some tenths of a second if there are thousands
FAILED_MAX = 3  # of a group: then the others would probably fail too
LOCK_MS = 1_000  # for the lock of the parent: somebody may be changing the table
AHEAD_US_MAX = 400 * DAY_US  # further ahead a reading makes its own partition
MAKE = "make"
NAME = "iot-ingest schema"  # as pg_stat_activity shows it
_SAME_NAME_MAX = 100
_OVERLAPS = "42P17"
_ALONE = "select pg_advisory_xact_lock(hashtextextended('iot-ingest partitions', {oid}))"
_ANY_IS_THERE = "select bool_or(to_regclass(name) is not null) from unnest($1::text[]) as name"
# Of the parent: where its partitions are to be.
_TABLESPACE = """
select s.spcname from pg_class c join pg_tablespace s on s.oid = c.reltablespace where c.oid = $1"""
_HAS_TIMESCALEDB = "select exists (select from pg_extension where extname = 'timescaledb')"


class PartitionsAhead(Job):
    """The job for coming days. `ahead_s` is `ts_ahead_s_max`, `spans` how many more are made.

    It covers the times that a reading may have, and some spans more, so that a few days without
    housekeeping do no harm. Who is about to bring older readings can have it begin earlier: with
    `from_us` it begins at that time, and makes none if there would be more than
    `partitions_max`.
    """

    kinds = frozenset({MAKE})

    def __init__(
        self, *, ahead_s: float, spans: int, from_us: int | None = None, partitions_max: int = 0
    ) -> None:
        self._ahead_us = min(int(ahead_s * 1e6), AHEAD_US_MAX)
        self._spans = spans
        self._from_us = from_us
        self._partitions_max = partitions_max
        self._planned: list[TimeSpan] = []
        self._made = set[TimeSpan]()  # with an earlier step of the plan

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return a step for each span that has no partition; none for a table that is not ours.

        Nor for one with a default partition, which takes all readings. Raises StartError if
        `from_us` asks for too many.
        """
        if view.kind != PARTITIONED or not view.ours or view.has_default:
            return []
        missing = self.missing(view)
        self._made.clear()
        if self._from_us is not None:
            # A partition may lie in one archived span only: it is merged with the files of that.
            files = await archived_spans(connection, view.table)
            missing = [each for gap in missing for each in cut_at(gap, files)]
            if (count := len(view.partitions) + len(missing)) > self._partitions_max:
                raise StartError(
                    f"the table would have {count:,} partitions, more than partitions_max "
                    f"({self._partitions_max:,}): none was made"
                )
        self._planned = missing
        return [
            Step(
                MAKE,
                partition_name(view.name, view.span, gap.from_us),
                "readings of this time may come soon",
                *gap,
            )
            for gap in missing
        ]

    def missing(self, view: View) -> list[TimeSpan]:
        """Return what must be covered from now on, and is not."""
        bounds = span_bounds(view.span, view.now_us + self._ahead_us)
        for _ in range(self._spans):
            bounds = span_bounds(view.span, bounds.to_us)
        from_us = view.now_us if self._from_us is None else min(view.now_us, self._from_us)
        found = gaps(view.partitions, view.span, from_us, bounds.to_us)
        return [each for each in found if each.to_us > from_us]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Make this partition, and the next ones of the plan in the same transaction.

        Another process may have made one meanwhile. If one of the next ones cannot be made, its
        own step says so.
        """
        bounds = TimeSpan(step.from_us, step.to_us)
        if bounds not in self._made:
            at = self._planned.index(bounds)
            group = [each for each in self._planned[at : at + GROUP_MAX] if each not in self._made]
            made, failed = await make_partitions(connection, view, group)
            self._made.update(made)
            if failed is not None and bounds not in made:
                raise failed

    async def begin(self, connection: Connection, view: View) -> int:
        """Make the first partitions of a table that was just made; return how many."""
        if view.kind != PARTITIONED:
            raise StartError(f"{view.table} is not partitioned by time")
        known = await registry.make(connection, view.table, view.owner)
        await registry.put(connection, known, {registry.TABLE + view.name: {"span": view.span}})
        missing = self.missing(view)
        for at in range(0, len(missing), GROUP_MAX):
            _, failed = await make_partitions(connection, view, missing[at : at + GROUP_MAX])
            if failed is not None:
                raise failed
        return len(missing)


async def make_partitions(
    connection: Connection, view: View, spans: Sequence[TimeSpan]
) -> tuple[dict[TimeSpan, str], Exception | None]:
    """Make and attach partitions, at most GROUP_MAX, in one transaction.

    If one of them cannot be made, each is made by itself, until FAILED_MAX have failed. Returns the
    names by their spans, and the first failure, which is StartError if the role may not. A name is
    empty if a part of its time has a partition by now. Waits for locks as long as LOCK_MS.
    """
    if view.cannot_make:
        return {}, StartError(view.cannot_make)
    if len(spans) > 1:
        try:
            return dict(zip(spans, await _make_group(connection, view, spans), strict=True)), None
        except (asyncpg.PostgresError, StartError) as error:
            if _fails_for_all(connection, error):
                return {}, error
    made: dict[TimeSpan, str] = {}
    failed: list[Exception] = []
    for bounds in spans:
        try:
            (made[bounds],) = await _make_group(connection, view, [bounds])
        except (asyncpg.PostgresError, StartError) as error:
            if getattr(error, "sqlstate", None) == _OVERLAPS:
                made[bounds] = ""
                continue
            failed.append(error)
            if _fails_for_all(connection, error) or len(failed) == FAILED_MAX:
                break
    return made, failed[0] if failed else None


def _fails_for_all(connection: Connection, error: Exception) -> bool:
    """Whether no other partition could be made now, either."""
    return connection.is_closed() or isinstance(error, asyncpg.LockNotAvailableError)


async def _make_group(connection: Connection, view: View, spans: Sequence[TimeSpan]) -> list[str]:
    """Make and attach partitions in one transaction: all of them or none. Return their names."""
    async with connection.transaction():
        await connection.execute(
            f"set local lock_timeout = {LOCK_MS}; set local client_min_messages = warning; "
            f"{_ALONE.format(oid=view.oid)}"
        )
        space = await connection.fetchval(_TABLESPACE, view.oid)
        names = await _wanted_names(connection, view, spans)
        # Two may get the same free name: that is an error, and each is made by itself.
        names = names or [await _free_name(connection, view, each) for each in spans]
        # All tables first: after each attachment the server reads all bounds of the parent.
        tables = [_make(view, name, space) for name in names]
        attached = [_attach(view, *each) for each in zip(names, spans, strict=True)]
        await connection.execute("; ".join(tables + attached))
        known = await registry.make(connection, view.table, view.owner)
        entries = {
            registry.PARTITION + name: bounds_entry(*bounds)
            for name, bounds in zip(names, spans, strict=True)
        }
        await registry.put(connection, known, entries)
        # A restored partition that had such a name was dropped by hand: this one may leave.
        await registry.remove(connection, known, *(registry.PINNED + name for name in names))
    return names


def _make(view: View, name: str, space: str | None) -> str:
    table = f"{quoted(view.schema)}.{quoted(name)}"
    made = (
        f"create table {table} (like {view.table} including all excluding indexes "
        f"excluding identity){f' tablespace {quoted(space)}' if space else ''}"
    )
    if view.role == view.owner:
        return made
    return f"{made}; alter table {table} owner to {quoted(view.owner)}"


def _attach(view: View, name: str, bounds: TimeSpan) -> str:
    lower, upper = literal(bounds.from_us), literal(bounds.to_us)
    table = f"{quoted(view.schema)}.{quoted(name)}"
    return (
        f"alter table {view.table} attach partition {table} for values from ({lower}) to ({upper})"
    )


async def _wanted_names(connection: Connection, view: View, spans: Sequence[TimeSpan]) -> list[str]:
    """Return the names that partitions usually have; nothing if one of them is not free."""
    names = [partition_name(view.name, view.span, each.from_us) for each in spans]
    tables = [f"{quoted(view.schema)}.{quoted(name)}" for name in names]
    keys = [registry.FILES + name for name in names]
    free = (
        len(set(names)) == len(names)
        and not await connection.fetchval(_ANY_IS_THERE, tables)
        and not await registry.has_any(connection, view.table, keys)
    )
    return names if free else []


async def _free_name(connection: Connection, view: View, bounds: TimeSpan) -> str:
    """Return the name of a partition; if a table has it, the next one, such as .._2.

    A partition that was detached keeps its name, and its readings; an archived one its files.
    """
    wanted = partition_name(view.name, view.span, bounds.from_us)
    files = await registry.entries(connection, view.table, registry.FILES + wanted)
    for number in range(1, _SAME_NAME_MAX):
        ending = f"_{number}" if number > 1 else ""
        name = shortened(wanted, ending)
        taken = f"{quoted(view.schema)}.{quoted(name)}"
        held = files.get(ending)  # the files of this name: of a time that has this one in it?
        if held and not held["from_us"] <= bounds.from_us < bounds.to_us <= held["to_us"]:
            continue
        if await connection.fetchval("select to_regclass($1) is null", taken):
            return name
    raise StartError(f"there are {_SAME_NAME_MAX} tables whose names begin with {wanted}")


def adoptable(view: View, names: Sequence[str]) -> list[Partition]:
    """Return those of the named partitions (without names: of all) that are not ours yet.

    Raises StartError if the table is not partitioned by time, or has no partition of that name.
    """
    if view.kind != PARTITIONED:
        raise StartError(f"{view.table} is not partitioned by its time: there is nothing to adopt")
    by_name = {each.name: each for each in view.partitions}
    if unknown := [each for each in names if each not in by_name]:
        raise StartError(f"{view.table} has no partition {unknown[0]} with bounds of its time")
    chosen = [by_name[each] for each in dict.fromkeys(names)] if names else view.partitions
    return [each for each in chosen if not each.ours]


async def adopt(connection: Connection, view: View, chosen: Sequence[Partition], span: str) -> None:
    """Enter the partitions, and the table, as ours, with the bounds that they have now.

    New partitions will have a `span` each. Raises StartError if this role may not make or drop
    partitions, or if there is no span.
    """
    if view.cannot_make:
        raise StartError(view.cannot_make)
    if span == NONE:
        raise StartError("set partition_span to day or month: new partitions get this span")
    async with connection.transaction():
        kept = await registry.make(connection, view.table, view.owner)
        made: dict[str, object] = {registry.TABLE + view.name: {"span": span}}
        for each in chosen:
            made[registry.PARTITION + each.name] = bounds_entry(each.from_us, each.to_us)
        await registry.put(connection, kept, made)


async def make_table(
    database_url: str, target: TargetTable, timeouts: Timeouts, *, span: str, ahead: PartitionsAhead
) -> bool:
    """Connect, create the table if it is missing, and disconnect: at the start, if that is allowed.

    If it fails, that is logged, and the check of the table that follows decides. The table has a
    partition for each `span`, which may be `none`. Returns False if another try may help: the
    server was away, or the table was locked.
    """
    try:
        async with opened_as(NAME, database_url, timeouts) as connection:
            # The commit of a new table may wait for a standby, for which the server has no limit.
            with deadline(connection, timeouts.command_s_max):
                partitions = await first_partitions(connection, span, ahead, target)
                await schema.apply(connection, target, partitions=partitions)
    except (asyncpg.PostgresError, *DRIVER_ERRORS, StartError) as error:
        get_logger("schema").warning("table_not_made", why=text_of(error))
        verdict = verdict_for(getattr(error, "sqlstate", None))
        return isinstance(error, StartError) or verdict not in (Verdict.WAIT, Verdict.RETRY)
    return True


async def make_column_tables(
    database_url: str,
    readings: TargetTable,
    tables: Sequence[ColumnTable],
    timeouts: Timeouts,
    *,
    may_make: bool,
    span: str,
    ahead: PartitionsAhead,
) -> None:
    """Compare declared tables with the database; if it is allowed, make what is missing of them.

    If that fails, it is logged, and the check of a table at the first write to it decides. Raises
    WriteFailed: HOLD if nothing may be written before a person decides, or the server was away.
    """
    try:
        async with opened_as(NAME, database_url, timeouts) as connection:
            with deadline(connection, timeouts.command_s_max):
                if fault := await column_tables.fault(connection, readings, tables):
                    raise WriteFailed(Verdict.HOLD, fault, reason=TABLES)
                partitions = partial(partitions_like, connection, readings, span, ahead)
                if may_make and tables:
                    await column_tables.apply(connection, readings, tables, partitions=partitions)
    except StartError as error:
        get_logger("schema").warning("table_not_made", why=str(error))
    except asyncpg.PostgresError as error:
        failed = server_failed(error)
        if failed.verdict in (Verdict.WAIT, Verdict.RETRY):
            raise failed from error
        get_logger("schema").warning("table_not_made", why=text_of(error))
    except DRIVER_ERRORS as error:
        raise WriteFailed(Verdict.WAIT, text_of(error)) from error


async def first_partitions(
    connection: Connection, span: str, ahead: PartitionsAhead, target: TargetTable = READINGS
) -> schema.OnMade | None:
    """Return what makes the first partitions of a new table; None if it is to have none.

    TimescaleDB can make a hypertable of a plain table only, and then makes the chunks itself.
    """
    if span == NONE or await connection.fetchval(_HAS_TIMESCALEDB):
        return None
    return _begins(span, ahead, target)


async def partitions_like(
    connection: Connection,
    readings: TargetTable,
    span: str,
    ahead: PartitionsAhead,
    target: TargetTable,
) -> schema.OnMade | None:
    """Return what makes the first partitions of a new declared table (`target`).

    They have the same span as those of `readings`. None: `readings` has none of ours.
    """
    view = await look_at(connection, readings.name, span, target=readings, sizes=False)
    return _begins(view.span, ahead, target) if view.kind == PARTITIONED and view.ours else None


def _begins(span: str, ahead: PartitionsAhead, target: TargetTable) -> schema.OnMade:
    async def begin(connection: Connection) -> list[str]:
        view = await look_at(connection, target.name, span, target=target)
        made = await ahead.begin(connection, view._replace(span=span))
        return [f"made {counted(made, 'partition')}, one for each {span}"]

    return begin
