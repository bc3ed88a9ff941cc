"""The sink: it writes batches of encoded rows to PostgreSQL over one connection.

New rows take one COPY. Rows that may be in the table already take the idempotent path: a staging
table, and INSERT with ON CONFLICT.

Promises: a row is stored once, however often it is written. No row is stored with another value
than it had. Each write begins with a check of the table, in its transaction: if the table was
altered or replaced, it is checked in full, and then written to, or the write fails.
Each failure is a WriteFailed with a verdict.
Does not: decide what to do about a verdict, or wait between tries.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncpg import Connection

from ingest.model.block import Refusal, row_offsets, row_times_us
from ingest.model.causes import OF_ONE_ROW, Verdict, WriteFailed
from ingest.model.moments import runs
from ingest.model.ports import SetAside, Stored
from ingest.sinks.postgres import statements
from ingest.sinks.postgres.checked_connection import CheckedConnection
from ingest.sinks.postgres.housekeeping.known_partitions import PartitionsOfTables
from ingest.sinks.postgres.schema import TargetTable

# Deferred constraints are checked at once here. Otherwise the COMMIT would fail and name no row.
_ISOLATING = "; set constraints all immediate; savepoint range"
MISSING = "23514"  # of PostgreSQL, if there is no partition for a row
_KEEP_RANGE = "release savepoint range; savepoint range"
_UNDO_RANGE = "rollback to savepoint range"

# After so many writes in a row with duplicates, the next ones probably have some too. Then the
# idempotent path is used until so many writes in a row had none.
_DUPLICATE_RUN = 2
_DUPLICATE_STAY = 20


class SinkPostgres(CheckedConnection):
    """A ports.Sink on one connection, which is opened when it is first needed."""

    late: PartitionsOfTables | None = None  # shared by the sinks of a process
    _staging_on: Connection | None = None  # the connection that has the staging table
    _duplicate_run = 0
    _idempotent_left = 0

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Commit all rows, or none that we know of. Opens the connection if there is none.

        If rows find no partition, those that may be made are made, and the write is tried again.
        """
        await self.ready()
        try:
            committed = await self._write(tuples, idempotent=idempotent)
        except WriteFailed as failed:
            if failed.verdict is not Verdict.NO_PARTITION or self.late is None:
                raise
            times_us = self._times_us(tuples)
            if not await self.late.make_for(times_us):
                failed.known_rows = all(self.late.of(each).knows for each in times_us)
                raise
            await self.ready()
            committed = await self._write(tuples, idempotent=idempotent)
        self._remember_duplicates(rows - committed)
        return Stored(committed, rows - committed)

    async def _write(self, tuples: Sequence[bytes], *, idempotent: bool) -> int:
        if self.method == "insert" or idempotent or self._idempotent_left or self.refuses_copy:
            return await self._write_once(tuples)
        try:
            return await self.checked(
                lambda connection: statements.copy(connection, self.sql.checked_copy, tuples),
                doubt=True,
                copying=True,
            )
        except WriteFailed as failed:
            if failed.verdict is not Verdict.DUPLICATE:
                raise
        return await self._write_once(tuples)

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether the table takes one of these rows as a new row. All of it is undone."""
        await self.ready()
        await self._begin(_ISOLATING)
        try:
            for row in (*rows, None) if like_stored else rows:
                stored = await self._try_range(row, staged=self.method == "copy", at_fault=True)
                if isinstance(stored, int) and stored:
                    return True
            return False
        finally:
            if self.is_open:
                async with self.exchange() as connection:
                    await connection.execute("rollback")

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Find the rows that the database refuses; commit the others in the same transaction."""
        await self.ready()
        if self.late is not None and self.late.eager:
            await self.late.make_for(self._times_us(tuples))
        data, numbers, bad = self._without_partition(b"".join(tuples))
        offsets = row_offsets(data)
        committed = start = 0
        length = found = len(numbers)
        done = False
        try:
            await self._begin(_ISOLATING)
            while start < found:
                end = min(start + length, found)
                part = data[offsets[start] : offsets[end]]
                stored = await self._try_range(part, at_fault=at_fault)
                if isinstance(stored, int):
                    committed += stored
                    start, length = end, 8 * length
                elif stored.row == 0 or end == start + 1:
                    bad.append(_bad_row(numbers[start], stored))
                    start, length = start + 1, max(1, length // 2)
                else:  # next up to the row that the server names, or half if it names none
                    half = (end - start) // 2
                    length = stored.row if stored.row and stored.row < end - start else half
            if bad:
                await set_aside(sorted(bad))
            async with self.exchange(doubt=True) as connection:
                await connection.execute("commit")
            done = True
        finally:
            if not done:
                self.drop()
        return Stored(committed, rows - len(bad) - committed)

    def _times_us(self, tuples: Sequence[bytes]) -> dict[TargetTable, list[int]]:
        """Return the times of the rows of each table."""
        readings = self._known.target
        found: dict[TargetTable, list[int]] = {}
        for run in runs(b"".join(tuples)):
            table = readings if run.form is None else TargetTable(readings.schema, run.form.table)
            found.setdefault(table, []).extend(run.times_us())
        return found

    def _without_partition(self, data: bytes) -> tuple[bytes, Sequence[int], list[Refusal]]:
        """Return the rows to try, their numbers, and those of which it is known: no partition."""
        offsets = row_offsets(data)
        rows = len(offsets) - 1
        late = None if self.late is None else self.late.of(self._known.target)
        if late is None or not late.knows:
            return data, range(rows), []
        why_not, numbers, bad = late.why_not, list[int](), list[Refusal]()
        for row, ts_us in enumerate(row_times_us(data, offsets)):
            if why := why_not(ts_us):
                bad.append(Refusal(row, MISSING, why.message, None, True, why.final))
            else:
                numbers.append(row)
        if not bad:
            return data, range(rows), []
        tried = b"".join([data[offsets[row] : offsets[row + 1]] for row in numbers])
        return tried, numbers, bad

    async def _begin(self, more: str = "") -> None:
        """Begin a transaction in which nobody can alter the table that was checked."""

        async def begin(connection: Connection) -> int:
            if self.method == "copy" and self._staging_on is not connection:
                await connection.execute(statements.MAKE_STAGING)
                self._staging_on = connection
            await connection.execute(f"begin; {self.sql.check}{more}")
            return 0

        await self.checked(begin)

    async def _write_once(self, tuples: Sequence[bytes]) -> int:
        """Store the rows that are not in the table yet, in one transaction; return how many."""
        await self._begin()
        async with self.exchange() as connection:
            committed = await self._store_once(connection, tuples)
        async with self.exchange(doubt=True) as connection:
            await connection.execute("commit")
        return committed

    async def _store_once(self, connection: Connection, tuples: Sequence[bytes]) -> int:
        store = statements.insert_arrays if self.method == "insert" else statements.store_staged
        return await store(connection, self.sql, tuples)

    async def _try_range(
        self, data: bytes | None, *, staged: bool = False, at_fault: bool = False
    ) -> int | WriteFailed:
        """Store a range of an isolating write; return how many rows are new, or the failure.

        None stands for a row like one that the table has.

        `at_fault`: a failure with `may_be_row` is the fault of a row too.
        """
        staged = staged or (self.refuses_copy and self.method == "copy")
        copying = self.method == "copy" and not staged
        try:
            async with self.exchange(
                copying=copying, undo=_UNDO_RANGE, rows_at_fault=at_fault
            ) as connection:
                if data is None:
                    committed = await statements.insert_like_stored(connection, self.sql)
                elif copying:
                    committed = await statements.copy(connection, self.sql.copy, [data])
                else:
                    if staged:  # the transaction may have staged a range before
                        await connection.execute(statements.EMPTY_STAGING)
                    committed = await self._store_once(connection, [data])
                await connection.execute(_KEEP_RANGE)
                return committed
        except WriteFailed as failed:
            if failed.verdict in OF_ONE_ROW or (at_fault and failed.may_be_row):
                return failed
            if failed.verdict is not Verdict.DUPLICATE:
                raise
        return await self._try_range(data, staged=True, at_fault=at_fault)

    def _remember_duplicates(self, duplicate: int) -> None:
        """Use the idempotent path after some writes with duplicates: each fails a whole COPY."""
        if duplicate == 0:
            self._duplicate_run = 0
            self._idempotent_left = max(0, self._idempotent_left - 1)
            return
        self._duplicate_run += 1
        if self._duplicate_run >= _DUPLICATE_RUN:
            self._idempotent_left = _DUPLICATE_STAY


def _bad_row(row: int, failed: WriteFailed) -> Refusal:
    no_partition = failed.verdict is Verdict.NO_PARTITION
    return Refusal(row, failed.sqlstate or "", failed.message, failed.constraint, no_partition)
