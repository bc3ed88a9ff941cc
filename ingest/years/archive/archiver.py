"""Archives a detached partition: into files, verified and recorded. Also reads files back.

The order: read the table once, into sorted runs; merge these, and the files of the span, into new
files, and read them again, while the server sums up the table in SQL; compare; record; move them to
their place. Old files are replaced only by verified new ones.
Promises: killed at any moment, the next call goes on, and no reading is lost or there twice. Memory
is bounded. The work on rows is done in a thread, so that the event loop is free. It rests as long
as others need the processors (`Pace`).
Does not: detach or drop a table.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from ingest.sinks.postgres.connection import Connection
from ingest.system.clock import monotonic_s, sleep, thread_cpu_s
from ingest.years.archive import files, job, table_rows
from ingest.years.archive.arrow_rows import NOTHING, Checksum, DamagedRows, Decoder, encoded
from ingest.years.archive.files import ArchiveFailed, ArchiveFolder, FolderInUse
from ingest.years.archive.job import ALONE_S_MAX, Contents, Detached
from ingest.years.archive.sorting import Runs

PIECE_BYTES = 4 * 1024**2  # of COPY, for one call of the thread
ALONE_POLL_S = 0.2  # while `verify_alone` waits for a run
# The pace.
FREE_TIMES = 1.15  # of its CPU time, what a piece takes on an idle machine
REST_TIMES = 4.0  # of the time that a piece has waited
REST_TIMES_MAX = 3.0  # of the time that it took
REST_S_MAX = 0.5  # a stop waits for it

# Large blocks go back to the system when they are freed.
pa.set_memory_pool(pa.system_memory_pool())

T = TypeVar("T")


class ParquetArchiver:
    """Archives into `folder`. `stopped` is asked for each piece of rows, and ends it early."""

    def __init__(
        self,
        folder: ArchiveFolder,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = folder
        self._stopped = stopped
        self._pace = Pace()
        # One thread: what is freed in it, is used again in it.
        self._thread = ThreadPoolExecutor(1, "archive")

    async def archive(self, source: Detached) -> None:
        """Archive all rows of a table. Raises ArchiveFailed; the table and old files are as before.

        If a span has been archived before, the rows are merged with its files.
        """
        if str(self.folder.path) in await job.folders(source.connection, source.parent):
            await self._aside(self.folder.check_there)
        with self.folder.locked():
            before = await source.contents()
            if before is not None:
                await self._aside(self.folder.move, before.name, before.token, before.file_names)
                await self._aside(self._check_sizes, before)
            name = source.table.table if before is None else before.name
            await self._aside(self.folder.sweep, name)
            await self._aside(
                self.folder.check_free, name, [] if before is None else before.file_names
            )
            known = None if before is None else await self._of_table(source)
            if before is not None and known in (
                Checksum(before.last_rows, before.last_sum),
                Checksum(before.rows, before.sum),
            ):
                await self._aside(self.verify, before)
                return
            await self._record_new(source, name, known, before)

    async def _record_new(
        self, source: Detached, name: str, known: Checksum | None, before: Contents | None
    ) -> None:
        """Write, verify, record and move the files of a span. `known` is the table's checksum."""
        rows_max = (
            await table_rows.rows_max(source.connection, source.table)
            if known is None
            else known.rows
        )
        self.folder.check_room(rows_max, 0 if before is None else before.bytes)
        token, hidden = await self._aside(self.folder.new_temporary, name)
        async with AsyncExitStack() as undo:
            # A full disk needs the room; a killed run leaves it to the next one.
            undo.push_async_callback(self._aside, self.folder.sweep, name)
            written, got, table = await self._write(source, name, known, before, hidden)
            await self._aside(self.folder.sync_temporary, name, token)
            undo.pop_all()
        found = Contents(
            name,
            source.from_us if before is None else before.from_us,
            source.to_us if before is None else before.to_us,
            *got,
            tuple(written),
            token,
            *table,
        )
        await job.record(source.connection, source.parent, found, str(self.folder.path))
        await self._aside(self.folder.move, found.name, found.token, found.file_names)

    async def _write(
        self,
        source: Detached,
        name: str,
        known: Checksum | None,
        before: Contents | None,
        hidden: Path,
    ) -> tuple[list[files.Written], Checksum, Checksum]:
        """Write the files, read them again, and compare; return them, their sum, the table's."""
        runs = await self._sorted_runs(source, hidden)
        old = [] if before is None else self.folder.paths(before.file_names)
        summed = asyncio.create_task(self._of_table(source, known))  # the connection is free by now
        try:
            written = await self._aside(self._merge, self.folder.stem(name), hidden, runs, old)
            new = [hidden / each.name for each in written]
            got = await self._aside(self._checksum, new)
            table = await summed
        finally:
            summed.cancel()  # nothing, if it is done
            await asyncio.gather(summed, return_exceptions=True)
        kept = NOTHING if before is None else Checksum(before.rows, before.sum)
        expected = table.plus(kept).minus(runs.left_out)
        if got != expected:
            if before is not None:
                await self._aside(self.verify, before)  # it says so if the old files are damaged
            raise ArchiveFailed(
                f"the new files of {name} differ from the table: {got.rows:,} readings instead of "
                f"{expected.rows:,}, or another checksum; nothing was changed. If somebody writes "
                "to the detached table, the next run goes on"
            )
        return written, got, table

    async def _sorted_runs(self, source: Detached, hidden: Path) -> Runs:
        """Read the whole table into sorted runs; the next piece is read while one is sorted."""
        decoder = Decoder()
        runs = Runs(hidden, decoder, go_on=self._rest)
        pieces: list[bytes] = []
        size = 0
        work: asyncio.Task[None] | None = None

        async def take(data: bytes) -> None:
            nonlocal work, size
            self._go_on()
            pieces.append(data)
            size += len(data)
            if size >= PIECE_BYTES:
                if work is not None:
                    await work
                work = asyncio.create_task(self._aside(self._add, runs, b"".join(pieces)))
                pieces.clear()
                size = 0

        try:
            await table_rows.copy_out(source.connection, source.table, decoder.marker, take)
        finally:
            if work is not None:
                await asyncio.wait([work])
        if work is not None:
            await work
        await self._aside(self._add, runs, b"".join(pieces))
        await self._aside(runs.end)
        return runs

    def _go_on(self) -> None:
        """Raise ArchiveFailed if the process stops: a thread at work would hold up its end."""
        if self._stopped():
            raise ArchiveFailed("the process stops; the next run begins again")

    async def _of_table(self, source: Detached, known: Checksum | None = None) -> Checksum:
        """Return the checksum of a table, unless it is known."""

        async def pause(took_s: float) -> None:
            self._go_on()
            await asyncio.sleep(self._pace.rest_s(took_s))

        if known is not None:
            return known
        return Checksum(*await table_rows.checksum(source.connection, source.table, pause))

    def _add(self, runs: Runs, data: bytes) -> None:
        self._pace.begin()
        runs.add(data)
        self._pace.rest()

    def _checksum(self, paths: list[Path]) -> Checksum:
        self._pace.begin()
        return files.checksum_of_files(paths, self._rest)

    def _rest(self) -> None:
        """Between two pieces of work, in the thread: see `Pace`, and `_go_on`."""
        self._go_on()
        self._pace.rest()

    def _merge(self, stem: str, hidden: Path, runs: Runs, old: list[Path]) -> list[files.Written]:
        self._pace.begin()
        repeat = files.values_repeat(old) if old else runs.values_repeat
        written = files.write(hidden, stem, runs.merged(old), values_repeat=repeat)
        runs.remove()
        return written

    def verify(self, found: Contents) -> None:
        """Read the files of a span, and compare them with the record. Raises ArchiveFailed.

        Blocks. Changes nothing.
        """
        self._check_sizes(found)
        got = _checked(self._checksum, self.folder.paths(found.file_names))
        if got != Checksum(found.rows, found.sum):
            raise ArchiveFailed(
                f"the readings of {found.name} differ from its record: {got.rows:,} of "
                f"{found.rows:,}, or another checksum"
            )

    def _check_sizes(self, found: Contents) -> None:
        """Raise ArchiveFailed if a file is missing, or is not as long as recorded."""
        for name, _, size in found.files:
            try:
                there = (self.folder.path / name).stat().st_size
            except OSError as error:
                what = f"{self.folder.path / name}: {error.strerror}"
                if isinstance(error, FileNotFoundError):
                    what += (
                        f". If archive_dir was changed, move all files of the old folder into "
                        f"{self.folder.path}; else restore this file from a back-up"
                    )
                raise ArchiveFailed(what) from error
            if there != size:
                raise ArchiveFailed(f"{name} has {there:,} bytes; {size:,} were recorded")

    async def verify_alone(self, connection: Connection, table: str, name: str) -> None:
        """Verify a span as it is recorded then, while no other process writes to the archive.

        Without that a run may replace files between a look at their record and one at them. A move
        that was cut off is completed. Waits for other processes as long as ALONE_S_MAX. Raises
        ArchiveFailed, and OSError if there is no folder, or this user may not lock it.
        """
        end_s = monotonic_s() + ALONE_S_MAX
        while True:
            try:
                with self.folder.locked(make=False):
                    for found in await job.contents(connection, table):
                        if found.name == name:
                            await self._aside(self.folder.move, name, found.token, found.file_names)
                            await self._aside(self.verify, found)
                    return
            except FolderInUse:
                if monotonic_s() >= end_s:
                    raise
            await asyncio.sleep(ALONE_POLL_S)

    async def rows(self, found: Contents) -> AsyncIterator[bytes]:
        """Yield the rows of a span as binary COPY."""
        paths = self.folder.paths(found.file_names)
        pieces = encoded(chain.from_iterable(map(files.read, paths)))
        while (piece := await self._aside(next, pieces, None)) is not None:
            yield piece

    async def _aside(self, do: Callable[..., T], *args: object) -> T:
        """Do it in the thread; errors of files and of pyarrow are ArchiveFailed."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _checked, do, *args)


def _checked(do: Callable[..., T], *args: object) -> T:
    """Do it. Raises ArchiveFailed for errors of files, of rows and of pyarrow."""
    try:
        return do(*args)
    except (OSError, pa.ArrowException, DamagedRows) as error:
        raise ArchiveFailed(f"the archive: {error}") from error


class Pace:
    """How long one thread rests: `begin` before its work, `rest` after each piece, both in it.

    Work on rows takes as much time as CPU, if a processor is free for it. If it takes longer,
    others work too: live posts, or the database. Then the thread rests after that piece. So nobody
    has to say how busy the machine is, and on an idle one the archive is as fast as without a pace.
    The server's work for the archive rests too: COPY waits until its rows are taken, and `rest_s`
    is for statements. A rest has a bound, so the archive goes on however busy the machine is.
    Waiting for the disk counts as if others needed the processors.
    """

    def __init__(self) -> None:
        self._from_s = self._from_cpu_s = 0.0
        self._rest_times = 0.0

    def begin(self) -> None:
        """Count from now on: the time before was no work."""
        self._from_s, self._from_cpu_s = monotonic_s(), thread_cpu_s()

    def rest(self) -> None:
        """Rest after a piece of work, as long as is needed; then the next one begins. Blocks."""
        took_s = monotonic_s() - self._from_s
        waited_s = took_s - FREE_TIMES * (thread_cpu_s() - self._from_cpu_s)
        self._rest_times = 0.0
        if waited_s > 0:
            self._rest_times = min(REST_TIMES_MAX, REST_TIMES * waited_s / took_s)
            sleep(self.rest_s(took_s))
        self.begin()

    def rest_s(self, took_s: float) -> float:
        """Return how long to rest after work that took so long, as after the thread's last piece.

        May be called from any thread.
        """
        return min(REST_S_MAX, self._rest_times * took_s)
