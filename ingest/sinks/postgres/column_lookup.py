"""Reads declared tables for the page: the same questions that lookup.py asks of `readings`.

A row has a column for each metric. Here it becomes readings: `ts_us`, `device_id`, `metric` and
`value`, with the names that they were posted with.
Promises: a table or a column that is not there yet has no readings, and is no error.
Does not: need the index for devices. Without it, only the newest rows of a table are searched for
the last values of devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from ingest.model.tables import ColumnTable, Tables, metric_of
from ingest.sinks.postgres.connection import Connection, Record
from ingest.sinks.postgres.schema import TargetTable, literal, quoted

RECENT_ROWS = 20_000  # newest rows, searched for last values without the index: some 10 ms
US = "(extract(epoch from {}) * 1000000)::int8 as ts_us"
SERIES_MAX = 200  # of one device
_SPAN = ("coalesce($3::timestamptz, '-infinity')", "coalesce($4::timestamptz, 'infinity')")
_EVER = ("'-infinity'::timestamptz", "'infinity'::timestamptz")
# Which columns a table has, and whether it has the index for devices.
_THERE = """
select t.name, array_agg(a.attname::text) as columns, exists (
    select from pg_index i where i.indrelid = to_regclass(t.name) and i.indisvalid
      and i.indpred is null and starts_with((
        select string_agg(f.attname, ',' order by n) || ',' from generate_series(0, 2) n
        join pg_attribute f on f.attrelid = i.indrelid and f.attnum = i.indkey[n]
      ), t.key || ',')) as by_device
from unnest($1::text[], $2::text[]) t (name, key)
join pg_attribute a on a.attrelid = to_regclass(t.name) and a.attnum > 0 and not a.attisdropped
group by t.name, t.key"""

Row = Record | dict[str, Any]  # a reading, by the names of KEY, but with `ts_us`
Span = tuple[datetime | None, datetime | None]


class PresentTable(NamedTuple):
    """A declared table that is there: its name in SQL, and those of its columns that are there."""

    table: ColumnTable
    name: str
    columns: tuple[str, ...]
    by_device: bool  # it has an index of the columns of `by`

    @property
    def by(self) -> tuple[str, ...]:
        """The columns by which the rows of a device are found."""
        return _by(self.table)

    @property
    def series(self) -> str:
        """The series of a row r, in SQL."""
        return "r.series" if self.table.measurement else "''::text"

    @property
    def fields(self) -> str:
        """What `readings_of` needs of a row r, in SQL."""
        columns = ", ".join(f"r.{quoted(each)}" for each in self.columns)
        return f"{US.format('r.ts')}, r.device_id, {self.series}, {columns}"

    def readings_of(self, rows: Sequence[Record]) -> Iterator[Row]:
        """Yield all readings of some rows."""
        for ts_us, device_id, series, *values in rows:
            for column, value in zip(self.columns, values, strict=True):
                if value is not None:
                    metric = metric_of(self.table.measurement, column, series)
                    names = ("ts_us", "device_id", "metric", "value")
                    yield dict(zip(names, (ts_us, device_id, metric, value), strict=True))

    def within(self, device: str, series: str, span: tuple[str, str]) -> tuple[str, str]:
        """Return a condition for the rows r of a device, and a series, in a time; and their order.

        Rows are compared as a whole, so that only the index for devices fits: see lookup.py.
        """
        if not self.by_device:
            also = f" and r.series = {series}" if self.table.measurement else ""
            rows = f"r.device_id = {device}{also} and r.ts >= {span[0]} and r.ts < {span[1]}"
            return rows, "r.ts desc"
        columns = ", ".join(f"r.{each}" for each in self.by)
        begin = ", ".join((device, series)[: len(self.by) - 1])
        rows = f"({columns}) >= ({begin}, {span[0]}) and ({columns}) < ({begin}, {span[1]})"
        return rows, ", ".join(f"r.{each} desc" for each in self.by)

    def newest_of(self, device: str, span: tuple[str, str], limit: str) -> str:
        """Return the SELECT of the newest rows of a device in a time, of all series."""
        if self.table.measurement and not self.by_device:
            return f"""select * from {self.name} r where r.device_id = {device}
    and r.ts >= {span[0]} and r.ts < {span[1]} order by r.ts desc limit {limit}"""  # noqa: S608
        rows, order = self.within(device, "m.series", span)
        newest = f"select * from {self.name} r where {rows} order by {order} limit {limit}"  # noqa: S608
        if not self.table.measurement:
            return newest
        return f"""select l.* from (
    with recursive n (series) as (
        (select r.series from {self.name} r where r.device_id = {device} order by 1 limit 1)
        union all
        select (select r.series from {self.name} r where r.device_id = {device}
                and r.series > n.series order by 1 limit 1) from n where n.series is not null)
    select series from n where series is not null limit {SERIES_MAX}) m
cross join lateral ({newest}) l order by l.ts desc limit {limit}"""  # noqa: S608


def _by(table: ColumnTable) -> tuple[str, ...]:
    return ("device_id", "series", "ts") if table.measurement else ("device_id", "ts")


class ColumnLookup:
    """Asks the declared tables. Call `look` before each question: an operator may change them.

    `there` are those that it has found.
    """

    def __init__(self, tables: Tables) -> None:
        self.there: list[PresentTable] = []
        self._tables = tables

    async def look(self, connection: Connection, schema: str) -> None:
        """Find the tables that are there; `schema` is that of `readings`."""
        if not self._tables:
            return
        by_name = {TargetTable(schema, each.name).name: each for each in self._tables.all}
        keys = [",".join(_by(each)) for each in by_name.values()]
        there = [
            PresentTable(
                table := by_name[row["name"]],
                row["name"],
                tuple(each for each in table.columns if each in row["columns"]),
                row["by_device"],
            )
            for row in await connection.fetch(_THERE, list(by_name), keys)
        ]
        self.there = [each for each in there if each.columns]

    async def newest(self, connection: Connection, count: int) -> list[Row]:
        """Return the newest readings: at least `count`, or all."""
        found = list[Row]()
        for each in self.there:
            question = f"select {each.fields} from {each.name} r order by r.ts desc limit $1"  # noqa: S608
            found += each.readings_of(await connection.fetch(question, count))
        return found

    async def of_device(
        self, connection: Connection, device_id: str, count: int, span: Span
    ) -> list[Row]:
        """Return the newest readings of a device within a time: at least `count`, or all."""
        found = list[Row]()
        for each in self.there:
            question = f"select {each.fields} from ({each.newest_of('$1', _SPAN, '$2')}) r"  # noqa: S608
            rows = await connection.fetch(question, device_id, count, *span)
            found += each.readings_of(rows)
        return found

    async def of_metric(
        self, connection: Connection, device_id: str, metric: str, count: int, span: Span
    ) -> list[Row]:
        """Return the newest `count` readings of a device and metric within a time."""
        rows, order = self.rows_of(metric)
        if not rows:
            return []
        question = f"""select {US.format("ts")}, $1::text as device_id, $5::text as metric, value
from ({rows} order by {order} limit $2) r"""  # noqa: S608
        return list(await connection.fetch(question, device_id, count, *span, metric))

    async def metrics(self, connection: Connection, device_id: str, rows_max: int) -> set[str]:
        """Return the metrics of the newest rows of a device."""
        found = set[str]()
        for each in self.there:
            have = ", ".join(f"bool_or(r.{quoted(name)} is not null)" for name in each.columns)
            newest = each.newest_of("$1", _EVER, "$2")
            question = f"select {each.series}, {have} from ({newest}) r group by 1"  # noqa: S608
            for series, *has in await connection.fetch(question, device_id, rows_max):
                found |= {
                    metric_of(each.table.measurement, column, series)
                    for column, is_there in zip(each.columns, has, strict=True)
                    if is_there
                }
        return found

    def rows_of(self, metric: str) -> tuple[str, str]:
        """Return the SELECT of ts and value of a device ($1) in a time ($3, $4), and its order.

        Both are empty if no table has the metric.
        """
        home = self._tables.home(metric)
        for each in self.there:
            if home is None or home.table != each.table:
                continue
            column = home.table.columns[home.column]
            if column in each.columns:
                value = f"r.{quoted(column)}"
                within, order = each.within("$1", literal(home.series), _SPAN)
                rows = f"""select r.ts, {value} as value from {each.name} r
where {within} and {value} is not null"""  # noqa: S608
                return rows, order
        return "", ""

    async def last_of(self, connection: Connection, device_ids: Sequence[str]) -> list[Row]:
        """Return the last reading in each table of each of these devices."""
        found = list[Row]()
        for each in self.there:
            if each.by_device:
                question = f"""select {each.fields} from unnest($1::text[]) d (name)
cross join lateral ({each.newest_of("d.name", _EVER, "1")}) r"""  # noqa: S608
            else:
                newest = f"select * from {each.name} s order by s.ts desc limit {RECENT_ROWS}"  # noqa: S608
                question = f"""select distinct on (r.device_id) {each.fields} from ({newest}) r
where r.device_id = any($1::text[]) order by r.device_id, r.ts desc"""  # noqa: S608
            for row in await connection.fetch(question, device_ids):
                found += islice(each.readings_of([row]), 1)
        return found
