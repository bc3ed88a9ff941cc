"""The job of housekeeping that makes the rollups, computes them, and removes old ones.

An hour is computed once, some time after its end. A reading that comes later is recorded by a
trigger, in its own transaction; then its series is computed again for this hour and its day.
Promises: what is stored equals a computation from all readings of the times that have not left the
table, once no late reading waits. It may be killed at any moment, and the next run goes on. It has
no lock that a write waits for, but for a moment when it makes its trigger.
Does not: notice readings that are changed or removed; rollups outlive their readings. What has left
is final. Nor may two runs work at the same time: runs.py sees to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.runs import Job, Step
from ingest.sinks.postgres.housekeeping.table_state import HYPERTABLE, PARTITIONED, PLAIN, View
from ingest.sinks.postgres.schema import READINGS, TargetTable
from ingest.system.clock import monotonic_s, rfc3339_or_us
from ingest.system.words import counted
from ingest.years.rollups import run as rollup_run
from ingest.years.rollups import state, tables
from ingest.years.rollups.run import Run
from ingest.years.rollups.state import Progress, progress
from ingest.years.rollups.tables import Key

KIND, OFF = "rollups", "rollups_off"
BUDGET_S = 300.0  # of one run
PART_US_FIRST = 60_000_000
HOLD_MS_MAX = 10_000  # writers wait while the trigger is made
# While it waits for its lock, all writers who come later wait too: a writer of ours for 3 s
# (`lock_s_max`). An autovacuum gives way after a second (`deadlock_timeout`). runs.py tries again.
LOCK_MS_MAX = 2_000
STOP_S, STOP_POLL_S = 3.0, 0.5

# What a crash takes with it is computed again: how far we are is in the same transaction. A commit
# of others that is durable, such as that of a drop, makes all before it durable.
SESSION = """set jit = off; set max_parallel_workers_per_gather = 0; set work_mem = '64MB';
set plan_cache_mode = force_custom_plan; set statement_timeout = 0;
set synchronous_commit = off"""
_RESET = """reset jit; reset max_parallel_workers_per_gather; reset work_mem;
reset plan_cache_mode; reset synchronous_commit; set statement_timeout = """


class Rollups(Job):
    """The job. `wanted` is the setting; without it the trigger is removed if there is one.

    `keep_us` is how long rollups are kept; None: for ever. `on` names the table and its columns.
    `stopped` is asked between two statements, and ends a run early. `failed` is what the last run
    could not compute, and why.
    """

    kinds = frozenset({KIND, OFF})

    def __init__(
        self,
        *,
        wanted: bool,
        keep_us: int | None = None,
        on: TargetTable = READINGS,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.failed: dict[Key, str] = {}
        self._wanted = wanted
        self._keep_us = keep_us
        self._on = on
        self._stopped = stopped
        self._part_us = PART_US_FIRST

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return one step if anything is to be computed, made or removed."""
        if view.kind not in (PLAIN, PARTITIONED, HYPERTABLE):
            return []
        run = self._run(connection, view)
        if not self._wanted:
            is_on = await progress(connection, view.table) is not None
            if is_on or await tables.is_marking(connection, view.oid):
                return [Step(OFF, run.names.hourly, "rollups are off: remove their trigger")]
            return []
        why = "make the tables of rollups, and compute them"
        if _is_not_owner(view):  # then it may not see what is due; `do` says so
            why = "compute what is due"
        elif await tables.is_made(connection, view.oid, run.target):
            why = await self._due(run, view)
        return [Step(KIND, run.names.hourly, why)] if why else []

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Compute for about BUDGET_S; what is left is for the next run."""
        if _is_not_owner(view):
            raise StartError(view.cannot_make)
        run = self._run(connection, view)
        run.registry = await registry.make(connection, view.table, view.owner)
        if step.kind == OFF:
            async with connection.transaction():
                await tables.unmake(connection, view.oid, run.target)
                at = await state.last(connection, view.table) or Progress()
                # What was dropped stays known, for when they are on again.
                off = Progress(gone=at.gone, off=True, late_left=at.late_left)
                await state.put(connection, run.registry, off)
            return
        run.failed = self.failed
        run.failed.clear()
        limit = await connection.fetchval("show statement_timeout")
        await connection.execute(SESSION)
        try:
            await self._compute_unless_stopped(run, view)
        finally:
            self._part_us = run.part_us
            if not connection.is_closed():
                await connection.execute(f"{_RESET} '{limit}'")
        for (hour, device_id, metric), why in run.failed.items():
            raise StartError(
                f"{counted(len(run.failed), 'rollup')} could not be computed, such as that of "
                f"{device_id}, {metric}, {hour}: {why}. The others do not wait for it"
            )

    async def facts(self, connection: Connection, view: View) -> dict[str, Any]:
        """Return until when all hours are computed, and how many late readings no rollup has."""
        at = await progress(connection, view.table)
        if at is None:
            return {}
        until = None if at.until_us is None else rfc3339_or_us(at.until_us)
        return {"rollups_until": until, "rollups_lack_late": at.late_left}

    def _run(self, connection: Connection, view: View) -> Run:
        return Run(
            connection,
            view.oid,
            self._on._replace(schema=view.schema, table=view.name),
            end_s=monotonic_s() + BUDGET_S,
            stopped=self._stopped,
            part_us=self._part_us,
        )

    def _kept_from_us(self, run: Run, view: View) -> int | None:
        return None if self._keep_us is None else run.day(view.now_us - self._keep_us)

    async def _due(self, run: Run, view: View) -> str:
        """Return what is to be done, in words, or nothing."""
        try:
            await _load(run, view)
        except StartError as error:
            return str(error)  # the step fails, and says so
        if await rollup_run.is_due(run):
            return "compute hours with late readings again"
        if run.at.until_us != await run.closed_us():
            return "compute the hours that have ended"
        if rollup_run.next_day_us(run) is not None:
            return "compute the days that have ended"
        from_us = self._kept_from_us(run, view)
        if from_us is not None and await rollup_run.has_older(run, from_us):
            return "remove rollups older than keep_rollups"
        return ""

    async def _compute_unless_stopped(self, run: Run, view: View) -> None:
        """Cut the connection if a statement goes on for STOP_S after a stop. It is undone then.

        If the caller waits no longer, it is cut at once: nobody else may use it meanwhile.
        """
        work = asyncio.ensure_future(self._compute(run, view))
        stopped_s = 0.0
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=STOP_POLL_S)
                stopped_s = stopped_s + STOP_POLL_S if self._stopped() else 0.0
                if stopped_s > STOP_S:
                    run.connection.terminate()
        finally:
            if not work.done():
                run.connection.terminate()
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        await work

    async def _compute(self, run: Run, view: View) -> None:
        """Do all that is due until the time is over. Late readings come last: some may fail."""
        await self._make(run, view)
        await _load(run, view)
        await rollup_run.gather(run)
        await rollup_run.compute_hours(run)
        await rollup_run.compute_days(run)
        from_us = self._kept_from_us(run, view)
        if from_us is not None:
            await rollup_run.remove(run, from_us)
        await rollup_run.compute(run)

    async def _make(self, run: Run, view: View) -> None:
        """Make the tables and the trigger if need be: then all hours are computed anew.

        Nobody knows which late readings came while there was no trigger.
        """
        connection, oid = run.connection, view.oid
        if not await tables.is_made(connection, oid, run.target):
            async with connection.transaction():
                await connection.execute(
                    f"set local lock_timeout = {LOCK_MS_MAX}; "
                    f"set local statement_timeout = {HOLD_MS_MAX}; "
                    f"lock table {view.table} in share row exclusive mode"
                )
                owner = "" if view.role == view.owner else view.owner
                await tables.make(connection, oid, run.target, owner)
                at = await state.last(connection, view.table) or Progress()
                await run.put(Progress(gone=at.gone, late_left=at.late_left))
        await tables.grant_to_readers(connection, oid, run.target, run.registry)


async def _load(run: Run, view: View) -> None:
    """Read how far the rollups are, and which are final."""
    run.at = await progress(run.connection, view.table) or Progress()
    run.frozen = await state.frozen(run.connection, view.table, run.at)


def _is_not_owner(view: View) -> bool:
    return bool(view.cannot_make) and not view.has_default
