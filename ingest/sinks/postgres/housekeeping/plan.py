"""The plan of housekeeping: the steps that are due. `run` does them in order, one run at a time.

Each job plans its own steps: partitions ahead, retention, archive. A step that fails does not stop
the steps of other partitions; those of the same one are done by a later run.
Promises: a step waits for a lock at most `lock_timeout` of the session, some times. Two runs never
do a step at the same time, in whatever processes they are. A run that was killed is continued by
the next one: what is due is read from the database each time.
Does not: know what a step does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import DRIVER_ERRORS, text_of
from ingest.sinks.postgres.housekeeping.partitions import BEGINNING_US, END_US
from ingest.sinks.postgres.housekeeping.table_state import View, look_at
from ingest.system.clock import monotonic_s

TRIES = 3
TRY_AGAIN_S = 0.5
_TRY_AGAIN = frozenset({"55P03", "40P01", "40001"})  # lock_timeout, deadlock, serialization
_LOCK = "hashtextextended('iot-ingest housekeeping', $1::int8)"


class Step(NamedTuple):
    """One thing that is due. `partition` is a table without its schema; `why` is a sentence.

    `from_us` and `to_us` are its bounds. `waits` is not empty if a person must confirm the step
    first (`run --yes`), and says why.
    """

    kind: str
    partition: str
    why: str
    from_us: int = BEGINNING_US
    to_us: int = END_US
    waits: str = ""


class Did(NamedTuple):
    """What became of a step. `error` is why it failed, `left` why it was left for a later run.

    Both are empty if it was done.
    """

    step: Step
    error: str = ""
    left: str = ""


class Job:
    """One concern of housekeeping. It raises the driver's errors, and StartError with a reason.

    `kinds` are the kinds of the steps that it does.
    """

    kinds: frozenset[str] = frozenset()

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return the steps that are due, in order. Changes nothing."""
        return []

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Do one step. It may have been done in part before."""

    async def facts(self, connection: Connection, view: View) -> dict[str, Any]:
        """Return what `ingest housekeeping status` shows of this concern, by the names there."""
        return {}


class NotYet(StartError):
    """A step has to wait for something that comes by itself: it is left for a later run."""


class OtherRun(StartError):
    """Another run of housekeeping is under way on this table."""


async def plan(connection: Connection, view: View, jobs: Sequence[Job]) -> list[Step]:
    """Return the steps of all jobs, in the order of the jobs."""
    return [step for job in jobs for step in await job.plan(connection, view)]


async def run(
    connection: Connection,
    view: View,
    jobs: Sequence[Job],
    *,
    yes: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    within_s: float = math.inf,
) -> list[Did]:
    """Plan, and do the steps; return what became of each. With `yes` also those that wait.

    Raises OtherRun if a run is under way. `stopped` is asked before each step. After `within_s` no
    further step is begun: what is left is for the next run.
    """
    end_s = monotonic_s() + within_s
    by_kind = {kind: job for job in jobs for kind in job.kinds}
    did: list[Did] = []
    undone = set[str]()
    async with alone(connection, view.oid):
        # Another run may just have ended.
        view = await look_at(connection, view.table, view.span, target=view.target)
        for step in await plan(connection, view, jobs):
            if stopped() or connection.is_closed() or (did and monotonic_s() >= end_s):
                break
            if step.waits and not yes:
                did.append(Did(step, left=step.waits))
            elif step.partition not in undone:
                did.append(await _do(connection, view, by_kind[step.kind], step))
                if did[-1].error or did[-1].left:
                    undone.add(step.partition)
    return did


async def _do(connection: Connection, view: View, job: Job, step: Step) -> Did:
    """Do a step, again after a lock that was not free."""
    failed = ""
    for again in range(TRIES):
        if again:
            await asyncio.sleep(TRY_AGAIN_S * again)
        try:
            await job.do(connection, view, step)
        except NotYet as error:
            return Did(step, left=str(error))
        except (asyncpg.PostgresError, *DRIVER_ERRORS, StartError) as error:
            failed = text_of(error)
            if getattr(error, "sqlstate", None) not in _TRY_AGAIN:
                break
        else:
            return Did(step)
    return Did(step, failed)


@asynccontextmanager
async def alone(
    connection: Connection, table_oid: int, *, within_s: float = 0.0
) -> AsyncIterator[None]:
    """Hold the lock of the only run on a table. Raises OtherRun if another session keeps it."""
    end_s = monotonic_s() + within_s
    while not await connection.fetchval(f"select pg_try_advisory_lock({_LOCK})", table_oid):
        if monotonic_s() >= end_s:
            raise OtherRun("another housekeeping run is under way")
        await asyncio.sleep(TRY_AGAIN_S)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"select pg_advisory_unlock({_LOCK})", table_oid)
