"""Computes rollups of archived days again, for the series that have got late readings.

For each such series, all readings of its day are read into a temporary table: those of the files,
and those of the table that no file has. So the result is the same before a merge and after it.
Promises: a record of a late reading is removed only in the transaction that stores what it is for.
While a partition of a day is on its way into the archive, the records of this day wait. Killed at
any moment, the next run goes on. The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from asyncpg import Connection, Record

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import (
    archive_rows,
    registry,
    rollup_left,
    rollup_sql,
    rollup_state,
)
from ingest.sinks.postgres.housekeeping.archive_rows import RowsTable
from ingest.sinks.postgres.housekeeping.archived import Contents
from ingest.sinks.postgres.housekeeping.plan import Step
from ingest.sinks.postgres.housekeeping.rollup_run import US, Run
from ingest.sinks.postgres.housekeeping.rollup_tables import RollupSpans
from ingest.sinks.postgres.housekeeping.spans import BEGINNING_US, TimeSpan, literal
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View
from ingest.sinks.postgres.target import READINGS, TargetTable
from ingest.system.clock import monotonic_s

KIND = "rollups_archived"
BUDGET_S = 120.0  # of one step
SERIES_MAX = 2_000  # in one transaction
ROWS_MAX = 1_000_000  # readings in one transaction

_ROWS = RowsTable("pg_temp", "ingest_rollup_rows")
_MAKE_ROWS = """create temp table ingest_rollup_rows (ts timestamptz not null,
    device_id text collate "C" not null, metric text collate "C" not null,
    value double precision not null) on commit drop"""
_INDEX_ROWS = "create unique index on ingest_rollup_rows (device_id, metric, ts, value)"
_SESSION = """set local statement_timeout = 0; set local jit = off;
set local max_parallel_workers_per_gather = 0; set local work_mem = '64MB';
set local synchronous_commit = off"""


class ArchiveReader(Protocol):
    """Reads the files of an archive."""

    def rows_of_series(
        self, found: Contents, series: Sequence[tuple[str, str]], from_us: int, to_us: int
    ) -> AsyncIterator[bytes]:
        """Yield the rows of some series in a time, as binary COPY. Raises StartError."""


class ArchivedRollups:
    """A Job of plan.py, after that of the rollups, which gathers the records.

    `archive` is None if there is none: then only days without files can be computed. The others
    are as in rollups.py.
    """

    kinds = frozenset({KIND})

    def __init__(
        self,
        archive: ArchiveReader | None,
        *,
        keep_us: int | None = None,
        on: TargetTable = READINGS,
        spans: RollupSpans = RollupSpans(),  # noqa: B008  it cannot change
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._archive = archive
        self._keep_us = keep_us
        self._on = on
        self._spans = spans
        self._stopped = stopped

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return a step for the days of each archived partition that have late readings."""
        if view.kind != PARTITIONED:
            return []
        if await rollup_state.progress(connection, view.table) is None:
            return []
        left = await rollup_left.left(connection, view.table, self._spans)
        days = await rollup_left.days_with_late(connection, view, left, self._spans)
        steps: dict[str, Step] = {}
        for day in (TimeSpan(each, each + self._spans.day_us) for each in days):
            if left.is_hidden(day):
                continue
            found = left.of(day)
            if self._archive is None and any(each.files for each in found):
                continue  # `status` names the day
            name = found[0].name if found else view.name
            why = "late readings of archived days are not in their rollups"
            step = steps.get(name, Step(KIND, name, why, *day))
            steps[name] = step._replace(to_us=day.to_us)
        return list(steps.values())

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Compute for about BUDGET_S; what is left is for the next run."""
        at = await rollup_state.progress(connection, view.table)
        if at is None:  # rollups were turned off by a step before this one
            return
        run = Run(
            connection,
            view.oid,
            self._on._replace(schema=view.schema, table=view.name),
            spans=self._spans,
            end_s=monotonic_s() + BUDGET_S,
            stopped=self._stopped,
            part_us=0,
        )
        run.registry = await registry.make(connection, view.table, view.owner)
        run.at = at
        run.left = await rollup_left.left(connection, view.table, self._spans)
        span = TimeSpan(step.from_us, step.to_us)
        await connection.execute(
            f"delete from {run.names.due} where {rollup_left.within([span])} "  # noqa: S608
            f"and {self._left_out(run, view, span)}"
        )
        while not run.ended() and await self._compute_some(run, span):
            await run.rest()

    def _left_out(self, run: Run, view: View, span: TimeSpan) -> str:
        """Return what SQL asks of an `hour` in `span`: whether its rollups stay, or are removed."""
        left_out = (*run.at.gone, *run.left.lost)
        spans = [each for each in left_out if rollup_left.overlap(each, span)]
        if self._keep_us is not None:
            spans.append(TimeSpan(BEGINNING_US, run.day(view.now_us - self._keep_us)))
        return rollup_left.within(spans)

    async def _compute_some(self, run: Run, span: TimeSpan) -> bool:
        """Compute the days of some series; return whether any was due."""
        async with run.connection.transaction():
            await run.connection.execute(_SESSION)
            due = await _some_due(run, span)
            if not due:
                return False
            keys = [[row[name] for row in due] for name in ("day", "device_id", "metric")]
            await run.connection.execute(
                f"""delete from {run.names.due} d
                using unnest($1::text[]::timestamptz[], $2::text[], $3::text[]) k (day, a, b)
                where d.device_id = k.a and d.metric = k.b and d.hour >= k.day
                and d.hour < k.day + {_us(run.spans.day_us)}""",  # noqa: S608
                *keys,
            )
            day = TimeSpan(due[0]["day_us"], due[0]["day_us"] + run.spans.day_us)
            await self._read_rows(run, day, keys)
            of_rows = rollup_sql.of_rows(run.target, run.spans, _ROWS.name)
            await run.connection.execute(of_rows)
            if (days_us := run.at.days_until_us) is not None:
                days = rollup_sql.days_of_keys(run.target, run.spans, days_us)
                await run.connection.execute(days, *keys)
        return True

    async def _read_rows(self, run: Run, day: TimeSpan, keys: list[list[str]]) -> None:
        """Make the temporary table with all readings of these series in a day."""
        connection = run.connection
        series = list(zip(*keys[1:], strict=True))
        await connection.execute(_MAKE_ROWS)
        for each in run.left.of(day):
            if not each.files:
                continue
            if self._archive is None:
                raise StartError(f"archive_dir is not set, and {each.name} needs its files")
            rows = self._archive.rows_of_series(each, series, *day)
            await archive_rows.copy_in(connection, _ROWS, rows)
        await connection.execute(f"{_INDEX_ROWS}; analyze ingest_rollup_rows")
        await connection.execute(
            f"""insert into {_ROWS.name} select r.ts, r.device_id, r.metric, r.value
            from {run.target.source} r
            join unnest($1::text[], $2::text[]) k (a, b) on r.device_id = k.a and r.metric = k.b
            where r.ts >= {literal(day.from_us)} and r.ts < {literal(day.to_us)}
            on conflict do nothing""",  # noqa: S608
            *keys[1:],
        )


async def _some_due(run: Run, span: TimeSpan) -> list[Record]:
    """Return series that are due in the first such day, in the order of the files.

    So many that they do not have too many readings, as the rollups of before count them.
    """
    day = f"date_bin({_us(run.spans.day_us)}, hour, to_timestamp(0))"
    where = f"{rollup_left.within([span])} and not {run.left.hidden_days}"
    rows = await run.connection.fetch(
        f"""select d.day::text as day, d.device_id, d.metric, {US.format("d.day")} as day_us,
            coalesce(r.count, 0) as count
        from (select distinct {day} as day, device_id, metric from {run.names.due} where {where}
              and {day} = (select min({day}) from {run.names.due} where {where})) d
        left join {run.names.daily} r using (device_id, metric, day)
        order by d.device_id, d.metric limit {SERIES_MAX}"""  # noqa: S608
    )
    count = 0
    for number, row in enumerate(rows):
        count += row["count"]
        if number and count > ROWS_MAX:
            return rows[:number]
    return rows


def _us(us: int) -> str:
    return f"'{us} microseconds'::interval"
