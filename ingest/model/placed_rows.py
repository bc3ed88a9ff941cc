"""From readings to the rows of their homes: rows of `readings`, and rows of declared tables.

`encode_placed` asks for the home of each reading. Who knows it for many readings that are alike
encodes them together, with a RowForm. What the bytes are: moments.py.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

from ingest.model.block import PG_EPOCH_US, device_needle, encode_rows, names_between
from ingest.model.moments import CELL, NULL, ROW_HEAD, SIZE, form_of_table, section
from ingest.model.reading import Reading
from ingest.model.tables import ColumnHome, ColumnTable, Tables

ROW_FORMS_KEPT_MAX = 1_000  # some 15 kB each with COLUMNS_MAX
TOGETHER_MAX = 500  # unplaced readings are encoded together, or twice as many: 1 ms
RUN_VALUES_MAX = 64  # packed in one call, unless a row has more

_ROW_BEGIN = struct.Struct(">hi")  # of ROW_HEAD
_EIGHT = SIZE.pack(8)


class RowForm:
    """Rows of a table that have values in the same columns: `columns` are their places, in order.

    `names` of a row are what it has of the device and then, if the table is of a measurement, of
    the series: each as `device_needle` writes it.
    """

    def __init__(self, table: ColumnTable, columns: tuple[int, ...]) -> None:
        form = form_of_table(table)
        self.table = table
        self.columns = columns
        self.head = form.head
        self._begin = _ROW_BEGIN.pack(form.fixed_columns + len(table.columns), 8)
        places = pairwise((-1, *columns))
        before = [NULL * (column - last - 1) + _EIGHT for last, column in places]
        after = NULL * (len(table.columns) - 1 - columns[-1])
        # What stands before each value, and a place for it.
        self._cells: list[Any] = [*chain.from_iterable((text, 0.0) for text in before), after]
        self.cells_format = "".join(f"{len(text)}sd" for text in before) + f"{len(after)}s"

    def rows(
        self,
        times_pg_us: Sequence[int],
        names: Sequence[bytes],
        columns: Sequence[Sequence[float]],
    ) -> bytes:
        """Encode rows, column by column."""
        width = 3 + len(self._cells)
        cells = [self._begin, 0, b"", *self._cells] * len(names)  # row after row
        cells[1::width] = times_pg_us
        cells[2::width] = names
        for place, column in enumerate(columns):
            cells[4 + 2 * place :: width] = column
        sizes = [*map(len, names)]
        if len({*sizes}) > 1:
            return b"".join(
                [
                    _packer(self, size, 1)(*cells[row * width : (row + 1) * width])
                    for row, size in enumerate(sizes)
                ]
            )
        packed, at, rows_max = list[bytes](), 0, max(1, RUN_VALUES_MAX // len(columns))
        while at < len(cells):
            rows = min(rows_max, 1 << ((len(cells) - at) // width).bit_length() - 1)
            packed.append(_packer(self, sizes[0], rows)(*cells[at : at + rows * width]))
            at += rows * width
        return b"".join(packed)

    def section(self, ts_pg_us: int, names: bytes, values: Sequence[float]) -> bytes:
        """Encode one row as a section."""
        cells = [*self._cells]
        cells[1::2] = values
        row = _packer(self, len(names), 1)(self._begin, ts_pg_us, names, *cells)
        return section(self.head, row, 1, len(self.columns))


@lru_cache(512)  # some 7 kB each: of RUN_VALUES_MAX values, or of COLUMNS_MAX in one row
def _packer(form: RowForm, names_bytes: int, rows: int) -> Callable[..., bytes]:
    """Return what packs some rows whose names have this size."""
    row = f"{_ROW_BEGIN.size}sq{names_bytes}s{form.cells_format}"
    return struct.Struct(">" + row * rows).pack


_ROW_FORMS: dict[tuple[str, tuple[int, ...]], RowForm] = {}


def row_form(table: ColumnTable, columns: tuple[int, ...]) -> RowForm:
    """Return the form of rows with values in these columns."""
    key = table.name, columns
    form = _ROW_FORMS.get(key)
    if form is None or form.table is not table:
        if len(_ROW_FORMS) >= ROW_FORMS_KEPT_MAX:
            _ROW_FORMS.clear()
        form = _ROW_FORMS[key] = RowForm(table, columns)
    return form


class Unplaced:
    """Readings that are not encoded yet, and whose they are."""

    def __init__(self) -> None:
        self.times_pg_us: list[int] = []
        self.names: list[bytes] = []
        self.values: list[float] = []
        self.owners: list[int] = []

    def add(
        self,
        times_pg_us: Iterable[int],
        names: Iterable[bytes],
        values: Iterable[float],
        owners: Iterable[int],
    ) -> None:
        """Add readings. The first three are as for `encode_rows`."""
        self.times_pg_us += times_pg_us
        self.names += names
        self.values += values
        self.owners += owners

    @property
    def are_many(self) -> bool:
        """Whether some of them are to be encoded before there are more."""
        return len(self.names) >= 2 * TOGETHER_MAX

    def encode(self, readings_max: int, tables: Tables) -> tuple[bytes, list[int], int]:
        """Take some of them, TOGETHER_MAX if there is no reason for more or less.

        Returns their tuples, the owner of each, and the newest time (Unix microseconds).
        """
        times = self.times_pg_us
        end, end_max = TOGETHER_MAX, min(2 * TOGETHER_MAX, readings_max, len(times))
        while end < end_max and times[end] == times[end - 1]:
            end += 1  # so that a moment becomes one row
        taken = slice(min(end, end_max))
        newest_us = max(times[taken]) + PG_EPOCH_US
        owners = self.owners[taken]
        tuples, order = encode_placed(times[taken], self.names[taken], self.values[taken], tables)
        for column in (self.times_pg_us, self.names, self.values, self.owners):
            del column[taken]
        return tuples, owners if order is None else [owners[each] for each in order], newest_us


class PlacedRows:
    """Readings that get their homes, and what they become: rows of `readings`, and of tables.

    `owners` say of each reading whose it is: they come back in the order of the encoded readings.
    """

    def __init__(self) -> None:
        self.plain = Unplaced()  # rows of `readings`
        # Of each table: the head of its section, its rows, their numbers, their owners.
        self._tables: dict[str, tuple[bytes, list[bytes], list[int], list[Sequence[int]]]] = {}

    def add(
        self,
        form: RowForm,
        times_pg_us: Sequence[int],
        names: Sequence[bytes],
        columns: Sequence[Sequence[float]],
        owners: Sequence[int],
    ) -> None:
        """Add rows of a table. The first ones are as for `RowForm.rows`."""
        of_table = self._tables.setdefault(form.table.name, (form.head, [], [], []))
        of_table[1].append(form.rows(times_pg_us, names, columns))
        of_table[2].append(len(names))
        of_table[3].append(owners)

    def encoded(self) -> tuple[bytes, Sequence[int]]:
        """Return the tuples of all that was added, and the owner of each reading."""
        parts, all_owners, plain = list[bytes](), list[Sequence[int]](), self.plain
        if plain.names:
            parts.append(encode_rows(plain.times_pg_us, plain.names, plain.values))
            all_owners.append(plain.owners)
        for head, rows, counts, owners in self._tables.values():
            readings = sum(map(len, owners))
            parts.append(section(head, b"".join(rows), sum(counts), readings))
            all_owners += owners
        if len(all_owners) == 1:
            return parts[0], all_owners[0]
        joined = array("L")
        for each in all_owners:
            joined.extend(each)
        return b"".join(parts), joined


def encode_placed(
    times_pg_us: Sequence[int], names: Sequence[bytes], values: Sequence[float], tables: Tables
) -> tuple[bytes, Sequence[int] | None]:
    """Encode readings, each in the row of its home; return the tuples and the order of readings.

    The arguments are those of `encode_rows`. `order[i]` is the index of the reading that has become
    number i; None: all are plain rows, as they came. Values of one device, series and time that
    come one after the other, or with readings of other moments between them, become one row if no
    column has a value twice. For the careful way: some 1 us a reading.
    """
    plain: list[int] = []
    homes: dict[bytes, ColumnHome | None] = {}
    moments: dict[str, dict[tuple[int, bytes, str], list[dict[int, int]]]] = {}
    declared: dict[str, ColumnTable] = {}
    for reading, (ts_pg_us, name) in enumerate(zip(times_pg_us, names, strict=True)):
        end = 4 + SIZE.unpack_from(name)[0]  # of the device
        metric = name[end + 4 : -4]
        if metric not in homes:
            homes[metric] = tables.home(metric.decode())
        home = homes[metric]
        if home is None or ts_pg_us + PG_EPOCH_US < home.since_us:
            plain.append(reading)
            continue
        table = home.table.name
        if table not in moments:
            moments[table], declared[table] = {}, home.table
        rows = moments[table].setdefault((ts_pg_us, name[:end], home.series), [{}])
        if home.column in rows[-1]:
            rows.append({})
        rows[-1][home.column] = reading
    if not moments:
        return encode_rows(times_pg_us, names, values), None
    parts, order = list[bytes](), [*plain]
    if plain:
        columns = ([column[each] for each in plain] for column in (times_pg_us, names, values))
        parts.append(encode_rows(*columns))  # type: ignore[arg-type]
    for of_table, by_moment in moments.items():
        form = form_of_table(declared[of_table])
        nulls, data, before = [NULL] * len(form.columns), list[bytes](), len(order)
        for (ts_pg_us, device, series), rows in by_moment.items():
            begin = ROW_HEAD.pack(form.fixed_columns + len(nulls), 8, ts_pg_us) + device
            if form.measurement:
                begin += device_needle(series)
            for row in rows:
                cells = [*nulls]
                for column, reading in row.items():
                    cells[column] = CELL.pack(8, values[reading])
                data.append(begin + b"".join(cells))
                order += [row[column] for column in sorted(row)]
        parts.append(section(form.head, b"".join(data), len(data), len(order) - before))
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
