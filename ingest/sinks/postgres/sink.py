"""Writes batches of encoded rows to PostgreSQL over one connection, and says how it went.

Promises that a row is stored once however often it is written, that no row is stored with another
value than it had, and that every failure is a WriteFailed with a verdict. Fresh rows take one
COPY; rows that may be there already go through a staging table and ON CONFLICT.
Does not decide what to do about a verdict, does not wait between tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
from asyncpg import Connection

from ingest.model.ports import BadRow, SetAside, Stored
from ingest.model.rows import HEADER, PG_EPOCH_US, TRAILER, decode_rows, row_offsets
from ingest.model.verdict import CONFIGURATION, NOT_DURABLE, SCHEMA, Verdict, WriteFailed
from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres import durability, schema
from ingest.sinks.postgres.connection import DRIVER_ERRORS, STAGING, Expired, Timeouts
from ingest.sinks.postgres.schema import KEY, KEY_LIST, TABLE, TYPE_GUARD
from ingest.sinks.postgres.sqlstate import server_failed
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger

# The guard in the INSERT is a WITH that is never run, only parsed: see schema.TYPE_GUARD.
_INSERT = f"with guard as (select from {TABLE} where {TYPE_GUARD}) insert into {TABLE} ({KEY_LIST})"
_ONCE = f"on conflict ({KEY_LIST}) do nothing"
_INSERT_STAGED = f"""{_INSERT}
select {KEY_LIST} from pg_temp.{STAGING} order by {KEY_LIST} {_ONCE}"""  # noqa: S608
_INSERT_ARRAYS = f"""{_INSERT}
select * from unnest($1::timestamptz[], $2::text[], $3::text[], $4::float8[]) as r ({KEY_LIST})
order by ts, device_id collate "C", metric collate "C", value {_ONCE}"""  # noqa: S608
_EMPTY_STAGING = f"delete from pg_temp.{STAGING}"  # noqa: S608

# Deferred constraints are checked row by row here too, or the COMMIT would fail with no row named.
_BEGIN_ISOLATING = "begin; set constraints all immediate; savepoint range"
_KEEP_RANGE = "release savepoint range; savepoint range"
_UNDO_RANGE = "rollback to savepoint range"

UNSAFE_TOLD_S = 3600.0  # between warnings that the database forgets and is used all the same

_DUPLICATE_RUN = 2  # so many writes in a row with duplicates: the next ones will have some too
_DUPLICATE_STAY = 20  # and the idempotent path is kept until so many in a row had none

log = get_logger("database")
_occasionally = Occasionally(UNSAFE_TOLD_S)  # for all lines together


class SinkPostgres:
    """A ports.Sink on one connection to `database_url`, opened when it is first needed.

    `method` is `copy` or `insert`; `unsafe` writes to a database that may forget a commit; `name`
    is what the server shows as application_name.
    """

    def __init__(
        self, database_url: str, timeouts: Timeouts, *, method: str, unsafe: bool, name: str
    ) -> None:
        self.method = method
        self._database_url = database_url
        self._timeouts = timeouts
        self._unsafe = unsafe
        self._name = name
        self._connection: Connection | None = None
        self._connecting: asyncio.Timeout | None = None
        self._checked_s = 0.0
        self._keys: set[tuple[str, str]] = set()
        self._duplicate_run = 0
        self._idempotent_left = 0

    @property
    def is_open(self) -> bool:
        """Whether the connection is there and nobody has closed it."""
        return self._connection is not None and not self._connection.is_closed()

    async def open(self) -> None:
        """Connect and check the schema, within `connect_s_max`; at once if already open."""
        if self.is_open:
            return
        timeouts = self._timeouts
        self._drop()
        try:
            async with asyncio.timeout(timeouts.connect_s_max) as self._connecting:
                self._connection = await sink_connection.connect(
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
            raise WriteFailed(Verdict.WAIT, f"{where}: {_text(error)}") from error
        finally:
            self._connecting = None
        async with self._exchange(opening=True) as connection:
            if self.method == "copy":
                await sink_connection.prepare_for_copy(connection)
            else:
                await sink_connection.prepare_for_insert(connection)
        await self._check_schema()

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Commit all rows, or none that we know of. Opens the connection if there is none."""
        await self._ready()
        if self.method == "insert":
            async with self._exchange(doubt=True) as connection:
                committed = await _insert_arrays(connection, tuples)
        elif idempotent or self._idempotent_left:
            committed = await self._write_staged(tuples)
        else:
            try:
                async with self._exchange(doubt=True, copying=True) as connection:
                    committed = await _copy(connection, tuples)
            except WriteFailed as failed:
                if failed.verdict is not Verdict.DUPLICATE:
                    raise
                committed = await self._write_staged(tuples)
        self._remember_duplicates(rows - committed)
        return Stored(committed, rows - committed)

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside
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
                stored = await self._try_range(data[offsets[start] : offsets[end]])
                if isinstance(stored, int):
                    committed += stored
                    start, length = end, 8 * length
                elif stored.row == 0 or end == start + 1:
                    bad.append(BadRow(start, stored.sqlstate or "", stored.message))
                    start, length = start + 1, max(1, length // 2)
                else:  # as far as the row that is blamed, or half where none is
                    half = (end - start) // 2
                    length = stored.row if stored.row and stored.row < end - start else half
            if bad:
                await set_aside(bad)
            async with self._exchange(doubt=True) as connection:
                await connection.execute("commit")
            done = True
        finally:
            if not done:
                self._drop()
        return Stored(committed, rows - len(bad) - committed)

    def abort(self) -> None:
        """Cut the line now; a call under way fails with WriteFailed(WAIT)."""
        if self._connecting is not None and not self._connecting.expired():
            self._connecting.reschedule(asyncio.get_running_loop().time())
        if self._connection is not None:
            self._connection.terminate()

    async def close(self) -> None:
        """Close politely, within a second."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await sink_connection.close_politely(connection)

    async def _ready(self) -> None:
        """Have an open connection whose last look at the schema is recent."""
        await self.open()
        if clock.monotonic_s() - self._checked_s >= self._timeouts.schema_check_s:
            await self._check_schema()

    async def _check_schema(self) -> None:
        """Look whether the table is still ours, and whether a commit is kept."""
        async with self._exchange(opening=True) as connection:
            found, reason = await schema.difference(connection), SCHEMA
            if found is None and (fault := durability.fault(await durability.findings(connection))):
                if not self._unsafe:
                    found, reason = durability.refusal(fault), NOT_DURABLE
                elif _occasionally.due("unsafe") is not None:
                    log.warning("database_not_durable", why=fault)
        if found is not None:
            self._drop()
            raise WriteFailed(Verdict.HOLD, found, reason=reason)
        self._checked_s = clock.monotonic_s()

    async def _write_staged(self, tuples: Sequence[bytes]) -> int:
        """Store the rows that are not there yet, in one transaction; return how many."""
        async with self._exchange() as connection:
            await connection.execute("begin")
            committed = await _store_staged(connection, tuples)
        async with self._exchange(doubt=True) as connection:
            await connection.execute("commit")
        return committed

    async def _try_range(self, data: bytes, *, staged: bool = False) -> int | WriteFailed:
        """Store a range of an isolating write; return how many are new, or what is at fault."""
        copying = self.method == "copy" and not staged
        store = _copy if copying else _store_staged if staged else _insert_arrays
        try:
            async with self._exchange(copying=copying, undo=_UNDO_RANGE) as connection:
                if staged:  # the transaction may have staged a range before
                    await connection.execute(_EMPTY_STAGING)
                committed = await store(connection, [data])
                await connection.execute(_KEEP_RANGE)
                return committed
        except WriteFailed as failed:
            if failed.verdict is Verdict.ISOLATE:
                return failed
            if failed.verdict is not Verdict.DUPLICATE:
                raise
        return await self._try_range(data, staged=True)

    def _remember_duplicates(self, duplicate: int) -> None:
        """Stay on the idempotent path after a run of duplicates: a failed COPY costs a COPY."""
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
        """Talk to the server within a deadline; every failure leaves as WriteFailed.

        `doubt` says that what is sent may commit, `copying` that it is a plain COPY, to which our
        key may object. The connection is dropped unless the body succeeds or the server blames a
        row: then `undo` has been done.
        """
        connection = self._connection
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
                    if failed.verdict in (Verdict.ISOLATE, Verdict.HOLD):
                        await self._look_closer(connection, error, failed, copying, undo)
                    sound = failed.verdict in (Verdict.ISOLATE, Verdict.DUPLICATE)
                    raise failed from error
        except Expired as error:
            verdict = Verdict.WAIT if opening else Verdict.RETRY
            raise WriteFailed(verdict, _text(error), doubtful=doubt) from error
        except asyncpg.PostgresError as error:  # while judging another
            raise server_failed(error, doubt=doubt) from error
        except DRIVER_ERRORS as error:
            raise WriteFailed(Verdict.WAIT, _text(error), doubtful=doubt) from error
        finally:
            if not sound:
                self._drop()

    async def _look_closer(
        self,
        connection: Connection,
        error: asyncpg.PostgresError,
        failed: WriteFailed,
        copying: bool,
        undo: str,
    ) -> None:
        """Ask what the error leaves open: whose key it was, what of the table differs."""
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            await connection.execute(undo)
        # Despite ON CONFLICT our key may object to what a trigger inserts: that is the row's fault.
        if failed.sqlstate == "23505" and copying:
            key = (error.schema_name or "", error.constraint_name or "")
            if key in self._keys or await schema.is_key(connection, *key):
                self._keys.add(key)
                failed.verdict = Verdict.DUPLICATE
        elif failed.reason == SCHEMA and (found := await schema.difference(connection)):
            failed.message = found

    def _drop(self) -> None:
        """Cut the connection, whatever the server is doing with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


async def _copy(connection: Connection, tuples: Sequence[bytes], *, staging: bool = False) -> int:
    """COPY encoded rows in one message; return how many rows the server took."""
    if connection.is_closed():  # the driver does not look, and fails as no driver's error does
        raise asyncpg.InterfaceError("the line was cut before the rows were sent")
    tag = await connection.copy_to_table(
        STAGING if staging else TABLE,
        schema_name="pg_temp" if staging else None,
        # One message. Not bytes: the driver takes those for a path.
        source=memoryview(b"".join((HEADER, *tuples, TRAILER))),  # type: ignore[arg-type]
        columns=KEY,
        format="binary",
        where=None if staging else TYPE_GUARD,
    )
    return _count(tag)


async def _store_staged(connection: Connection, tuples: Sequence[bytes]) -> int:
    """COPY encoded rows aside and INSERT those that are new; return how many. In a transaction."""
    await _copy(connection, tuples, staging=True)
    return _count(await connection.execute(_INSERT_STAGED))


async def _insert_arrays(connection: Connection, tuples: Sequence[bytes]) -> int:
    """INSERT encoded rows as arrays, ON CONFLICT DO NOTHING; return how many are new."""
    rows = list(decode_rows(b"".join(tuples)))
    tag = await connection.execute(
        _INSERT_ARRAYS,
        [(row.ts_us - PG_EPOCH_US,) for row in rows],
        [row.device_id for row in rows],
        [row.metric for row in rows],
        [row.value for row in rows],
    )
    return _count(tag)


def _count(tag: str) -> int:
    """Return the rows of a command tag such as `COPY 5` or `INSERT 0 5`."""
    return int(tag.rsplit(" ", 1)[1])


def _text(error: BaseException) -> str:
    silent = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return str(error) or silent
