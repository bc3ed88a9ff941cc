"""Declared tables in the database: they are made, get columns, and a view shows all readings.

The comment of each column says since when it takes readings, and of which measurement. Where it
says something else than the declaration, or a column or a table is not declared any more, readings
that are posted again would be stored twice, in two places. So `fault` must be asked before a
process writes.
Promises: what exists is not changed, except that a table gets columns that it does not have. Who
declares no table has no view. Errors of the driver pass through.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from asyncpg import Connection, Record

from ingest.model.errors import StartError
from ingest.model.moments import form_of_table
from ingest.model.tables import ALL_READINGS, ColumnTable, Tables
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.column_statements import metric_in_sql
from ingest.sinks.postgres.schema import ColumnTarget, OnMade, TargetTable, literal, look, quoted
from ingest.system.clock import rfc3339_or_us

SINCE = "iot-ingest: since "
VIEW_MARK = "all readings of "  # and how the view was made, so that it is made anew if need be
# Called with a table that is not there yet: what makes its partitions, or None if it has none.
FirstPartitions = Callable[[TargetTable], Awaitable[OnMade | None]]

# The columns of a table that have a comment of ours, or are among $2.
_COMMENTS = """
select a.attname::text as name, coalesce(col_description(a.attrelid, a.attnum), '') as comment
from pg_attribute a where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
  and (a.attname = any ($2::text[])
       or starts_with(col_description(a.attrelid, a.attnum), 'iot-ingest: since '))
order by a.attnum"""
# The tables that our view reads; $2 is how its comment begins.
_READ_BY = """
select distinct c.relname::text from pg_rewrite r
join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
     and d.refclassid = 'pg_class'::regclass
join pg_class c on c.oid = d.refobjid and c.oid <> r.ev_class
where r.ev_class = to_regclass($1) and starts_with(obj_description(r.ev_class, 'pg_class'), $2)
order by 1"""
_READINGS = """
select to_regclass($2) is not null as device_index,
       array(select format('%I.%I', n.nspname, l.collname)
             from pg_attribute a join pg_collation l on l.oid = a.attcollation
             join pg_namespace n on n.oid = l.collnamespace
             where a.attrelid = c.oid and a.attname = any ($3::text[])
             order by array_position($3::text[], a.attname::text)) as collations
from pg_class c where c.oid = to_regclass($1)"""
# The newest reading of each metric, of some of the newest since a time.
_NEWEST = """
select metric, (extract(epoch from max(ts)) * 1000000)::int8 as newest_us from (
    select ts, metric from {readings} r
    where ts >= 'epoch'::timestamptz + $1 * interval '1 us' and ts < 'infinity'
    order by ts desc limit 200000) r
group by metric order by 2 desc, 1"""
_VIEW = """
select c.relkind::text as kind, coalesce(obj_description(c.oid, 'pg_class'), '') as comment
from pg_class c where c.oid = to_regclass($1)"""


def comment_of(since_us: int, measurement: str) -> str:
    """Return the comment of a column that takes readings from this time on (Unix microseconds)."""
    return f"{SINCE}{rfc3339_or_us(since_us)}" + (
        f" of the measurement {measurement}" if measurement else ""
    )


def _mark_of(readings: TargetTable) -> str:
    return f"{VIEW_MARK}{readings.name} "


def view_name(readings: TargetTable) -> TargetTable:
    """Return the name of the view of all readings, beside the table."""
    return readings._replace(table=ALL_READINGS)


async def fault(
    connection: Connection, readings: TargetTable, tables: Sequence[ColumnTable]
) -> str:
    """Return why nothing may be written with these declarations, or an empty string.

    Without a schema `readings` is found by the search_path.
    """
    seen = await look(connection, readings)
    readings = readings._replace(schema=seen.target.schema)
    faults, new = list[str](), list[ColumnTable]()
    declared = {table.name for table in tables}
    for table in tables:
        target = ColumnTarget(readings.schema, form_of_table(table))
        rows = await connection.fetch(_COMMENTS, target.name, table.columns)
        comments = {row["name"]: row["comment"] for row in rows}
        faults += _comment_faults(target, table, comments)
        missing = [
            each
            for each in zip(table.columns, table.since_us, strict=True)
            if each[0] not in comments
        ]
        if missing:
            columns, since_us = zip(*missing, strict=True)
            new.append(table._replace(columns=columns, since_us=since_us))
    if new and seen.oid:
        faults += await _stored_before(connection, readings, new)
    view = view_name(readings).name
    read = {name for (name,) in await connection.fetch(_READ_BY, view, _mark_of(readings))}
    if gone := sorted(read - declared - {readings.table}):
        faults.append(
            f"table {', '.join(map(quoted, gone))} is not declared any more (tables_file): its "
            "readings would be stored a second time if they were posted again; start with "
            f"--tables-file FILE that declares it, or drop the view {view} if you mean it"
        )
    return "; ".join(faults)


async def _stored_before(
    connection: Connection, readings: TargetTable, new: Sequence[ColumnTable]
) -> list[str]:
    """Return why these columns, which are not there yet, may not begin when they are declared to.

    Only the newest readings are looked at. The newest of all that speak against it is told.
    """
    least_us = min(since_us for table in new for since_us in table.since_us)
    homes = Tables(new)
    for row in await connection.fetch(_NEWEST.format(readings=readings.source), least_us):
        home = homes.home(row["metric"])
        if home is not None and row["newest_us"] >= home.since_us:
            column = quoted(home.table.columns[home.column])
            return [
                f"column {column} of {quoted(home.table.name)} is to begin at "
                f"{rfc3339_or_us(home.since_us)} (tables_file), but {readings.name} has readings "
                f"of {literal(row['metric'])} until {rfc3339_or_us(row['newest_us'])}: "
                "posted again, they would be stored twice; declare a later `since`"
            ]
    return []


def _comment_faults(
    target: ColumnTarget, table: ColumnTable, comments: dict[str, str]
) -> list[str]:
    """Return each fault once, with all columns that have it."""
    wanted = {
        column: comment_of(since_us, table.measurement)
        for column, since_us in zip(table.columns, table.since_us, strict=True)
    }
    columns = defaultdict[str, list[str]](list)
    for column, comment in comments.items():
        found = comment.removeprefix(SINCE)
        if column not in wanted:
            why = (
                "is not declared any more (tables_file): its readings would be stored a second "
                f"time if they were posted again; declare it again, since {found}"
            )
        elif found == comment:
            why = (
                "was not made by us. If nothing but iot-ingest has filled it: comment on "
                f"column {target.name}.{quoted(column)} is {literal(wanted[column])}"
            )
        elif comment != wanted[column]:
            why = (
                f"takes readings since {found}, and is declared since "
                f"{wanted[column].removeprefix(SINCE)} (tables_file): readings would be "
                f"stored twice if they were posted again; declare it since {found} again"
            )
        else:
            continue
        columns[why].append(quoted(column))
    return [f"column {', '.join(names)} of {target.name} {why}" for why, names in columns.items()]


async def apply(
    connection: Connection,
    readings: TargetTable,
    tables: Sequence[ColumnTable],
    *,
    device_index: bool = False,
    role: str | None = None,
    partitions: FirstPartitions,
) -> list[str]:
    """Make what is missing of declared tables, beside the table `readings`, which is there.

    A new table has the index for devices if `readings` has it; with `device_index` all get it.
    Returns one sentence for each step. May run at every start, and in several processes at once.
    Raises StartError if `fault` finds something, or a table is there and does not fit.
    """
    done = list[str]()
    if not tables:
        return done
    async with connection.transaction():
        await connection.execute("set local client_min_messages = warning")
        await connection.execute(schema.ALONE)
        seen = await look(connection, readings)
        if seen.difference:
            raise StartError(seen.difference)
        readings = readings._replace(schema=seen.target.schema)
        if found := await fault(connection, readings, tables):
            raise StartError(found)
        for table in tables:
            done += await _apply_one(connection, readings, table, partitions)
            if device_index:
                plain = TargetTable(readings.schema, table.name)
                columns = ("device_id", *(("series",) if table.measurement else ()), "ts")
                done.append(await schema.make_device_index(connection, plain, columns))
        done += await _make_view(connection, readings, tables)
        if role is not None:
            for each in tables:
                target = ColumnTarget(readings.schema, form_of_table(each))
                await schema.grant(connection, target, role)
            await connection.execute(
                f"grant select on {view_name(readings).name} to {quoted(role)}"
            )
            done.append(f"the role {role} may write and read them")
    return done


async def _apply_one(
    connection: Connection, readings: TargetTable, table: ColumnTable, partitions: FirstPartitions
) -> list[str]:
    target = ColumnTarget(readings.schema, form_of_table(table))
    there = await connection.fetch(_COMMENTS, target.name, table.columns)
    missing = [each for each in table.columns if each not in {row["name"] for row in there}]
    done = list[str]()
    if not await connection.fetchval("select to_regclass($1) is not null", target.name):
        done += await _create(connection, readings, target, partitions)
    elif missing:
        await connection.execute(add_statement(target.name, missing))
        done.append(f"added to the table {target.name}: {', '.join(missing)}")
    for column, since_us in zip(table.columns, table.since_us, strict=True):
        if column in missing:
            await connection.execute(
                f"comment on column {target.name}.{quoted(column)} is "
                f"{literal(comment_of(since_us, table.measurement))}"
            )
    if (seen := await look(connection, target)).difference:
        raise StartError("\n".join([seen.difference, *seen.sql]))
    return done or [f"the table {target.name} was there, and fits"]


async def _create(
    connection: Connection,
    readings: TargetTable,
    target: ColumnTarget,
    partitions: FirstPartitions,
) -> list[str]:
    """Make a table like `readings`: partitioned if it is, with an index for devices if it has."""
    like = await _like(connection, readings)
    plain = TargetTable(target.schema, target.table)
    first = await partitions(plain)
    statement = create_statement(target, like["collations"], by_time=first is not None)
    await connection.execute(statement)
    done = [f"made the table {target.name}"]
    if first:
        done += await first(connection)
    if like["device_index"]:
        await schema.make_device_index(connection, plain, (*target.key[1:], "ts"))
    return done


def add_statement(name: str, columns: Sequence[str]) -> str:
    """Return the statement that adds columns to a table; `name` is as SQL has it."""
    added = ", ".join(f"add column {quoted(each)} double precision" for each in columns)
    return f"alter table {name} {added}"


def create_statement(target: ColumnTarget, collations: Sequence[str], *, by_time: bool) -> str:
    """Return the statement that makes a table; the collations are of the device and the series."""
    types = ["timestamptz", *(f"text collate {each}" for each in collations)]
    columns = [
        f"{quoted(name)} {type_} not null" for name, type_ in zip(target.key, types, strict=False)
    ]
    columns += [f"{quoted(each)} double precision" for each in target.form.columns]
    columns.append(f"primary key ({', '.join(map(quoted, target.key))})")
    by = " partition by range (ts)" if by_time else ""
    return f"create table {target.name} ({', '.join(columns)}){by}"


async def _like(connection: Connection, readings: TargetTable) -> Record:
    """Return how the table `readings` is made: see _READINGS."""
    index = readings._replace(table=readings.device_index).name
    names = [readings.device_id, readings.metric]
    found = await connection.fetchrow(_READINGS, readings.name, index, names)
    assert found is not None, "the table of readings is there"
    return found


async def _make_view(
    connection: Connection, readings: TargetTable, tables: Sequence[ColumnTable]
) -> list[str]:
    """Make the view of all readings, or make it anew if the tables have changed."""
    view = view_name(readings).name
    selects = _selects(readings, tables, (await _like(connection, readings))["collations"][1])
    mark = f"{_mark_of(readings)}{hashlib.sha256(selects.encode()).hexdigest()[:12]}"
    found = await connection.fetchrow(_VIEW, view)
    if found is not None:
        ours = found["kind"] == "v" and found["comment"].startswith(_mark_of(readings))
        if not ours:
            raise StartError(f"{view} is there, and no view of ours: give it another name")
        if found["comment"] == mark:
            return []
    await connection.execute(
        f"create or replace view {view} as {selects}; comment on view {view} is {literal(mark)}"
    )
    return [f"made the view {view}"]


def _selects(readings: TargetTable, tables: Sequence[ColumnTable], collation: str) -> str:
    """Return the query of the view: the readings, and the values of each column of the tables.

    It is such that the planner leaves out all columns that a condition on the metric cannot mean,
    and keeps the indexes of the others. So no part has a WHERE of its own. The metrics of a
    measurement end with the series, which the planner cannot see through: so they stand between two
    constants, in the order of bytes: `cpu.idle` <= `cpu.idle,cpu=cpu0` < `cpu.idle-`. A metric is
    never null. Without this condition the planner would take both for a narrow range, and expect
    200 times too few rows, not 10 times.
    """
    parts = [f"select {readings.column_list}, null::text, null::text from {readings.name}"]  # noqa: S608
    for table in tables:
        name = ColumnTarget(readings.schema, form_of_table(table)).name
        for column in table.columns:
            stem = table.stem(column)
            metric, least, after = (
                metric_in_sql(table.measurement, column, collation),
                "null",
                "null",
            )
            if table.measurement:
                least, after = literal(stem), literal(f"{stem}-")
            columns = f"ts, device_id, {metric}, {quoted(column)}, {least}::text, {after}::text"
            parts.append(f"select {columns} from {name}")  # noqa: S608
    union = "\nunion all ".join(parts)
    return f"""select ts, device_id, metric, value from (
{union}) as r (ts, device_id, metric, value, least, after)
where value is not null
  and (least is null or metric collate "C" >= least)
  and (after is null or metric collate "C" < after or metric is null)"""  # noqa: S608
