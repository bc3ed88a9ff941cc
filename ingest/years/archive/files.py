"""Parquet files of sorted rows, and the folder that they stand in.

Files of a partition are written in a hidden folder beside their place, `.NAME.TOKEN`, and moved
when they are verified and recorded. The record has the token, so a move that was cut off can be
completed, and all other hidden folders of this name can be removed.
Promises: a file is complete and on the disk when `write` returns. Memory is for some row groups, no
matter how large a file is. How rows are encoded is chosen here alone.
All calls block. They raise OSError, pyarrow's errors, and ArchiveFailed with what to do.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.model.errors import StartError
from ingest.system.files import Lock, make_folder, sync_folder
from ingest.years.archive.arrow_rows import NOTHING, SCHEMA, Checksum, DamagedRows, checksum_of

ROW_GROUP_ROWS = 262_144
FILE_ROWS_MAX = 64 * 1024**2  # the next rows, of later devices, go into another file
READ_ROWS = 65_536
ENDING = ".parquet"
LOCK = ".lock"  # other tools read all files whose names begin in another way
ROW_BYTES = 24  # at most, of a reading: once in sorted runs, once in the file
_SORTED_BY = ("device_id", "metric", "ts")


class ArchiveFailed(StartError):
    """A step of the archive could not be done. Nothing is lost: the text says what to do."""


class FolderInUse(ArchiveFailed):
    """Another process writes to the archive now."""


class ArchiveFolder:
    """The folder `archive_dir`. It keeps `free_bytes_min` of the disk free."""

    def __init__(self, path: Path, *, free_bytes_min: int = 0) -> None:
        self.path = path
        self._free_bytes_min = free_bytes_min

    @contextmanager
    def locked(self, *, make: bool = True) -> Iterator[None]:
        """Keep other writers out; make the folder if it is missing. Raises FolderInUse."""
        if make:
            make_folder(self.path)
        lock = Lock.try_take(self.path / LOCK, create=True)
        if lock is None:
            raise FolderInUse(f"another process writes to the archive in {self.path}")
        with lock:
            yield

    def check_there(self) -> None:
        """Raise ArchiveFailed if a folder that has had files is gone, or is another one.

        The place where a disk should be is an empty folder: what is written there is hidden when
        the disk comes back.
        """
        if not (self.path / LOCK).exists():
            raise ArchiveFailed(
                f"{self.path} had files of the archive, and has no {LOCK} now: is its disk there? "
                "If the folder is the right one, make this file (empty), and the next run goes on"
            )

    def stem(self, partition: str) -> str:
        """Return how the names of a partition's files begin. Any text becomes a safe name."""
        return quote(partition, safe="").replace(".", "%2E").replace("~", "%7E")

    def paths(self, names: Sequence[str]) -> list[Path]:
        """Return the files of these names."""
        return [self.path / each for each in names]

    def check_room(self, rows: int, files_bytes: int) -> None:
        """Raise ArchiveFailed if there may be no room for so many new rows, and files of so much.

        The files of the same span are written once more, before the old ones are removed.
        """
        needed = rows * ROW_BYTES + files_bytes + self._free_bytes_min
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ArchiveFailed(
                f"the archive needs up to {needed / 1e6:,.0f} MB free in {self.path}, and there "
                f"are {free / 1e6:,.0f} MB: make room, and the next run goes on"
            )

    def new_temporary(self, partition: str) -> tuple[str, Path]:
        """Make a hidden folder for new files; return its token and its path."""
        token = secrets.token_hex(4)
        path = self._hidden(partition, token)
        path.mkdir(mode=0o700)
        return token, path

    def _hidden(self, partition: str, token: str) -> Path:
        return self.path / f".{self.stem(partition)}.{token}"

    def sweep(self, partition: str) -> None:
        """Remove what runs that were cut off have left of this partition."""
        pattern = re.compile(rf"\.{re.escape(self.stem(partition))}\.[0-9a-f]{{8}}")
        for each in list(self.path.iterdir()):
            if pattern.fullmatch(each.name):
                shutil.rmtree(each)

    def sync_temporary(self, partition: str, token: str) -> None:
        """Sync the names of finished files, before they are recorded."""
        sync_folder(self._hidden(partition, token))
        sync_folder(self.path)

    def check_free(self, partition: str, known: Sequence[str]) -> None:
        """Raise ArchiveFailed if a file of this partition is there that nobody has recorded."""
        for each in self._files_of(partition):
            if each.name not in known:
                raise ArchiveFailed(
                    f"{each} is not in the record of this database: it may be the archive of "
                    "another one; move it away, or choose another archive_dir"
                )

    def _files_of(self, partition: str) -> list[Path]:
        stem = self.stem(partition)
        pattern = re.compile(rf"{re.escape(stem)}(\.\d{{4}})?{re.escape(ENDING)}")
        return [each for each in self.path.iterdir() if pattern.fullmatch(each.name)]

    def move(self, partition: str, token: str, names: Sequence[str]) -> None:
        """Move recorded files to their place. May be repeated after it was cut off."""
        hidden = self._hidden(partition, token)
        if not hidden.exists():
            return
        for name in names:
            if (hidden / name).exists():
                (hidden / name).replace(self.path / name)
        for each in self._files_of(partition):
            if each.name not in names:  # more files than now, before the merge
                each.unlink()
        sync_folder(self.path)
        shutil.rmtree(hidden)


class Written(NamedTuple):
    """One file: its name in its folder, its rows, its bytes."""

    name: str
    rows: int
    bytes: int


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
        name = _file_name(stem, len(written))
        rows = 0
        with pq.ParquetWriter(folder / name, SCHEMA, **_options(values_repeat)) as writer:
            while group is not None and rows < file_rows_max:
                writer.write_table(group, row_group_size=group_rows)
                rows += group.num_rows
                group = next(groups, None)
        written.append(Written(name, rows, _synced_bytes(folder / name)))
    return written


def _file_name(stem: str, number: int) -> str:
    """Return the name of a file of a partition: the first one has no number."""
    return f"{stem}{ENDING}" if number == 0 else f"{stem}.{number + 1:04d}{ENDING}"


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
