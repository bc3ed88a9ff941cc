"""Sorts rows by device, metric, ts and value, and merges what was sorted. Memory is bounded.

The rows of one COPY become sorted runs in a folder, which are then merged. A run has RUN_ROWS rows,
or fewer if names are many and long. It is a stream of Arrow with lz4, which needs half of the CPU
of a Parquet file. Nobody reads it after a crash, so it is not synced.
Two rows that PostgreSQL's key calls equal stand side by side after sorting, and only the first one
is kept: zeros of both signs are equal, and so are all NaN. The order of values at one time is ours.
All calls block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.years.archive import files
from ingest.years.archive.arrow_rows import (
    NOTHING,
    SCHEMA,
    CopiedRows,
    Decoder,
    checksum_of,
    split_names,
)

Key = tuple[str, str, int, int]

RUN_ROWS = 524_288
_RUN_NAME_BYTES = 32 * 1024**2
_RUN_BATCH_ROWS = 4_096
MERGED_MAX = 64  # runs at once
_MERGED_ROWS = 262_144  # in memory, of all runs together
_PIECE_ROWS_MIN = 1_024
_SAMPLE_ROWS = 65_536  # of each run: whether values repeat
_NAN_BITS = 0x7FF8_0000_0000_0000
_UP = "ascending"


class Runs:
    """The rows of one COPY. `left_out` is the checksum of rows that equal one that is kept.

    `go_on` is called for each piece that is merged; it may end that by an error.
    """

    def __init__(self, folder: Path, decoder: Decoder, *, go_on: Callable[[], None]) -> None:
        self._folder = folder
        self._decoder = decoder
        self._go_on = go_on
        self._parts: list[CopiedRows] = []
        self._rows = self._name_bytes = 0
        self._count = 0
        self._runs: list[Path] = []
        self._sampled = self._different = 0
        self.left_out = NOTHING

    @property
    def values_repeat(self) -> bool:
        """Whether fewer than half of the values are different, by samples of all runs."""
        return 2 * self._different < self._sampled

    def add(self, data: bytes) -> None:
        """Take the next bytes of the COPY."""
        self._keep(self._decoder.rows_of(data))

    def end(self) -> None:
        """All bytes have come: write the last run."""
        self._keep(self._decoder.end())
        self._write()

    def _keep(self, part: CopiedRows | None) -> None:
        if part is None:
            return
        self._parts.append(part)
        self._rows += len(part.ts)
        self._name_bytes += part.names.dictionary.nbytes
        if self._rows >= RUN_ROWS or self._name_bytes >= _RUN_NAME_BYTES:
            self._write()

    def _write(self) -> None:
        if not self._parts:
            return
        parts, self._parts = self._parts, []
        self._rows = self._name_bytes = 0
        found = sort_columns(parts)
        values = parts[0].value.slice(0, _SAMPLE_ROWS)
        self._sampled += len(values)
        self._different += pc.count_distinct(values).as_py()
        parts.clear()
        self.left_out = self.left_out.plus(checksum_of(found.left_out))
        self._runs.append(self._write_run([found.rows]))

    def _write_run(self, pieces: Iterable[pa.Table]) -> Path:
        self._count += 1
        path = self._folder / f"run{self._count}"
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, SCHEMA, options=options) as stream,
        ):
            for piece in pieces:
                for batch in piece.combine_chunks().to_batches(max_chunksize=_RUN_BATCH_ROWS):
                    stream.write_batch(_with_own_names(batch))
        return path

    def merged(self, before: Sequence[Path]) -> Iterator[pa.Table]:
        """Yield the rows of the files `before` (consecutive, sorted) and of all runs, in order.

        Of equal rows that of `before` is kept.
        """
        while len(self._runs) > MERGED_MAX:
            some, self._runs = self._runs[:MERGED_MAX], self._runs[MERGED_MAX:]
            self._runs.append(self._write_run(self._merge(some)))
            for each in some:
                each.unlink()
        yield from self._merge(self._runs, before)

    def remove(self) -> None:
        """Remove the files of all runs."""
        for each in self._runs:
            each.unlink()

    def _merge(self, runs: Sequence[Path], before: Sequence[Path] = ()) -> Iterator[pa.Table]:
        rows = max(_PIECE_ROWS_MIN, _MERGED_ROWS // (len(runs) + 1))
        old = chain.from_iterable(files.read(each, rows) for each in before)
        for found in merge([old, *(_read_run(each, rows) for each in runs)]):
            self._go_on()
            self.left_out = self.left_out.plus(checksum_of(found.left_out))
            if found.rows.num_rows:
                yield found.rows


def _with_own_names(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the same rows with a dictionary of only their own names: few of the run's."""
    columns = list(batch.columns)
    for at, column in enumerate(columns):
        if pa.types.is_dictionary(column.type):
            used = column.indices.dictionary_encode()
            own = column.dictionary.take(used.dictionary)
            columns[at] = pa.DictionaryArray.from_arrays(used.indices, own)
    return pa.record_batch(columns, schema=SCHEMA)


def _read_run(path: Path, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a run, about so many at once."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file, options=options) as stream:
        waiting: list[pa.RecordBatch] = []
        count = 0
        for batch in stream:
            waiting.append(batch)
            count += batch.num_rows
            if count + _RUN_BATCH_ROWS > rows:
                yield pa.Table.from_batches(waiting)
                waiting, count = [], 0
        if waiting:
            yield pa.Table.from_batches(waiting)


class Sorted(NamedTuple):
    """Rows in order, each once; and those that were left out because an equal one is there."""

    rows: pa.Table
    left_out: pa.Table


def sort_columns(parts: Sequence[CopiedRows]) -> Sorted:
    """Sort rows as the server sent them. Some 300 ns a row."""
    ts = pa.concat_arrays([each.ts for each in parts])
    value = pa.concat_arrays([each.value for each in parts])
    names = pa.chunked_array([each.names for each in parts]).unify_dictionaries()
    codes = pa.concat_arrays([chunk.indices for chunk in names.chunks])
    devices, metrics = split_names(names.chunk(0).dictionary)
    order = pc.sort_indices(
        pa.record_batch({"device": devices, "metric": metrics}),
        sort_keys=[("device", _UP), ("metric", _UP)],
    )
    return _sort(ts, value, _inverse(order).take(codes), devices.take(order), metrics.take(order))


def sort_rows(rows: pa.Table) -> Sorted:
    """Sort rows with the columns of the archive. Of equal rows the first one is kept."""
    whole = rows.unify_dictionaries().combine_chunks()
    columns = [whole.column(place).chunk(0) for place in range(4)]
    ts, devices, metrics, value = columns
    device_order = pc.array_sort_indices(devices.dictionary)
    metric_order = pc.array_sort_indices(metrics.dictionary)
    width = pa.scalar(max(1, len(metric_order)), pa.int64())
    series = pc.add(
        pc.multiply(_inverse(device_order).take(devices.indices), width),
        _inverse(metric_order).take(metrics.indices),
    ).dictionary_encode()
    # Few numbers are left if they are numbered in order.
    order = pc.array_sort_indices(series.dictionary)
    numbers = series.dictionary.take(order)
    of_device = pc.divide(numbers, width)
    of_metric = pc.subtract(numbers, pc.multiply(of_device, width))
    return _sort(
        ts.view(pa.int64()),
        value,
        _inverse(order).take(series.indices),
        devices.dictionary.take(device_order).take(of_device),
        metrics.dictionary.take(metric_order).take(of_metric),
    )


def _inverse(order: pa.Array) -> pa.Array:
    """Return the place of each element in the order."""
    return pc.array_sort_indices(order).cast(pa.int64())


def _sort(
    ts: pa.Int64Array,
    value: pa.DoubleArray,
    series: pa.Int64Array,
    devices: pa.StringArray,
    metrics: pa.StringArray,
) -> Sorted:
    """Sort rows by series, ts, value. Element i of `devices` and `metrics` is of series i."""
    keys = pa.record_batch({"series": series, "ts": ts, "value": _comparable(value)})
    order = pc.sort_indices(keys, sort_keys=[(name, _UP) for name in keys.schema.names])
    keys = keys.take(order)
    same = _same_as_before(keys)
    series = keys.column("series")
    device_names, metric_names = devices.dictionary_encode(), metrics.dictionary_encode()
    rows = pa.Table.from_arrays(
        [
            keys.column("ts").view(SCHEMA.field("ts").type),
            _by_number(device_names, series),
            _by_number(metric_names, series),
            value.take(order),
        ],
        schema=SCHEMA,
    )
    if same is None:
        return Sorted(rows, rows.slice(0, 0))
    return Sorted(rows.filter(pc.invert(same)), rows.filter(same))


def _by_number(names: pa.DictionaryArray, numbers: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(names.indices.take(numbers), names.dictionary)


def _comparable(value: pa.DoubleArray) -> pa.Int64Array:
    """Return one number for values that are equal in PostgreSQL's key."""
    bits = value.view(pa.int64())
    zero, nan = pc.equal(value, 0.0), pc.is_nan(value)
    bits = pc.if_else(zero, pa.scalar(0, pa.int64()), bits)
    return pc.if_else(nan, pa.scalar(_NAN_BITS, pa.int64()), bits)


def _same_as_before(keys: pa.RecordBatch) -> pa.BooleanArray | None:
    """Return which rows are equal to the one before; None if no row is."""
    before, after = keys.slice(0, max(0, len(keys) - 1)), keys.slice(1)
    same = None
    for name in ("ts", "series", "value"):
        equal = pc.equal(before.column(name), after.column(name))
        same = equal if same is None else pc.and_(same, equal)
    if not pc.any(same).as_py():
        return None
    return pa.concat_arrays([pa.array([False]), same])


class _Source:
    """Sorted rows that are read piece by piece."""

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces = pieces
        self.rows = SCHEMA.empty_table()

    def fill(self) -> bool:
        """Read the next piece if there is none; return whether there is one."""
        while not self.rows.num_rows:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self.rows = piece.combine_chunks()
            self._columns = [self.rows.column(place).chunk(0) for place in range(4)]
            self._values = _comparable(self._columns[3])
            self._at = 0
        return True

    def key(self, row: int) -> Key:
        ts, device, metric, _ = self._columns
        at = self._at + row
        return (
            device[at].as_py(),
            metric[at].as_py(),
            ts[at].value,
            self._values[at].as_py(),
        )

    def last(self) -> Key:
        return self.key(self.rows.num_rows - 1)

    def take_until(self, limit: Key) -> pa.Table:
        """Take the rows up to this key, with it."""
        low, high = 0, self.rows.num_rows
        while low < high:
            middle = (low + high) // 2
            if self.key(middle) <= limit:
                low = middle + 1
            else:
                high = middle
        taken, self.rows = self.rows.slice(0, low), self.rows.slice(low)
        self._at += low
        return taken


def merge(sources: Sequence[Iterator[pa.Table]]) -> Iterator[Sorted]:
    """Merge sorted rows. Of equal rows the one of the first source is kept.

    Needs memory for one piece of each source, twice.
    """
    reading = [_Source(each) for each in sources]
    while reading := [each for each in reading if each.fill()]:
        limit = min(each.last() for each in reading)
        taken = [each.take_until(limit) for each in reading]
        taken = [each for each in taken if each.num_rows]
        if len(taken) == 1:  # already in order, and each row once
            yield Sorted(taken[0], taken[0].slice(0, 0))
        else:
            yield sort_rows(pa.concat_tables(taken))
