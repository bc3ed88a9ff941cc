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
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from itertools import islice
from typing import NamedTuple

from ingest.model.block import (
    DEVICE_COLUMN,
    PG_EPOCH_US,
    decode_rows,
    row_offsets,
    rows_fault,
)
from ingest.model.reading import NAME_BYTES_MAX, Reading
from ingest.model.tables import ColumnTable, metric_of

MARK = b"\x00" + 9 * b"\xff"
_OF_MARK = 5 * b"\xff"  # found five times as fast as the whole, and seldom in plain rows
COLUMNS_MAX = 100  # of a table: a row with one value then has some 450 bytes

_SIZES = struct.Struct(">IIII")
_SECTION_BYTES = len(MARK) + _SIZES.size
SIZE = struct.Struct(">i")
ROW_HEAD = struct.Struct(">hiq")
CELL = struct.Struct(">id")
NULL = SIZE.pack(-1)
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


class Cells(NamedTuple):
    """One row of a declared table. `values[i]` is that of column i, or None."""

    ts_us: int
    device_id: str
    series: str
    values: list[float | None]


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
        data, size_of, offsets, end = self.tuples, SIZE.unpack_from, [0], 0
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
        counts = self._replace(tuples=data).counts()
        return section(self.form.head, data, len(counts), sum(counts))

    def head(self, start: int, size_bytes: int) -> bytes:
        """Return so many bytes from a row on, as they are for `first_readings`."""
        data = self.tuples[start : start + size_bytes]
        return data if self.form is None else section(self.form.head, data, 0, 0)

    def counts(self) -> list[int]:
        """Return how many readings each row has."""
        if self.form is None:
            return [1] * (len(self.offsets()) - 1)
        return [len(each) for each in self._values()]

    def times_us(self) -> list[int]:
        """Return the time of each row in Unix microseconds."""
        at = _TIME.unpack_from
        return [at(self.tuples, row + _TIME_AT)[0] + PG_EPOCH_US for row in self.offsets()[:-1]]

    def cells(self) -> Iterator[Cells]:
        """Yield the rows of a section. Slow, as `decode_rows`."""
        form, data, at = self.form, self.tuples, 0
        assert form is not None, "a section has a form"
        while at < len(data):
            _, _, ts_pg_us = ROW_HEAD.unpack_from(data, at)
            at += ROW_HEAD.size
            names = []
            for _ in range(form.fixed_columns - 1):
                (size,) = SIZE.unpack_from(data, at)
                names.append(data[at + 4 : at + 4 + size].decode())
                at += 4 + size
            values = list[float | None]()
            for _ in form.columns:
                (size,) = SIZE.unpack_from(data, at)
                values.append(CELL.unpack_from(data, at)[1] if size > 0 else None)
                at += 4 + max(0, size)
            series = names[1] if form.measurement else ""
            yield Cells(ts_pg_us + PG_EPOCH_US, names[0], series, values)

    def _values(self) -> Iterator[list[Reading]]:
        """Yield the readings of each row of a section."""
        form = self.form
        assert form is not None, "a section has a form"
        for ts_us, device_id, series, values in self.cells():
            yield [
                Reading(ts_us, device_id, form.metric(column, series), value)
                for column, value in enumerate(values)
                if value is not None
            ]

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
    names = (form.fixed_columns - 1) * (SIZE.size + NAME_BYTES_MAX)
    row = ROW_HEAD.size + names + SIZE.size * len(form.columns) + _TIME.size
    return _SECTION_BYTES + len(form.head) + row


def section(head: bytes, data: bytes, rows: int, readings: int) -> bytes:
    """Return a section."""
    return b"".join((MARK, _SIZES.pack(len(head), len(data), rows, readings), head, data))


def has_sections(tuples: bytes) -> bool:
    """Whether not all of these rows are plain ones. Some 4 ns for each plain row."""
    return _OF_MARK in tuples and MARK in tuples


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
        if ROW_HEAD.unpack_from(data, at)[:2] != (columns, 8):
            return "its bytes are no rows of a table"
        at += ROW_HEAD.size
        for least in (1, 0)[: form.fixed_columns - 1]:  # a device, a series
            (size,) = SIZE.unpack_from(data, at)
            if not least <= size <= NAME_BYTES_MAX:
                return "a name in it has a wrong size"
            at += 4 + size
        end = _cells_end(data, at, len(form.columns))
        values = (end - at - 4 * len(form.columns)) // 8
        if not values:
            return "a row in it has no value"
        at, rows, readings = end, rows + 1, readings + values
    is_right = rows > 0 and (at, rows, readings) == (len(data), run.rows, run.readings)
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
