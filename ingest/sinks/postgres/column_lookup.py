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
from ingest.sinks.postgres.schema import TargetTable, quoted

RECENT_ROWS = 20_000  # newest rows, searched for last values without the index: some 10 ms
US = "(extract(epoch from {}) * 1000000)::int8 as ts_us"
WITHIN = (
    "ts >= coalesce($3::timestamptz, '-infinity') and ts < coalesce($4::timestamptz, 'infinity')"
)
# Which columns a table has, and whether it has an index that begins with the device.
_THERE = """
select t.name, array_agg(a.attname::text) as columns, exists (
    select from pg_index i join pg_attribute f on f.attrelid = i.indrelid and f.attnum = i.indkey[0]
    where i.indrelid = to_regclass(t.name) and i.indisvalid and i.indpred is null
      and f.attname = 'device_id') as by_device
from unnest($1::text[]) t (name)
join pg_attribute a on a.attrelid = to_regclass(t.name) and a.attnum > 0 and not a.attisdropped
group by t.name"""

Row = Record | dict[str, Any]  # a reading, by the names of KEY, but with `ts_us`
Span = tuple[datetime | None, datetime | None]


class PresentTable(NamedTuple):
    """A declared table that is there: its name in SQL, and those of its columns that are there."""

    table: ColumnTable
    name: str
    columns: tuple[str, ...]
    by_device: bool  # an index begins with the device

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
        found = await connection.fetch(_THERE, list(by_name))
        there = [
            PresentTable(
                table := by_name[row["name"]],
                row["name"],
                tuple(each for each in table.columns if each in row["columns"]),
                row["by_device"],
            )
            for row in found
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
            question = f"""select {each.fields} from {each.name} r
where r.device_id = $1 and {WITHIN} order by r.ts desc limit $2"""  # noqa: S608
            rows = await connection.fetch(question, device_id, count, *span)
            found += each.readings_of(rows)
        return found

    async def of_metric(
        self, connection: Connection, device_id: str, metric: str, count: int, span: Span
    ) -> list[Row]:
        """Return the newest `count` readings of a device and metric within a time."""
        values, series = self.values(metric, "$5")
        if not values:
            return []
        question = f"""select {US.format("ts")}, $1::text as device_id, $6::text as metric, value
from ({values}) r order by r.ts desc limit $2"""  # noqa: S608
        return list(await connection.fetch(question, device_id, count, *span, series, metric))

    async def metrics(self, connection: Connection, device_id: str, rows_max: int) -> set[str]:
        """Return the metrics of the newest rows of a device."""
        found = set[str]()
        for each in self.there:
            have = ", ".join(f"bool_or(r.{quoted(name)} is not null)" for name in each.columns)
            question = f"""select {each.series}, {have} from (
    select * from {each.name} s where s.device_id = $1 order by s.ts desc limit $2
) r group by 1"""  # noqa: S608
            for series, *has in await connection.fetch(question, device_id, rows_max):
                found |= {
                    metric_of(each.table.measurement, column, series)
                    for column, is_there in zip(each.columns, has, strict=True)
                    if is_there
                }
        return found

    def values(self, metric: str, series: str) -> tuple[str, str]:
        """Return the SELECT of ts and value of a device ($1) within a time ($3, $4), and a series.

        `series` is the parameter for that series in it. Both are empty if no table has the metric.
        """
        home = self._tables.home(metric)
        for each in self.there:
            if home is not None and home.table == each.table:
                column = home.table.columns[home.column]
                if column in each.columns:
                    value = f"r.{quoted(column)}"
                    rows = f"""select ts, {value} as value from {each.name} r
    where r.device_id = $1 and {value} is not null and {each.series} = {series} and {WITHIN}"""  # noqa: S608
                    return rows, home.series
        return "", ""

    async def last_of(self, connection: Connection, device_ids: Sequence[str]) -> list[Row]:
        """Return the last reading in each table of each of these devices."""
        found = list[Row]()
        for each in self.there:
            newest = f"select * from {each.name} s order by s.ts desc limit {RECENT_ROWS}"  # noqa: S608
            question = f"""select distinct on (r.device_id) {each.fields} from ({newest}) r
where r.device_id = any($1::text[]) order by r.device_id, r.ts desc"""  # noqa: S608
            if each.by_device:
                question = f"""select {each.fields} from unnest($1::text[]) d (name)
cross join lateral (select * from {each.name} s where s.device_id = d.name
                    order by s.ts desc limit 1) r"""  # noqa: S608
            for row in await connection.fetch(question, device_ids):
                found += islice(each.readings_of([row]), 1)
        return found
