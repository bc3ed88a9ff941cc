"""What the sinks of one process know together about their server.

It knows which table they write to, and which of their connections are in use or hang at the server.
Promises: the table's schema is found once; later every statement names it. If a server process of a
connection that we cut still hangs, it counts as one of `connections_max`. So there are never more
of ours at the server, but for the one that looks.
A server process that waits for the rest of a batch from a connection that we cut is ended.
Does not: end any other. One that waits for a standby has committed already.
"""

from __future__ import annotations

import asyncio

from asyncpg import Connection, Record

from ingest.model.verdict import (
    CONFIGURATION,
    NO_STANDBY,
    TOO_MANY_CONNECTIONS,
    Verdict,
    WriteFailed,
)
from ingest.sinks.postgres.connection import SessionNotKept
from ingest.sinks.postgres.schema import Look
from ingest.sinks.postgres.target import READINGS, TargetTable
from ingest.system.logs import get_logger

log = get_logger("database")

HUNG_S = 5.0  # a server process that is so long at one statement hangs, if its client is gone

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


class KnownServer:
    """Shared by the sinks of one process that use the same database.

    `target` is the table, with its schema once it was found. `opening` is held by a sink while it
    connects. `session_number` goes up when sessions turn out not to be kept: then every sink
    connects anew.
    """

    def __init__(self, connections_max: int = 1, target: TargetTable = READINGS) -> None:
        self._connections_max = connections_max
        self._oid = 0
        self._in_use = set[str]()  # server processes
        self._cut = set[str]()
        self.target = target
        self.opening = asyncio.Lock()
        self.session_number = 0

    def found(self, look: Look) -> None:
        """Take what a full check without a difference has found."""
        if self._oid and look.oid != self._oid:
            log.warning("table_replaced", table=look.target.name, oid=look.oid, oid_was=self._oid)
        self.target, self._oid = look.target, look.oid

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
