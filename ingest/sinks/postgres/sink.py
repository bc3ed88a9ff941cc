"""The sink: it writes batches of encoded rows to PostgreSQL over one connection.

New rows take one COPY for each table. Rows that may be in a table already take the idempotent path:
a staging table, and INSERT with ON CONFLICT.

Promises: a reading is stored once, however often it is written. None is stored with another value
than it had. Each write begins with a check of its tables, in its transaction: if one was altered or
replaced, it is checked in full, and then written to, or the write fails.
Each failure is a WriteFailed with a verdict.
Does not: decide what to do about a verdict, or wait between tries.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from asyncpg import Connection

from ingest.model.block import Refusal
from ingest.model.causes import OF_ONE_ROW, Verdict, WriteFailed
from ingest.model.moments import TableForm
from ingest.model.ports import SetAside, Stored
from ingest.sinks.postgres import statements
from ingest.sinks.postgres.batch_tables import New, NumberedRows, TableRows, by_table, numbered
from ingest.sinks.postgres.checked_connection import READINGS_ONLY, CheckedConnection
from ingest.sinks.postgres.housekeeping.known_partitions import KnownPartitions, PartitionsOfTables
from ingest.sinks.postgres.schema import TargetTable

# Deferred constraints are checked at once here. Otherwise the COMMIT would fail and name no row.
_ISOLATING = "set constraints all immediate; savepoint range"
MISSING = "23514"  # of PostgreSQL, if there is no partition for a row
_KEEP_RANGE = "release savepoint range; savepoint range"
_UNDO_RANGE = "rollback to savepoint range"


class SinkPostgres(CheckedConnection):
    """A ports.Sink on one connection, which is opened when it is first needed."""

    late: PartitionsOfTables | None = None  # shared by the sinks of a process

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Commit all rows, or none that we know of. Opens the connection if there is none.

        If rows find no partition, those that may be made are made, and the write is tried again.
        """
        batch = await by_table(tuples, rows)
        stored = await self._write_late(batch, idempotent=idempotent)
        for each, new in zip(batch, stored, strict=True):
            self.tables[each.form].written(each.readings - new.in_table)
        committed = sum(map(sum, stored))
        return Stored(committed, rows - committed)

    async def _write_late(self, batch: Sequence[TableRows], *, idempotent: bool) -> list[New]:
        """Store a batch, and make partitions that it lacks and that may be made."""
        for is_last in (False, False, True):  # a declared table may lack some, and then `readings`
            try:
                return await self._write(batch, idempotent=idempotent)
            except WriteFailed as failed:
                if is_last or failed.verdict is not Verdict.NO_PARTITION or self.late is None:
                    raise
                times_us = self._times_us(batch, failed.table)
                if not await self.late.make_for(times_us):
                    failed.known_rows = all(self.late.of(each).knows for each in times_us)
                    raise
        raise AssertionError("the last try returns or raises")

    def _times_us(
        self, batch: Sequence[TableRows], lacking: str | None
    ) -> dict[TargetTable, list[int]]:
        """Return for which times each table needs a partition, if the table `lacking` has none."""
        found = {self._table(each.form): each.times_us() for each in batch}
        readings = self._table(None)
        if lacking == readings.table:
            # A value that the row of its moment has not is stored in `readings`.
            found[readings] = [ts_us for times_us in found.values() for ts_us in times_us]
        return found

    def _table(self, form: TableForm | None) -> TargetTable:
        target = self.target_of(form)
        return (
            target if isinstance(target, TargetTable) else TargetTable(target.schema, target.table)
        )

    async def _write(self, batch: Sequence[TableRows], *, idempotent: bool) -> list[New]:
        """Store a batch; return what is new in it of each table."""
        copied = [
            each.form
            for each in batch
            if not idempotent and self.method == "copy" and self._takes_copy(each.form)
        ]
        if copied:
            try:
                if len(batch) == 1:
                    stored = [await self._copy_alone(batch[0])]
                else:
                    stored = await self._write_tables(batch, copied)
                if not any(self.tables[form].refuses_copy for form in copied):
                    return stored
            except WriteFailed as failed:
                if failed.verdict is not Verdict.DUPLICATE:
                    raise
        return await self._write_tables(batch, ())

    def _takes_copy(self, form: TableForm | None) -> bool:
        known = self.tables.get(form)
        return known is None or known.takes_copy

    async def _copy_alone(self, rows: TableRows) -> New:
        """Check the table, and store new rows, in one message."""

        async def copy(connection: Connection) -> int:
            checked_copy = self.tables[rows.form].statements.checked_copy
            return await statements.copy(connection, checked_copy, rows.tuples)

        return self._copied(rows, await self.checked([rows.form], copy, doubt=True, copying=True))

    async def _write_tables(
        self, batch: Sequence[TableRows], copied: Collection[TableForm | None]
    ) -> list[New]:
        """Store a batch in one transaction. Rows of `copied` are new, the others perhaps not."""
        once = [each.form for each in batch if each.form not in copied]
        forms = _locked(batch, once)

        async def store(connection: Connection) -> list[New]:
            stored, before = list[New](), await self._beginning(connection, forms, once)
            for each in batch:
                if each.form in copied:
                    stored.append(await self._copy(connection, each, before))
                else:
                    if before:
                        await connection.execute(before)
                    stored.append(await self._store_once(connection, each))
                before = ""
            return stored

        stored = await self.checked(forms, store, copying=bool(copied))
        async with self.exchange(doubt=True) as connection:
            await connection.execute("commit")
        return stored

    async def _begin(self, batch: Sequence[TableRows | NumberedRows]) -> None:
        """Begin a transaction that isolates: see `_beginning`."""
        once = [each.form for each in batch]
        forms = _locked(batch, once)

        async def begin(connection: Connection) -> None:
            await connection.execute(await self._beginning(connection, forms, once) + _ISOLATING)

        await self.checked(forms, begin)

    async def _beginning(
        self,
        connection: Connection,
        forms: Sequence[TableForm | None],
        once: Sequence[TableForm | None],
    ) -> str:
        """Return the begin of a transaction in which nobody can alter these tables, and the checks.

        Make the staging tables that it needs for `once`.
        """
        for form in once if self.method == "copy" else ():
            table = self.tables[form]
            if not table.has_staging:
                await connection.execute(table.statements.make_staging)
                table.has_staging = True
        checks = "; ".join(self.tables[form].statements.check for form in forms)
        return f"begin{_level(forms)}; {checks}; "

    async def _copy(self, connection: Connection, rows: TableRows, before: str = "") -> New:
        copy = before + self.tables[rows.form].statements.copy
        return self._copied(rows, await statements.copy(connection, copy, rows.tuples))

    def _copied(self, rows: TableRows, copied: int) -> New:
        """Return what a COPY has stored, and note if a trigger has left out rows.

        What it leaves out of a declared table the idempotent path stores in `readings`.
        """
        self.tables[rows.form].refuses_copy |= rows.form is not None and copied < rows.rows
        return rows.new_of(copied)

    async def _store_once(self, connection: Connection, rows: TableRows) -> New:
        sql = self.tables[rows.form].statements
        store = sql.insert_arrays if self.method == "insert" else sql.store_staged
        return await store(connection, rows)

    # Row by row

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether each table of these rows takes one of them as a new row. All of it is undone.

        Without a row it is asked of `readings`.
        """
        found: dict[TableForm | None, list[TableRows]] = {}
        for row in rows:
            (each,) = await by_table([row], 1)
            found.setdefault(each.form, []).append(each)
        if like_stored:
            for form in [*found] or READINGS_ONLY:
                found.setdefault(form, []).append(TableRows(form, (), 1, 1))
        if not found:
            return False
        await self._begin([each[0] for each in found.values()])
        try:
            for tried in found.values():
                if not await self._takes_one(tried):
                    return False
            return True
        finally:
            if self.is_open:
                async with self.exchange() as connection:
                    await connection.execute("rollback")

    async def _takes_one(self, tried: Sequence[TableRows]) -> bool:
        for each in tried:
            stored = await self._try_range(each, once=True, at_fault=True)
            if isinstance(stored, int) and stored:
                return True
        return False

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Find the rows that the database refuses; commit the others in the same transaction."""
        bad = list[Refusal]()
        batch = numbered(tuples)
        await self.ready([each.form for each in batch])
        if self.late is not None:
            if self.late.eager:
                await self.late.make_for(
                    {self._table(each.form): each.times_us() for each in batch}
                )
            late = [self.late.of(self._table(each.form)) for each in batch]
            batch = [_without_partition(*each, bad) for each in zip(batch, late, strict=True)]
        committed, done = 0, False
        try:
            await self._begin(batch)
            for each in batch:
                committed += await self._isolate(each, bad, at_fault=at_fault)
            if bad:
                await set_aside(sorted(bad))
            async with self.exchange(doubt=True) as connection:
                await connection.execute("commit")
            done = True
        finally:
            if not done:
                self.drop()
        return Stored(committed, rows - len(bad) - committed)

    async def _isolate(self, rows: NumberedRows, bad: list[Refusal], *, at_fault: bool) -> int:
        """Store rows of one table in ranges; return how many readings are new, add refused ones."""
        committed = start = 0
        length = found = len(rows.numbers)
        while start < found:
            end = min(start + length, found)
            stored = await self._try_range(rows.part(start, end), at_fault=at_fault)
            if isinstance(stored, int):
                committed += stored
                start, length = end, 8 * length
            elif stored.row == 0 or end == start + 1:
                bad += rows.refusals(start, _refusal(stored))
                start, length = start + 1, max(1, length // 2)
            else:  # next up to the row that the server names, or half if it names none
                half = (end - start) // 2
                length = stored.row if stored.row and stored.row < end - start else half
        return committed

    async def _try_range(
        self, rows: TableRows, *, once: bool = False, at_fault: bool = False
    ) -> int | WriteFailed:
        """Store a range of an isolating write; return what is new of it, or the failure.

        No tuples stand for a row like one that the table has.

        `at_fault`: a failure with `may_be_row` is the fault of a row too.
        """
        table = self.tables[rows.form]
        copying = self.method == "copy" and not (once or table.refuses_copy)
        try:
            async with self.exchange(
                _asked(rows, copying), copying=copying, undo=_UNDO_RANGE, rows_at_fault=at_fault
            ) as connection:
                if not rows.tuples:
                    tag = await connection.execute(table.statements.insert_like_stored)
                    new = New(statements.count_of(tag))
                elif copying:
                    new = await self._copy(connection, rows)
                else:
                    if self.method == "copy":  # the transaction may have staged a range before
                        await connection.execute(table.statements.empty_staging)
                    new = await self._store_once(connection, rows)
                left_out = copying and table.refuses_copy  # which this COPY has found
                await connection.execute(_UNDO_RANGE if left_out else _KEEP_RANGE)
            if not left_out:
                return sum(new)
        except WriteFailed as failed:
            if failed.verdict in OF_ONE_ROW or (at_fault and failed.may_be_row):
                return failed
            if failed.verdict is not Verdict.DUPLICATE:
                raise
        return await self._try_range(rows, once=True, at_fault=at_fault)


def _locked(
    batch: Sequence[TableRows | NumberedRows], once: Sequence[TableForm | None]
) -> list[TableForm | None]:
    """Return the tables of a batch; if rows of `once` are perhaps not new, `readings` is one."""
    forms = [each.form for each in batch]
    return [*forms, None] if once and None not in forms else forms


def _asked(rows: TableRows, copying: bool) -> Sequence[TableForm | None]:
    """Return the tables that a failure may be about: of rows that are not new, also `readings`."""
    return [rows.form] if copying or rows.form is None else [rows.form, None]


def _level(forms: Sequence[TableForm | None]) -> str:
    """Return how a transaction begins: the statements of column_statements.py need this level."""
    return "" if [*forms] == [None] else " isolation level read committed"


def _without_partition(
    rows: NumberedRows, late: KnownPartitions, bad: list[Refusal]
) -> NumberedRows:
    """Return the rows to try; add to `bad` those of which it is known: no partition."""
    if not late.knows:
        return rows
    kept = list[int]()
    for row, ts_us in enumerate(rows.times_us()):
        if why := late.why_not(ts_us):
            refusal = Refusal(row, MISSING, why.message, None, True, why.final, why.ended)
            bad += rows.refusals(row, refusal)
        else:
            kept.append(row)
    return rows if len(kept) == len(rows.numbers) else rows.only(kept)


def _refusal(failed: WriteFailed) -> Refusal:
    no_partition = failed.verdict is Verdict.NO_PARTITION
    return Refusal(0, failed.sqlstate or "", failed.message, failed.constraint, no_partition)
