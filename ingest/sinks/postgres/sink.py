"""The sink: it writes batches of encoded rows to PostgreSQL over one connection.

New rows take one COPY. Rows that may be in the table already take the idempotent path: a staging
table, and INSERT with ON CONFLICT.

Promises: a row is stored once, however often it is written. No row is stored with another value
than it had. Each failure is a WriteFailed with a verdict.
Does not: decide what to do about a verdict, or wait between tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
from asyncpg import Connection

from ingest.model.ports import BadRow, SetAside, Stored
from ingest.model.rows import row_offsets
from ingest.model.verdict import (
    CONFIGURATION,
    NOT_DURABLE,
    OF_ONE_ROW,
    SCHEMA,
    Verdict,
    WriteFailed,
)
from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres import durability, schema, statements
from ingest.sinks.postgres.connection import (
    DRIVER_ERRORS,
    Expired,
    OneConnection,
    Timeouts,
    text_of,
)
from ingest.sinks.postgres.sqlstate import server_failed
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger

# Deferred constraints are checked at once here. Otherwise the COMMIT would fail and name no row.
_BEGIN_ISOLATING = "begin; set constraints all immediate; savepoint range"
_KEEP_RANGE = "release savepoint range; savepoint range"
_UNDO_RANGE = "rollback to savepoint range"
_UNDO_ROW = "rollback to range"  # the same, where it is known that rows are at fault

NO_COPY = "0A000"  # also of other things that PostgreSQL has not
_ROW_SECURITY = "select row_security_active($1::text)"
_EXAMINED = OF_ONE_ROW | {Verdict.HOLD}
_HARMLESS = OF_ONE_ROW | {Verdict.DUPLICATE}  # for the connection

UNSAFE_WARNING_S = 3600.0  # between warnings that the database may lose what it has committed

# After so many writes in a row with duplicates, the next ones probably have some too. Then the
# idempotent path is used until so many writes in a row had none.
_DUPLICATE_RUN = 2
_DUPLICATE_STAY = 20

log = get_logger("database")
_occasionally = Occasionally(UNSAFE_WARNING_S)  # for all connections together


class SinkPostgres(OneConnection):
    """A ports.Sink on one connection to `database_url`, which is opened when it is first needed.

    `method` is `copy` or `insert`. `unsafe` allows a database that may lose a commit. The server
    shows `name` as application_name.
    """

    def __init__(
        self, database_url: str, timeouts: Timeouts, *, method: str, unsafe: bool, name: str
    ) -> None:
        super().__init__()
        self.method = method
        self._database_url = database_url
        self._timeouts = timeouts
        self._unsafe = unsafe
        self._name = name
        self._connecting: asyncio.Timeout | None = None
        self._checked_s = 0.0
        self._keys: set[tuple[str, str]] = set()
        self._duplicate_run = 0
        self._idempotent_left = 0
        self._refuses_copy = False  # because of row-level security; INSERT works

    async def open(self) -> None:
        """Connect within `connect_s_max`, and check the table. Does nothing if already open."""
        if self.is_open:
            return
        timeouts = self._timeouts
        self.drop()
        self._refuses_copy = False
        try:
            async with asyncio.timeout(timeouts.connect_s_max) as self._connecting:
                self.connection = await sink_connection.connect(
                    self._database_url,
                    name=self._name,
                    statement_s_max=timeouts.statement_s_max,
                    lock_s_max=timeouts.lock_s_max,
                )
        except asyncpg.TargetServerAttributeNotMatched as error:
            raise WriteFailed(Verdict.WAIT, "it is read-only", sqlstate="25006") from error
        except ValueError as error:  # the URL; the driver has its own class for some of it
            raise WriteFailed(Verdict.HOLD, str(error), reason=CONFIGURATION) from error
        except asyncpg.PostgresError as error:
            raise server_failed(error) from error
        except DRIVER_ERRORS as error:
            where = sink_connection.address(self._database_url)
            raise WriteFailed(Verdict.WAIT, f"{where}: {text_of(error)}") from error
        finally:
            self._connecting = None
        async with self._exchange(opening=True) as connection:
            if self.method == "copy":
                await statements.prepare_for_copy(connection)
            else:
                await statements.prepare_for_insert(connection)
        await self._check_schema()

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Commit all rows, or none that we know of. Opens the connection if there is none."""
        await self._ready()
        if self.method == "insert":
            async with self._exchange(doubt=True) as connection:
                committed = await statements.insert_arrays(connection, tuples)
        elif idempotent or self._idempotent_left or self._refuses_copy:
            committed = await self._write_staged(tuples)
        else:
            try:
                async with self._exchange(doubt=True, copying=True) as connection:
                    committed = await statements.copy(connection, tuples)
            except WriteFailed as failed:
                if failed.verdict is not Verdict.DUPLICATE:
                    raise
                committed = await self._write_staged(tuples)
        self._remember_duplicates(rows - committed)
        return Stored(committed, rows - committed)

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether the table takes one of these rows as a new row. All of it is undone."""
        await self._ready()
        async with self._exchange() as connection:
            await connection.execute(_BEGIN_ISOLATING)
        try:
            for row in (*rows, None) if like_stored else rows:
                stored = await self._try_range(row, staged=self.method == "copy", at_fault=True)
                if isinstance(stored, int) and stored:
                    return True
            return False
        finally:
            if self.is_open:
                async with self._exchange() as connection:
                    await connection.execute("rollback")

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Find the rows that the database refuses; commit the others in the same transaction."""
        await self._ready()
        data = b"".join(tuples)
        offsets = row_offsets(data)
        bad: list[BadRow] = []
        committed = start = 0
        length = rows
        done = False
        try:
            async with self._exchange() as connection:
                await connection.execute(_BEGIN_ISOLATING)
            while start < rows:
                end = min(start + length, rows)
                part = data[offsets[start] : offsets[end]]
                stored = await self._try_range(part, at_fault=at_fault)
                if isinstance(stored, int):
                    committed += stored
                    start, length = end, 8 * length
                elif stored.row == 0 or end == start + 1:
                    bad.append(_bad_row(start, stored))
                    start, length = start + 1, max(1, length // 2)
                else:  # next up to the row that the server names, or half if it names none
                    half = (end - start) // 2
                    length = stored.row if stored.row and stored.row < end - start else half
            if bad:
                await set_aside(bad)
            async with self._exchange(doubt=True) as connection:
                await connection.execute("commit")
            done = True
        finally:
            if not done:
                self.drop()
        return Stored(committed, rows - len(bad) - committed)

    def abort(self) -> None:
        """Cut the connection now. A call under way fails with WriteFailed(WAIT)."""
        if self._connecting is not None and not self._connecting.expired():
            self._connecting.reschedule(asyncio.get_running_loop().time())
        if self.connection is not None:
            self.connection.terminate()

    async def _ready(self) -> None:
        """Open the connection if need be, and check the table if the last check is too old."""
        await self.open()
        if clock.monotonic_s() - self._checked_s >= self._timeouts.schema_check_s:
            await self._check_schema()

    async def _check_schema(self) -> None:
        """Check that the table is still as we need it, and that the server keeps a commit."""
        async with self._exchange(opening=True) as connection:
            found, reason = await schema.difference(connection), SCHEMA
            if found is None and (fault := durability.fault(await durability.findings(connection))):
                if not self._unsafe:
                    found, reason = durability.refusal(fault), NOT_DURABLE
                elif _occasionally.due("unsafe") is not None:
                    log.warning("database_not_durable", why=fault)
        if found is not None:
            self.drop()
            raise WriteFailed(Verdict.HOLD, found, reason=reason)
        self._checked_s = clock.monotonic_s()

    async def _write_staged(self, tuples: Sequence[bytes]) -> int:
        """Store the rows that are not in the table yet, in one transaction; return how many."""
        async with self._exchange() as connection:
            await connection.execute("begin")
            committed = await statements.store_staged(connection, tuples)
        async with self._exchange(doubt=True) as connection:
            await connection.execute("commit")
        return committed

    async def _try_range(
        self, data: bytes | None, *, staged: bool = False, at_fault: bool = False
    ) -> int | WriteFailed:
        """Store a range of an isolating write; return how many rows are new, or the failure.

        None stands for a row like one that the table has.

        `at_fault`: a failure with `may_be_row` is the fault of a row too.
        """
        staged = staged or (self._refuses_copy and self.method == "copy")
        copying = self.method == "copy" and not staged
        try:
            undo = _UNDO_ROW if at_fault else _UNDO_RANGE
            async with self._exchange(copying=copying, undo=undo) as connection:
                if data is None:
                    committed = await statements.insert_like_stored(connection)
                elif copying:
                    committed = await statements.copy(connection, [data])
                elif staged:  # the transaction may have staged a range before
                    await connection.execute(statements.EMPTY_STAGING)
                    committed = await statements.store_staged(connection, [data])
                else:
                    committed = await statements.insert_arrays(connection, [data])
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

    @asynccontextmanager
    async def _exchange(
        self,
        *,
        opening: bool = False,
        doubt: bool = False,
        copying: bool = False,
        undo: str = "rollback",
    ) -> AsyncIterator[Connection]:
        """Talk to the server within a deadline. Each failure is raised as WriteFailed.

        `doubt`: the rows may be committed even if the call fails. `copying`: the body is a plain
        COPY, which may violate our key. The connection is cut, unless the body succeeds or the
        server refuses a row; then `undo` has been executed.
        """
        connection = self.connection
        assert connection is not None, "an exchange needs an open connection"
        limit_s = self._timeouts.connect_s_max if opening else self._timeouts.command_s_max
        sound = False
        try:
            with sink_connection.deadline(connection, limit_s):
                try:
                    yield connection
                    sound = True
                except asyncpg.PostgresError as error:
                    failed = server_failed(error, doubt=doubt)
                    failed.may_be_row &= not opening
                    if failed.verdict in _EXAMINED or (copying and failed.sqlstate == NO_COPY):
                        await self._examine(connection, error, failed, copying, undo)
                    sound = failed.verdict in _HARMLESS or failed.may_be_row
                    raise failed from error
        except Expired as error:
            verdict = Verdict.WAIT if opening else Verdict.RETRY
            raise WriteFailed(verdict, text_of(error), doubtful=doubt) from error
        except asyncpg.PostgresError as error:  # while another one was examined
            raise server_failed(error, doubt=doubt) from error
        except DRIVER_ERRORS as error:
            raise WriteFailed(Verdict.WAIT, text_of(error), doubtful=doubt) from error
        finally:
            if not sound:
                self.drop()

    async def _examine(
        self,
        connection: Connection,
        error: asyncpg.PostgresError,
        failed: WriteFailed,
        copying: bool,
        undo: str,
    ) -> None:
        """Ask the server for more: whether our key was violated, or how the table differs."""
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            await connection.execute(undo)
        if failed.may_be_row and undo == _UNDO_ROW:
            return  # the table is compared once, and not for each of 5,000 rows
        # Our key is violated despite ON CONFLICT if a trigger inserts a row: the row is at fault.
        if failed.sqlstate == "23505" and copying:
            key = (error.schema_name or "", error.constraint_name or "")
            if key in self._keys or await schema.is_key(connection, *key):
                self._keys.add(key)
                failed.verdict = Verdict.DUPLICATE
        elif failed.sqlstate == NO_COPY and copying:
            if await connection.fetchval(_ROW_SECURITY, schema.TABLE):
                self._refuses_copy = True
                failed.verdict = Verdict.DUPLICATE
        elif failed.reason == SCHEMA and (found := await schema.difference(connection)):
            failed.message = found
            failed.may_be_row = False


def _bad_row(row: int, failed: WriteFailed) -> BadRow:
    no_partition = failed.verdict is Verdict.NO_PARTITION
    return BadRow(row, failed.sqlstate or "", failed.message, failed.constraint, no_partition)
