"""The statements that store rows of a declared table, which has a column for each metric.

A row is a moment of a device. The first row of a moment takes its place, and stays as it is. What
comes later and is not in that row (another value, or one where it has none) is stored in `readings`
by its full key. So each reading stands once, over both tables.
Rows of a moment that may be there already go through a staging table, or arrays: first the rows of
new moments are inserted. ON CONFLICT waits for a row of another transaction, so at READ COMMITTED
the second statement sees the row of each moment, and stores what that row has not. It is left out
if the first one has inserted as many rows as came: never for their values, which a trigger of the
user may have filled in. A row that a trigger has moved or left out has no stored row, so its
readings go to `readings` too.
Does not: begin or end a transaction, or judge errors; the driver's errors pass through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from ingest.model.block import PG_EPOCH_US
from ingest.model.moments import RowRun, TableForm
from ingest.model.tables import stem_of
from ingest.sinks.postgres.batch_tables import New, TableRows
from ingest.sinks.postgres.schema import ColumnTarget, Look, Target, literal, quoted
from ingest.sinks.postgres.statements import check_of, copy

_KEY_TYPES = ("timestamptz", "text", "text")


def metric_in_sql(measurement: str, column: str, collation: str = '"C"') -> str:
    """Return the metric of a column as `metric_of` has it; of a measurement with its `series`."""
    stem = stem_of(measurement, column)
    whole = f"{literal(stem)}::text collate {collation}"
    if not measurement:
        return whole
    return f"case when series = '' then {whole} else {literal(f'{stem},')} || series end"


class ColumnStatements(NamedTuple):
    """The statements for one form of a declared table on one connection: see Statements.

    `new_staged` and `new_arrays` insert the rows of new moments. They return how many rows, and how
    many values these have, with those that a trigger has filled in. `rest_staged` and `rest_arrays`
    insert what the stored row of a moment has not, and return the number of readings.
    """

    form: TableForm
    prepare: str
    check: str
    checked_copy: str
    copy: str
    make_staging: str
    copy_staged: str
    empty_staging: str
    new_staged: str
    rest_staged: str
    new_arrays: str
    rest_arrays: str
    insert_like_stored: str

    async def store_staged(self, connection: asyncpg.Connection, rows: TableRows) -> New:
        """COPY encoded rows into the staging table; store what is new in it.

        Call it in a transaction, on a connection that has the staging table.
        """
        await copy(connection, self.copy_staged, rows.tuples)
        # `fetchval` keeps the plans. These statements are long, and batches may be small.
        inserted, values = await connection.fetchval(self.new_staged)
        if inserted == rows.rows:
            return New(rows.readings)
        rest = await connection.fetchval(self.rest_staged)
        return New(min(values, rows.readings - rest), rest)

    async def insert_arrays(self, connection: asyncpg.Connection, rows: TableRows) -> New:
        """Store what is new in encoded rows, without a staging table."""
        cells = list(RowRun(self.form, b"".join(rows.tuples), -1, -1).cells())
        moments = [(row.ts_us - PG_EPOCH_US,) for row in cells]
        names = ([row.device_id for row in cells], [row.series for row in cells])
        columns = zip(*(row.values for row in cells), strict=True)
        arrays = (moments, *names[: self.form.fixed_columns - 1], *map(list, columns))
        inserted, values = await connection.fetchval(self.new_arrays, *arrays)
        if inserted == rows.rows:
            return New(rows.readings)
        rest = await connection.fetchval(self.rest_arrays, *arrays)
        return New(min(values, rows.readings - rest), rest)


def column_statements_for(found: Look, readings: Target) -> ColumnStatements:
    """Return the statements for a declared table that the full check has found."""
    target = found.target
    assert isinstance(target, ColumnTarget), "of a declared table"
    prepare, check = check_of(found)
    form, table, columns = target.form, target.name, target.column_list
    places = [f"c{number}" for number in range(len(form.columns))]
    names = (*target.key, *places)
    types = (*_KEY_TYPES[: len(target.key)], *("float8" for _ in places))
    copy = f"copy {table} ({columns}) from stdin (format binary)"
    # Of the form, not of the table: so it outlives a change of the table.
    staging = f"pg_temp.ingest_staging_{hashlib.sha256(form.head).hexdigest()[:12]}"
    typed = ", ".join(f"{name} {type_}" for name, type_ in zip(names, types, strict=True))
    arrays = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(types, start=1))
    unnested = f"unnest({arrays}) as s ({', '.join(names)})"
    return ColumnStatements(
        form=form,
        prepare=prepare,
        check=check,
        checked_copy=f"{check}; {copy}",
        copy=copy,
        make_staging=f"""begin; set local synchronous_commit = off;
create temp table if not exists {staging.removeprefix("pg_temp.")} ({typed})
on commit delete rows; commit""",
        copy_staged=f"copy {staging} from stdin (format binary)",
        empty_staging=f"delete from {staging}",  # noqa: S608
        new_staged=_insert_new(target, places, f"{staging} s"),
        rest_staged=_insert_rest(target, readings, places, f"{staging} s"),
        new_arrays=_insert_new(target, places, unnested),
        rest_arrays=_insert_rest(target, readings, places, unnested),
        insert_like_stored=_insert_like_stored(target),
    )


def _insert_new(target: ColumnTarget, places: Sequence[str], source: str) -> str:
    """Return the INSERT of the rows of new moments. The order is the same in each writer.

    Of several rows of one moment the first one of this order is stored.
    """
    key = ", ".join(["s.ts", *(f's.{name} collate "C"' for name in target.key[1:])])
    counted = ", ".join(map(quoted, target.form.columns))
    return f"""with new as (
    insert into {target.name} ({target.column_list})
    select s.* from {source} order by {key}, {", ".join(places)}
    on conflict ({_list(target.key)}) do nothing returning num_nonnulls({counted}) as readings)
select array[count(*), coalesce(sum(readings), 0)]::int8[] from new"""  # noqa: S608


def _insert_rest(target: ColumnTarget, readings: Target, places: Sequence[str], source: str) -> str:
    """Return the INSERT into `readings` of each value that the row of its moment has not.

    The row is looked for with LIMIT 1: else a table that was never analyzed is read in full.
    """
    form = target.form
    pairs = list(zip(form.columns, places, strict=True))
    same = " and ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in target.key)
    values = ", ".join(
        f"({metric_in_sql(form.measurement, column)}, s.{place}, t.{quoted(column)})"
        for column, place in pairs
    )
    staged = ", ".join(f"s.{place}" for place in places)
    stored = ", ".join(f"t.{quoted(column)}" for column in form.columns)
    return f"""with new as (
    insert into {readings.name} ({readings.column_list})
    select s.ts, s.device_id, v.metric, v.value from {source}
    left join lateral (select {stored} from {target.name} t where {same} limit 1) t on true
    cross join lateral (values {values}) v (metric, value, stored)
    where row({staged}) is distinct from row({stored})
      and v.value is not null and v.value is distinct from v.stored
    order by s.ts, s.device_id collate "C", v.metric collate "C", v.value
    on conflict ({readings.column_list}) do nothing returning 1)
select count(*) from new"""  # noqa: S608


def _insert_like_stored(target: ColumnTarget) -> str:
    """Return the INSERT of a row like one of the table, a microsecond later, or of our own."""
    columns = ", ".join(map(quoted, target.columns[1:]))
    ours = [*("'iot-ingest'", "'try'")[: len(target.key) - 1], "1", *["null"] * 99]
    return f"""insert into {target.name} ({target.column_list})
select * from ((select ts + interval '1 microsecond', {columns} from {target.name} limit 1)
               union all (select now(), {", ".join(ours[: len(target.columns) - 1])}
                          where not exists (select from {target.name}))) as r
on conflict ({_list(target.key)}) do nothing"""  # noqa: S608


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))
