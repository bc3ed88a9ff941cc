r"""Rows of declared tables as bytes, beside the rows of `readings`: the `tuples` of a block.

The tuples of a block are runs, one after the other. A run is plain rows of `readings` (block.py),
or a section: rows of one declared table. So the runs of several posts are put together as they are.
A section tells table and columns: journal, stream and writer need no declarations. Big-endian:

    section, 26 + h + n   mark 00 ff*9 | h u32 | n u32 | rows u32 | readings u32 | head | rows
    head, h bytes         table \0 measurement \0 column \0 column ..
    row                   int16 columns | int32 8, int64 microseconds since 2000-01-01
                          | int32 n, device_id | int32 n, series (if there is a measurement)
                          | for each column of the head: int32 8, float64; or int32 -1: no value

A row is one moment of a device, as PostgreSQL's binary COPY has it. The mark stands in no plain
row: more than eight bytes ff never follow each other there, since names are UTF-8.
The readings of a block are numbered in the order of its runs, of their rows, and of their columns.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from itertools import islice
from typing import NamedTuple

from ingest.model.block import (
    DEVICE_COLUMN,
    PG_EPOCH_US,
    decode_rows,
    encode_rows,
    names_between,
    row_offsets,
    rows_fault,
)
from ingest.model.reading import NAME_BYTES_MAX, Reading
from ingest.model.tables import ColumnTable, Tables, metric_of

MARK = b"\x00" + 9 * b"\xff"
COLUMNS_MAX = 100  # of a table: a row with one value then has some 450 bytes

_SIZES = struct.Struct(">IIII")
_SECTION_BYTES = len(MARK) + _SIZES.size
_SIZE = struct.Struct(">i")
_ROW_HEAD = struct.Struct(">hiq")
_CELL = struct.Struct(">id")
_NULL = _SIZE.pack(-1)
_TIME = struct.Struct(">q")
_TIME_AT = 6  # in a row, as in a plain one


class TableForm(NamedTuple):
    """What the head of a section tells: the table, and its columns of values."""

    table: str
    measurement: str  # "": the columns are metrics, and there is no series
    columns: tuple[str, ...]

    @property
    def head(self) -> bytes:
        """The head of a section with rows of this form."""
        return "\0".join((self.table, self.measurement, *self.columns)).encode()

    @property
    def fixed_columns(self) -> int:
        """The number of columns before those of values: the key."""
        return 3 if self.measurement else 2

    def metric(self, column: int, series: str) -> str:
        """Return the metric of a value."""
        return metric_of(self.measurement, self.columns[column], series)


@lru_cache(1024)
def form_of(head: bytes) -> TableForm:
    """Return the form that a head tells."""
    table, measurement, *columns = head.decode().split("\0")
    return TableForm(table, measurement, tuple(columns))


def form_of_table(table: ColumnTable) -> TableForm:
    """Return the form of all rows of a declared table."""
    return TableForm(table.name, table.measurement, table.columns)


class RowRun(NamedTuple):
    """Some rows of one table. `form` is None for plain rows; they are then not counted (-1)."""

    form: TableForm | None
    tuples: bytes
    rows: int
    readings: int

    def offsets(self) -> list[int]:
        """Return the offset of each row, and the end of the last one: rows + 1 numbers."""
        if self.form is None:
            return row_offsets(self.tuples)
        names, columns = self.form.fixed_columns - 1, len(self.form.columns)
        data, size_of, offsets, end = self.tuples, _SIZE.unpack_from, [0], 0
        while end < len(data):
            end += DEVICE_COLUMN
            for _ in range(names):
                end += 4 + size_of(data, end)[0]
            end = _cells_end(data, end, columns)
            offsets.append(end)
        return offsets

    def part(self, start: int, end: int) -> bytes:
        """Return the rows between two offsets as tuples of a block."""
        data = self.tuples[start:end]
        if self.form is None:
            return data
        return section(self.form, data, self._replace(tuples=data).counts())

    def head(self, start: int, size_bytes: int) -> bytes:
        """Return so many bytes from a row on, as they are for `first_readings`."""
        data = self.tuples[start : start + size_bytes]
        return data if self.form is None else section(self.form, data, ())

    def counts(self) -> list[int]:
        """Return how many readings each row has."""
        if self.form is None:
            return [1] * (len(self.offsets()) - 1)
        return [len(each) for each in self._values()]

    def times_us(self) -> list[int]:
        """Return the time of each row in Unix microseconds."""
        at = _TIME.unpack_from
        return [at(self.tuples, row + _TIME_AT)[0] + PG_EPOCH_US for row in self.offsets()[:-1]]

    def _values(self) -> Iterator[list[Reading]]:
        """Yield the readings of each row of a section. Slow, as `decode_rows`."""
        form, data, at = self.form, self.tuples, 0
        assert form is not None, "a section has a form"
        while at < len(data):
            _, _, ts_pg_us = _ROW_HEAD.unpack_from(data, at)
            at += _ROW_HEAD.size
            names = []
            for _ in range(form.fixed_columns - 1):
                (size,) = _SIZE.unpack_from(data, at)
                names.append(data[at + 4 : at + 4 + size].decode())
                at += 4 + size
            device_id, series = names[0], names[1] if form.measurement else ""
            row = []
            for column in range(len(form.columns)):
                (size,) = _SIZE.unpack_from(data, at)
                if size > 0:
                    _, value = _CELL.unpack_from(data, at)
                    metric = form.metric(column, series)
                    row.append(Reading(ts_pg_us + PG_EPOCH_US, device_id, metric, value))
                at += 4 + max(0, size)
            yield row

    def decode(self) -> Iterator[Reading]:
        """Yield all readings, in order. Slow, not for the hot path: some 2 us each."""
        if self.form is None:
            yield from decode_rows(self.tuples)
            return
        for row in self._values():
            yield from row


def reading_bytes_max(table: ColumnTable) -> int:
    """Return the most bytes of a reading in a block: a row of its own, in a section of its own."""
    form = form_of_table(table)
    names = (form.fixed_columns - 1) * (_SIZE.size + NAME_BYTES_MAX)
    row = _ROW_HEAD.size + names + _SIZE.size * len(form.columns) + _TIME.size
    return _SECTION_BYTES + len(form.head) + row


def section(form: TableForm, rows: bytes, counts: Sequence[int]) -> bytes:
    """Return a section; `counts` has the number of readings of each row."""
    head = form.head
    sizes = _SIZES.pack(len(head), len(rows), len(counts), sum(counts))
    return b"".join((MARK, sizes, head, rows))


def runs(tuples: bytes) -> Iterator[RowRun]:
    """Yield the runs of a block's tuples, in order. Without a section: one run, at no cost."""
    at = 0
    while at < len(tuples):
        found = tuples.find(MARK, at)
        if found < 0:
            yield RowRun(None, tuples[at:], -1, -1)
            return
        if found > at:
            yield RowRun(None, tuples[at:found], -1, -1)
        h, n, rows, readings = _SIZES.unpack_from(tuples, found + len(MARK))
        at = found + _SECTION_BYTES
        form, at = form_of(tuples[at : at + h]), at + h
        yield RowRun(form, tuples[at : at + n], rows, readings)
        at += n


def encode_placed(
    times_pg_us: Sequence[int], names: Sequence[bytes], values: Sequence[float], tables: Tables
) -> tuple[bytes, list[int] | None]:
    """Encode readings, each in the row of its home; return the tuples and the order of readings.

    The arguments are those of `encode_rows`. `order[i]` is the index of the reading that has become
    number i; None: all are plain rows, as they came. Values of one device, series and time that
    come one after the other, or with readings of other moments between them, become one row if no
    column has a value twice. For the careful way: some 2 us a reading.
    """
    plain: list[int] = []
    moments: dict[ColumnTable, dict[tuple[int, bytes, str], list[dict[int, int]]]] = {}
    for reading, (ts_pg_us, name) in enumerate(zip(times_pg_us, names, strict=True)):
        end = 4 + _SIZE.unpack_from(name)[0]  # of the device
        home = tables.home(name[end + 4 : -4].decode())
        if home is None or ts_pg_us + PG_EPOCH_US < home.since_us:
            plain.append(reading)
            continue
        rows = moments.setdefault(home.table, {}).setdefault(
            (ts_pg_us, name[:end], home.series), [{}]
        )
        if home.column in rows[-1]:
            rows.append({})
        rows[-1][home.column] = reading
    if not moments:
        return encode_rows(times_pg_us, names, values), None
    parts, order = list[bytes](), list(plain)
    if plain:
        columns = ([column[each] for each in plain] for column in (times_pg_us, names, values))
        parts.append(encode_rows(*columns))  # type: ignore[arg-type]
    for table, by_moment in moments.items():
        cells, counts = list[bytes](), list[int]()
        form = form_of_table(table)
        for (ts_pg_us, device, series), rows in by_moment.items():
            before = _ROW_HEAD.pack(form.fixed_columns + len(form.columns), 8, ts_pg_us) + device
            if form.measurement:
                text = series.encode()
                before += _SIZE.pack(len(text)) + text
            for row in rows:
                cells.append(before)
                cells += [
                    _CELL.pack(8, values[row[column]]) if column in row else _NULL
                    for column in range(len(form.columns))
                ]
                counts.append(len(row))
                order += [row[column] for column in sorted(row)]
        parts.append(section(form, b"".join(cells), counts))
    return b"".join(parts), order


def place_readings(readings: Sequence[Reading], tables: Tables) -> tuple[bytes, Sequence[int]]:
    """Encode readings as `encode_placed` does; return the tuples and the order of readings.

    So readings that are read back one by one, as dead letters, are put into rows again.
    """
    tuples, order = encode_placed(
        [each.ts_us - PG_EPOCH_US for each in readings],
        [names_between(each.device_id, each.metric) for each in readings],
        [each.value for each in readings],
        tables,
    )
    return tuples, range(len(readings)) if order is None else order


def decode_readings(tuples: bytes) -> Iterator[Reading]:
    """Yield the readings of a block, in order. Slow, not for the hot path: some 2 us each."""
    for run in runs(tuples):
        yield from run.decode()


def first_readings(head: bytes, readings_max: int) -> list[Reading]:
    """Decode the first readings of a block, at most so many; `head` is how its tuples begin."""
    found: list[Reading] = []
    with suppress(struct.error, UnicodeDecodeError):  # the bytes end within a row
        found.extend(islice(decode_readings(head), readings_max))
    return found


def readings_fault(tuples: bytes, readings: int) -> str:
    """Return why `tuples` are not so many readings, or an empty string. As `rows_fault`."""
    plain_fault = rows_fault(tuples, readings)
    if not plain_fault or MARK not in tuples:  # in this order: to search them takes 16 ns a row
        return plain_fault
    counted = 0
    try:
        for run in runs(tuples):
            if run.form is None:
                rows = len(run.offsets()) - 1
                fault, counted = rows_fault(run.tuples, rows), counted + rows
            else:
                fault, counted = _section_fault(run), counted + run.readings
            if fault:
                return fault
    except (struct.error, UnicodeDecodeError, ValueError):
        return "its bytes are no rows of a table"
    return "" if counted == readings else f"its bytes are not {readings} readings"


def _section_fault(run: RowRun) -> str:
    form, data = run.form, run.tuples
    assert form is not None, "a section has a form"
    columns = form.fixed_columns + len(form.columns)
    if not form.columns or not form.table:
        return "a section of it names no table, or no column"
    at = rows = readings = 0
    while at < len(data):
        if _ROW_HEAD.unpack_from(data, at)[:2] != (columns, 8):
            return "its bytes are no rows of a table"
        at += _ROW_HEAD.size
        for least in (1, 0)[: form.fixed_columns - 1]:  # a device, a series
            (size,) = _SIZE.unpack_from(data, at)
            if not least <= size <= NAME_BYTES_MAX:
                return "a name in it has a wrong size"
            at += 4 + size
        end = _cells_end(data, at, len(form.columns))
        values = (end - at - 4 * len(form.columns)) // 8
        if not values:
            return "a row in it has no value"
        at, rows, readings = end, rows + 1, readings + values
    is_right = (at, rows, readings) == (len(data), run.rows, run.readings)
    return "" if is_right else "its bytes are not as many rows as it says"


def _cells_end(data: bytes, at: int, columns: int) -> int:
    """Return where the values of a row end that begin at `at`. Raises ValueError."""
    cells = _cells(columns).match(data, at)
    if cells is None:
        raise ValueError("these are not so many values")
    return cells.end()


# To look at each cell in Python takes 100 ns; a row may have a hundred, and one value.
@cache
def _cells(columns: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:\0\0\0\x08.{8}|\xff{4}){%d}" % columns, re.DOTALL)
