"""Parquet files: sorted rows to files and back. The only place that chooses how they are encoded.

Promises: a file is complete and on the disk when `write` returns. Memory is for some row groups, no
matter how large a file is. All calls block, and raise OSError and pyarrow's errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.archive.copied_rows import SCHEMA, DamagedRows
from ingest.archive.postgres_hash import NOTHING, Checksum, checksum_of

ROW_GROUP_ROWS = 262_144
FILE_ROWS_MAX = 64 * 1024**2  # the next rows, of later devices, go into another file
READ_ROWS = 65_536
ENDING = ".parquet"
_SORTED_BY = ("device_id", "metric", "ts")


class Written(NamedTuple):
    """One file: its name in its folder, its rows, its bytes."""

    name: str
    rows: int
    bytes: int


def file_name(stem: str, number: int) -> str:
    """Return the name of a file of a partition: the first one has no number."""
    return f"{stem}{ENDING}" if number == 0 else f"{stem}.{number + 1:04d}{ENDING}"


def write(
    folder: Path,
    stem: str,
    pieces: Iterable[pa.Table],
    *,
    values_repeat: bool = False,
    group_rows: int = ROW_GROUP_ROWS,
    file_rows_max: int = FILE_ROWS_MAX,
) -> list[Written]:
    """Write sorted rows into one file or several; return them. No rows: no file.

    `values_repeat`: the values are stored as numbers of a dictionary. That is less than half of the
    size if many are equal, as those of sensors with two decimals, and a third more if few are.
    """
    written: list[Written] = []
    groups = _in_groups(pieces, group_rows)
    group = next(groups, None)
    while group is not None:
        name = file_name(stem, len(written))
        rows = 0
        with pq.ParquetWriter(folder / name, SCHEMA, **_options(values_repeat)) as writer:
            while group is not None and rows < file_rows_max:
                writer.write_table(group, row_group_size=group_rows)
                rows += group.num_rows
                group = next(groups, None)
        written.append(Written(name, rows, _synced_bytes(folder / name)))
    return written


def _options(values_repeat: bool) -> dict[str, object]:
    encodings = {"ts": "DELTA_BINARY_PACKED"}
    if not values_repeat:
        encodings["value"] = "BYTE_STREAM_SPLIT"
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": ["device_id", "metric", *(["value"] if values_repeat else [])],
        "column_encoding": encodings,
        "write_page_index": True,
        "sorting_columns": pq.SortingColumn.from_ordering(
            SCHEMA, [(name, "ascending") for name in _SORTED_BY]
        ),
    }


def values_repeat(paths: Sequence[Path]) -> bool:
    """Whether the values in files of ours are stored as numbers of a dictionary."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_row_groups:
                column = file.metadata.row_group(0).column(SCHEMA.names.index("value"))
                return "RLE_DICTIONARY" in column.encodings
    return False


def _in_groups(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly so many rows; the last one may have fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += piece.num_rows
        while count >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows)
            count -= rows
            waiting = [whole.slice(rows)]
    if count:
        yield pa.concat_tables(waiting)


def _synced_bytes(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def read(path: Path, rows: int = READ_ROWS) -> Iterator[pa.Table]:
    """Yield the rows of a file in order, at most so many at once.

    Raises DamagedRows, with the name of the file, if it cannot be read.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=64 * 1024) as file:
            if file.schema_arrow.remove_metadata() != SCHEMA:
                raise DamagedRows("it is a Parquet file, but not one of the archive")
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError, DamagedRows) as error:
        raise DamagedRows(f"{path.name}: {error}") from error


def checksum_of_files(paths: Sequence[Path], go_on: Callable[[], None]) -> Checksum:
    """Read files, and return the checksum of all their rows. `go_on` may end it by an error."""
    found = NOTHING
    for path in paths:
        for rows in read(path):
            go_on()
            found = found.plus(checksum_of(rows))
    return found
