"""Sorts the rows of one COPY with bounded memory: sorted runs in a folder, which are then merged.

A run has RUN_ROWS rows, or fewer if names are many and long. It is a stream of Arrow with lz4,
which needs half of the CPU of a Parquet file. Nobody reads it after a crash, so it is not synced.
All calls block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ingest.archive import files
from ingest.archive.copied_rows import SCHEMA, CopiedRows, Decoder
from ingest.archive.postgres_hash import NOTHING, checksum_of
from ingest.archive.sorting import merge, sort_columns

RUN_ROWS = 524_288
_RUN_NAME_BYTES = 32 * 1024**2
_RUN_BATCH_ROWS = 4_096
MERGED_MAX = 64  # runs at once
_MERGED_ROWS = 262_144  # in memory, of all runs together
_PIECE_ROWS_MIN = 1_024
_SAMPLE_ROWS = 65_536  # of each run: whether values repeat


class Runs:
    """The rows of one COPY. `left_out` is the checksum of rows that equal one that is kept.

    `go_on` is called for each piece that is merged; it may end that by an error.
    """

    def __init__(
        self,
        folder: Path,
        decoder: Decoder,
        *,
        go_on: Callable[[], None],
        run_rows: int = RUN_ROWS,
    ) -> None:
        self._folder = folder
        self._decoder = decoder
        self._go_on = go_on
        self._run_rows = run_rows
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
        if self._rows >= self._run_rows or self._name_bytes >= _RUN_NAME_BYTES:
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
        sources = [_read_files(before, rows)] if before else []
        for found in merge([*sources, *(_read_run(each, rows) for each in runs)]):
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


def _read_files(paths: Sequence[Path], rows: int) -> Iterator[pa.Table]:
    for path in paths:
        yield from files.read(path, rows)
