"""The runs of housekeeping, each with a connection of its own: look, plan, do, and look again.

Each job plans its own steps: partitions ahead, retention, archive. A step that fails does not stop
the steps of other partitions; those of the same one are done by a later run. A run with many steps
ends early, after RUN_S, and the next one plans anew. So partitions are made ahead, and rollups
computed, also while hundreds of partitions are archived.
Promises: each failure of the whole run is a StartError; of a step, it is in the report. A step
waits for a lock at most `lock_timeout` of the session, some times. Two runs never do a step at the
same time, in whatever processes they are. A run that was killed is continued by the next one: what
is due is read from the database each time.
Does not: know what a step does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import (
    DRIVER_ERRORS,
    Connection,
    PostgresError,
    Timeouts,
    opened,
    text_of,
)
from ingest.sinks.postgres.housekeeping.partitions import BEGINNING_US, END_US
from ingest.sinks.postgres.housekeeping.registry import OtherRun, SchemaState, alone, state_of
from ingest.sinks.postgres.housekeeping.table_state import View, look_at, oldest_us
from ingest.sinks.postgres.schema import READINGS, TargetTable
from ingest.system.clock import monotonic_s
from ingest.system.words import counted

HIDDEN_SHOWN_MAX = 5
RUN_S = 900.0  # after it a run begins no further step
TRIES = 3
TRY_AGAIN_S = 0.5
_TRY_AGAIN = frozenset({"55P03", "40P01", "40001"})  # lock_timeout, deadlock, serialization


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


class Report(NamedTuple):
    """The table at the end, the time of its oldest reading, what is due, and what was done.

    `facts` are those of the jobs. `other_run`: nothing was done, because another run is
    under way. `schema` is the version of what was found; if it refuses, nothing was done either.
    `has_more`: the run has ended early, and no step has failed: the next one may begin at once.
    """

    view: View
    oldest_us: int | None
    due: list[Step]
    did: list[Did]
    facts: Mapping[str, Any] = MappingProxyType({})
    other_run: bool = False
    schema: SchemaState = SchemaState(None)
    has_more: bool = False

    @property
    def hidden(self) -> Sequence[str]:
        """The partitions that are detached, but not yet archived or dropped."""
        found: Sequence[str] = self.facts.get("detached", ())
        return found

    @property
    def hidden_words(self) -> str:
        """What is to be said of `hidden`, if there are any."""
        return (
            f"{counted(len(self.hidden), 'partition')} detached, but not yet archived or dropped: "
            f"{', '.join(self.hidden[:HIDDEN_SHOWN_MAX])}. The readings are not lost; no query "
            "sees them until a run succeeds. If no run is at work: `ingest housekeeping run`"
        )


async def look(
    url: str, timeouts: Timeouts, span: str, jobs: Sequence[Job], *, target: TargetTable = READINGS
) -> Report:
    """Look at the table, and plan; change nothing."""
    async with opened(url, timeouts) as connection:
        view = await look_at(connection, target.name, span, target=target)
        found = await state_of(connection, view.table)
        return (await _report(connection, view, jobs))._replace(schema=found)


async def run(
    url: str,
    timeouts: Timeouts,
    span: str,
    jobs: Sequence[Job],
    *,
    target: TargetTable = READINGS,
    yes: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Look, do what is due, and look again. With `yes` also the steps that wait for a person."""
    began_s = monotonic_s()
    async with opened(url, timeouts) as connection:
        view = await look_at(connection, target.name, span, target=target)
        found = await state_of(connection, view.table)
        did, other_run = list[Did](), False
        try:
            if not found.refuses:
                did = await do_due(connection, view, jobs, yes=yes, stopped=stopped, within_s=RUN_S)
        except OtherRun:
            other_run = True
        if connection.is_closed() and did and did[-1].error:
            raise StartError(did[-1].error)  # of more use than that the connection is closed
        if did:
            view = await look_at(connection, target.name, span, target=target)
        report = await _report(connection, view, jobs)
        is_over = bool(did) and monotonic_s() - began_s >= RUN_S
        has_more = is_over and not any(each.error for each in did)
        return report._replace(did=did, other_run=other_run, schema=found, has_more=has_more)


async def run_all(
    url: str,
    timeouts: Timeouts,
    span: str,
    jobs: Sequence[Job],
    *,
    target: TargetTable = READINGS,
    yes: bool = False,
) -> Report:
    """Run until a run has done all that was due, or a step has failed; report on all of them."""
    did: list[Did] = []
    while True:
        report = await run(url, timeouts, span, jobs, target=target, yes=yes)
        did += report.did
        if not report.has_more:
            return report._replace(did=did, other_run=report.other_run and not did)


async def _report(connection: Connection, view: View, jobs: Sequence[Job]) -> Report:
    """Return what is due, and how the table is."""
    due = await due_steps(connection, view, jobs)
    facts: dict[str, Any] = {}
    for job in jobs:
        facts |= await job.facts(connection, view)
    return Report(view, await oldest_us(connection, view), due, [], facts)


async def due_steps(connection: Connection, view: View, jobs: Sequence[Job]) -> list[Step]:
    """Return the steps of all jobs, in the order of the jobs."""
    return [step for job in jobs for step in await job.plan(connection, view)]


async def do_due(
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
        for step in await due_steps(connection, view, jobs):
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
        except (PostgresError, *DRIVER_ERRORS, StartError) as error:
            failed = text_of(error)
            if getattr(error, "sqlstate", None) not in _TRY_AGAIN:
                break
        else:
            return Did(step)
    return Did(step, failed)
