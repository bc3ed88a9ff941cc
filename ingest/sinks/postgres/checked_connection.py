"""A connection on which nothing is written before its session and its table have been checked.

The session: it is our own, its time limits are in effect, and no connections of ours hang. A
table: in full at the start and every `schema_check_s`, and at each write by the server itself. The
start of a declared table is the first write to it.
Promises: each failure is a WriteFailed with a verdict. No exchange takes longer than its deadline.
The table's schema is found once for all connections of a process; later every statement names it.
Does not: know how rows are stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import asyncpg

from ingest.model.causes import (
    CONFIGURATION,
    NO_STANDBY,
    NOT_DURABLE,
    OF_ONE_ROW,
    SCHEMA,
    TOO_MANY_CONNECTIONS,
    Verdict,
    WriteFailed,
)
from ingest.model.moments import TableForm
from ingest.sinks.postgres import durability, schema
from ingest.sinks.postgres.checked_table import CheckedTable, explain
from ingest.sinks.postgres.connection import (
    DRIVER_ERRORS,
    HUNG_S,
    Connection,
    DatabaseUrl,
    Expired,
    OneConnection,
    Record,
    SessionNotKept,
    Timeouts,
    address,
    connect,
    deadline,
    limits_ms,
    text_of,
    unreachable_reason,
)
from ingest.sinks.postgres.sqlstate import (
    LOCKED,
    NO_SUCH_STATEMENT,
    reason_for,
    server_failed,
    server_refused,
)
from ingest.sinks.postgres.statements import (
    ALTERED,
    LOCKED_BY,
    prepare_for_insert,
)
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger

# A table may be altered several times in a row, as deploy/partition-a-table.sql does it.
ALTERED_TRIES = 5
NO_COPY = "0A000"  # also of other things that PostgreSQL has not
UNSAFE_WARNING_S = 3600.0  # between warnings that the database may lose what it has committed
_ROW_SECURITY = "select row_security_active($1::text)"
_EXAMINED = OF_ONE_ROW | {Verdict.HOLD}
_HARMLESS = OF_ONE_ROW | {Verdict.DUPLICATE}  # for the connection

# `backend` is one server process: a pid alone may soon be that of another client.
_SESSION = """
select (select format('%s %s', pid, extract(epoch from backend_start))
        from pg_stat_get_activity(pg_backend_pid())) as backend,
       current_user::text as role,
       has_database_privilege(current_database(), 'TEMP') as may_temp,
       (select array_agg((1000 * extract(epoch from current_setting(name)::interval))::int8
                         order by at)
        from unnest(array['statement_timeout', 'lock_timeout',
                          'idle_in_transaction_session_timeout']) with ordinality as t (name, at)
       ) as limits_ms"""
# Server processes of ours that may hang: of cut connections ($1), not of those in use ($2), and
# those of other processes of ours, also dead ones, that wait for a standby.
_OTHERS = """
select backend, coalesce(state, '') as state, coalesce(wait_event, 'no event') as waits,
       coalesce(wait_event = 'SyncRep', false) as standby,
       extract(epoch from clock_timestamp() - state_change)::float8 as since_s,
       case when backend = any ($1) and state <> 'idle' and wait_event = 'ClientRead'
            then pg_terminate_backend(pid) else false end as ended
from pg_stat_activity,
     format('%s %s', pid, extract(epoch from backend_start)) as backend
where pid <> pg_backend_pid() and usename = session_user and datname = current_database()
  and application_name like 'iot-ingest%' and not backend = any ($2)
  and (backend = any ($1) or wait_event = 'SyncRep')"""
READINGS_ONLY: tuple[TableForm | None, ...] = (None,)

T = TypeVar("T")
log = get_logger("database")
_occasionally = Occasionally(UNSAFE_WARNING_S)  # for all connections together


class CheckedConnection(OneConnection):
    """One connection to `database_url`, which is opened when it is first needed.

    `method` is `copy` or `insert`. `unsafe` allows a database that may lose a commit. The server
    shows `name` as application_name. `known` is shared by the sinks of one process. `on_checked` is
    given the URL after each connect at which no check found a fault.
    """

    def __init__(
        self,
        database_url: DatabaseUrl,
        timeouts: Timeouts,
        *,
        method: str,
        unsafe: bool,
        name: str,
        known: KnownServer,
        on_checked: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self._database_url = database_url
        self._timeouts = timeouts
        self._unsafe = unsafe
        self._name = name
        self._known = known
        self._on_checked = on_checked
        self._session_number = 0
        self._backend: str | None = None  # the server's process, once the session was checked
        self._connecting: asyncio.Timeout | None = None
        # The tables that were met on this connection, by their forms. None is `readings`.
        self.tables: dict[TableForm | None, CheckedTable] = {}
        self._keys: set[tuple[str, str]] = set()

    async def open(self) -> None:
        """Connect within `connect_s_max`, and check the table. Does nothing if already open."""
        if self.is_open and self._session_number == self._known.session_number:
            return
        url = self._database_url()
        self.drop()
        async with AsyncExitStack() as opening:
            await self._connect(url, opening)
            self._session_number = self._known.session_number
            async with self.exchange(opening=True) as connection:
                await self._enter(connection)
        await self._check_table(None)
        if self._on_checked is not None:
            self._on_checked(url)

    async def _connect(self, url: str, opening: AsyncExitStack) -> None:
        """Connect, one sink of the process at a time; `opening` ends this."""
        timeouts = self._timeouts
        try:
            async with asyncio.timeout(timeouts.connect_s_max) as self._connecting:
                await opening.enter_async_context(self._known.opening)
                self.connection = await connect(
                    url,
                    name=self._name,
                    statement_s_max=timeouts.statement_s_max,
                    lock_s_max=timeouts.lock_s_max,
                    within_s=timeouts.connect_s_max,
                )
        except asyncpg.TargetServerAttributeNotMatched as error:
            raise WriteFailed(Verdict.WAIT, "it is read-only", sqlstate="25006") from error
        except ValueError as error:  # the URL; the driver has its own class for some of it
            raise WriteFailed(Verdict.HOLD, str(error), reason=CONFIGURATION) from error
        except SessionNotKept as error:
            raise self._known.not_kept() from error
        except asyncpg.PostgresError as error:
            raise server_refused(error) from error
        except DRIVER_ERRORS as error:
            text = f"{address(url)}: {text_of(error)}"
            reason = unreachable_reason(error)
            raise WriteFailed(Verdict.WAIT, text, reason=reason) from error
        finally:
            self._connecting = None

    async def _enter(self, connection: Connection) -> None:
        """Check the session, and make it ready."""
        timeouts = self._timeouts
        session = await self._known.enter(
            connection, limits_ms(timeouts.statement_s_max, timeouts.lock_s_max)
        )
        self._backend = session["backend"]
        self.tables.clear()
        if self.method == "insert":
            await prepare_for_insert(connection)
        elif not session["may_temp"]:
            text = f"the role {session['role']} may not make temporary tables (TEMP)"
            raise WriteFailed(Verdict.HOLD, text, sqlstate="42501", reason=reason_for("42501"))

    def drop(self) -> None:
        """Cut the connection, whatever is under way on it."""
        self._leave()
        super().drop()

    async def close(self) -> None:
        """Close in order, within a second."""
        self._leave()
        await super().close()

    def _leave(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            self._known.leave(backend)

    def abort(self) -> None:
        """Cut the connection now. A call under way fails with WriteFailed(WAIT)."""
        if self._connecting is not None and not self._connecting.expired():
            self._connecting.reschedule(asyncio.get_running_loop().time())
        if self.connection is not None:
            self.connection.terminate()

    async def ready(self, forms: Sequence[TableForm | None] = READINGS_ONLY) -> None:
        """Open the connection if need be, and check each table whose last check is too old."""
        await self.open()
        too_old_s = clock.monotonic_s() - self._timeouts.schema_check_s
        for form in forms:
            table = self.tables.get(form)
            if table is None or table.sql is None or table.checked_s <= too_old_s:
                await self._check_table(form)

    def target_of(self, form: TableForm | None) -> schema.Target:
        """Return the table of a form, in the schema of `readings` once that was found."""
        known = self._known.target
        return known if form is None else schema.ColumnTarget(known.schema, form)

    def _targets(self, forms: Sequence[TableForm | None]) -> list[schema.Target]:
        return [self.target_of(form) for form in forms]

    async def _check_table(self, form: TableForm | None) -> None:
        """Check in full that a table is as we need it, and that the server keeps a commit."""
        known = self._known
        table = self.tables.setdefault(form, CheckedTable())
        async with self.exchange((form,), opening=True) as connection:
            look = await schema.look(connection, self.target_of(form))
            found, reason = look.difference, SCHEMA
            if found is None:
                kept = await durability.findings(connection, look.target)
                if fault := durability.fault(kept):
                    found, reason = self._not_durable(fault), NOT_DURABLE
            if found is None and table.sql is None:
                await table.prepare(connection, look, known.target)
        if found is not None:
            self.drop()
            raise WriteFailed(Verdict.HOLD, found, reason=reason)
        known.found(look)
        table.checked_s = clock.monotonic_s()

    def _not_durable(self, fault: str) -> str | None:
        """Return why the database is refused for this fault, or None if `unsafe` allows it."""
        if not self._unsafe:
            return durability.refusal(fault)
        if _occasionally.due("unsafe") is not None:
            log.warning("database_not_durable", why=fault)
        return None

    async def checked(
        self,
        forms: Sequence[TableForm | None],
        do: Callable[[Connection], Awaitable[T]],
        *,
        doubt: bool = False,
        copying: bool = False,
    ) -> T:
        """Do what begins with the check of tables. If one was altered, check all in full first."""
        for left in reversed(range(ALTERED_TRIES)):
            await self.ready(forms)
            try:
                async with self.exchange(forms, doubt=doubt, copying=copying) as connection:
                    return await do(connection)
            except WriteFailed as failed:
                if not (left and failed.sqlstate == ALTERED):
                    raise
            for table in self.tables.values():
                table.sql = None
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def exchange(
        self,
        forms: Sequence[TableForm | None] = READINGS_ONLY,
        *,
        opening: bool = False,
        doubt: bool = False,
        copying: bool = False,
        undo: str = "rollback",
        rows_at_fault: bool = False,
    ) -> AsyncIterator[Connection]:
        """Talk to the server within a deadline. Each failure is raised as WriteFailed.

        `forms` are the tables that it is about, which a failure asks for more.
        `doubt`: the rows may be committed even if the call fails. `copying`: the body is a plain
        COPY, which may violate our key. The connection is cut, unless the body succeeds or the
        server refuses a row; then `undo` has been executed. `rows_at_fault`: it is known that the
        table is right, and so it is not compared again for each of 5,000 rows.
        """
        connection = self.connection
        assert connection is not None, "an exchange needs an open connection"
        limit_s = self._timeouts.connect_s_max if opening else self._timeouts.command_s_max
        sound = False
        try:
            with deadline(connection, limit_s):
                try:
                    yield connection
                    sound = True
                except asyncpg.PostgresError as error:
                    failed = server_failed(error, self._targets(forms), doubt=doubt)
                    failed.may_be_row &= not opening
                    no_copy = copying and failed.sqlstate == NO_COPY
                    if failed.verdict in _EXAMINED or no_copy or failed.sqlstate == LOCKED:
                        if not connection.is_closed() and connection.is_in_transaction():
                            await connection.execute(undo)
                        if not (rows_at_fault and failed.may_be_row):
                            await self._examine(connection, error, failed, forms, copying)
                    sound = failed.verdict in _HARMLESS or failed.may_be_row
                    raise failed from error
        except Expired as error:
            verdict = Verdict.WAIT if opening else Verdict.RETRY
            raise WriteFailed(verdict, text_of(error), doubtful=doubt) from error
        except asyncpg.PostgresError as error:  # while another one was examined
            raise server_failed(error, self._targets(forms), doubt=doubt) from error
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
        forms: Sequence[TableForm | None],
        copying: bool,
    ) -> None:
        """Ask for more: whether our key was violated, how a table differs, who locks it."""
        for form in forms:
            if connection.is_closed() or failed.verdict is Verdict.DUPLICATE:
                return
            target = self.target_of(form)
            # Our key is violated despite ON CONFLICT if a trigger inserts a row: the row is at
            # fault.
            if failed.sqlstate == "23505" and copying:
                key = (error.schema_name or "", error.constraint_name or "")
                if key in self._keys or await schema.is_key(connection, *key, target):
                    self._keys.add(key)
                    failed.verdict = Verdict.DUPLICATE
            elif failed.sqlstate == NO_COPY and copying:
                if await connection.fetchval(_ROW_SECURITY, target.name):
                    self.tables[form].refuses_copy = True
                    failed.verdict = Verdict.DUPLICATE
            elif failed.sqlstate == LOCKED:
                locked_by = await connection.fetchval(LOCKED_BY, target.name)
                failed.message = "; ".join(filter(None, (failed.message, locked_by)))
            elif failed.sqlstate == NO_SUCH_STATEMENT:
                failed.message = self._known.not_kept().message
                return
            elif await explain(connection, target, failed):
                return


class KnownServer:
    """What the connections of one process know together about their server.

    If a server process of a connection that we cut still hangs, it counts as one of
    `connections_max`. So there are never more of ours at the server, but for the one that looks. If
    it waits for the rest of a batch, it is ended; no other is: one that waits for a standby has
    committed already.
    `target` is the table, with its schema once it was found. `opening` is held by a sink while it
    connects. `session_number` goes up when sessions turn out not to be kept: then every sink
    connects anew.
    """

    def __init__(
        self, connections_max: int = 1, target: schema.TargetTable = schema.READINGS
    ) -> None:
        self._connections_max = connections_max
        self._oids: dict[str, int] = {}  # by the names of the tables
        self._in_use = set[str]()  # server processes
        self._cut = set[str]()
        self.target = target
        self.opening = asyncio.Lock()
        self.session_number = 0

    def found(self, look: schema.Look) -> None:
        """Take what a full check without a difference has found."""
        target = look.target
        was = self._oids.get(target.name, look.oid)
        if look.oid != was:
            log.warning("table_replaced", table=target.name, oid=look.oid, oid_was=was)
        self._oids[target.name] = look.oid
        if isinstance(target, schema.TargetTable):
            self.target = target

    async def enter(self, connection: Connection, limits_ms: tuple[int, ...]) -> Record:
        """Check a new connection; return its session. Raises WriteFailed, and driver's errors.

        `limits_ms` are the time limits that must be in effect. Call `leave` with the session's
        `backend` at the end.
        """
        session = await connection.fetchrow(_SESSION)
        assert session is not None, "the question always has one row"
        if tuple(session["limits_ms"]) != limits_ms:
            raise self.not_kept()
        self._refuse_if_hung(await connection.fetch(_OTHERS, self._cut, self._in_use))
        self._in_use.add(session["backend"])
        return session

    def leave(self, backend: str) -> None:
        """A connection that has entered was closed or cut."""
        self._in_use.discard(backend)
        self._cut.add(backend)

    def not_kept(self) -> WriteFailed:
        """Return the failure if a session is not kept. All sinks connect anew after this."""
        self.session_number += 1
        return WriteFailed(Verdict.HOLD, str(SessionNotKept()), reason=CONFIGURATION)

    def _refuse_if_hung(self, others: list[Record]) -> None:
        self._cut &= {each["backend"] for each in others}
        hung = [
            each
            for each in others
            if each["since_s"] > HUNG_S and each["state"] != "idle" and not each["ended"]
        ]
        standby = [
            each
            for each in others
            if each["standby"] and (each["backend"] in self._cut or each["since_s"] > HUNG_S)
        ]
        if standby:
            text = (
                f"commits wait for a synchronous standby ({len(standby)} of our connections hang): "
                "start one, or correct synchronous_standby_names"
            )
            raise WriteFailed(Verdict.WAIT, text, reason=NO_STANDBY)
        if len(hung) + len(self._in_use) >= self._connections_max and hung:
            waits = ", ".join(sorted({each["waits"] for each in hung}))
            text = f"{len(hung)} connections that we cut still hang at the server ({waits})"
            raise WriteFailed(Verdict.WAIT, text, reason=TOO_MANY_CONNECTIONS)
