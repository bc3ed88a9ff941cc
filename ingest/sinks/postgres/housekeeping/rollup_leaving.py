"""Computes what a detached partition still has for the rollups, before it is dropped.

No partition is detached before its readings are in the rollups. But a late reading may be committed
between that check and the end of the detach. Its record is there, and its reading only in the
detached table, to which nobody writes any more.
Promises: a record is removed only in a transaction that computes its series. Killed at any moment,
it may be called again. It takes about BUDGET_S at most, with its pauses. The driver's errors pass
through.
"""

from __future__ import annotations

from collections.abc import Callable

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping import rollup_late, rollup_left, rollup_state
from ingest.sinks.postgres.housekeeping.plan import NotYet
from ingest.sinks.postgres.housekeeping.rollup_run import Run
from ingest.sinks.postgres.housekeeping.rollup_tables import RollupSpans
from ingest.sinks.postgres.housekeeping.spans import TimeSpan
from ingest.sinks.postgres.housekeeping.view import View
from ingest.sinks.postgres.target import KEY_LIST, TargetTable
from ingest.system.clock import monotonic_s

BUDGET_S = 120.0  # of one table
_SETTINGS = """set local statement_timeout = 0; set local jit = off;
set local max_parallel_workers_per_gather = 0; set local plan_cache_mode = force_custom_plan"""


async def compute(
    connection: Connection,
    view: View,
    table_oid: int,
    detached: TargetTable,
    span: TimeSpan,
    *,
    stopped: Callable[[], bool],
) -> None:
    """Compute the hours of a span that have late readings, from `detached` and the other readings.

    Nothing, if there are no rollups. Usually nothing is due. A reading counts once, also if it came
    again after the detach, and so is in both. Raises NotYet if some are left for the next run.
    """
    at = await rollup_state.progress(connection, view.table)
    if at is None:
        return
    target = view.target._replace(schema=view.schema, table=view.name)
    spans = RollupSpans()
    run = Run(
        connection,
        view.oid,
        target,
        spans=spans,
        end_s=monotonic_s() + BUDGET_S,
        stopped=stopped,
        part_us=0,
    )
    run.at = at
    run.left = await rollup_left.left(connection, view.table, spans)
    source = (
        f"(select {KEY_LIST} from {target.source} a "  # noqa: S608
        f"union select {KEY_LIST} from {detached.source} b)"
    )
    here = rollup_left.within([rollup_left.whole(span, spans.hour_us)])
    await rollup_late.gather(run, here)
    by_index = await rollup_late.has_device_index(connection, table_oid, target)
    some = True
    while some:
        if run.ended():
            raise NotYet(rollup_state.LATE_MISSING)
        async with connection.transaction():
            await connection.execute(_SETTINGS)
            some = await rollup_late.compute_some(run, here, by_index=by_index, source=source)
        await run.rest()
