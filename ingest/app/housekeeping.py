"""Housekeeping in the background of a process that writes, and what it has found.

Each run is for one table: `readings`, then each declared table. It has a connection of its own, so
it never holds up a write. Several processes may do it: one of them runs, the others only look.
Promises: an error is logged, and tried again with the next run. Nothing here pauses writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from ingest.app.annexes import annexes, check_settings
from ingest.app.database import (
    housekeeping_url,
    late_of_tables,
    make_target,
    partitions_ahead,
    timeouts,
)
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings
from ingest.config.values import duration_us
from ingest.model.causes import Cause, Trouble, trouble_of
from ingest.model.errors import StartError
from ingest.model.ledger import Metric, Metrics
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.partitions import Growth, growth
from ingest.sinks.postgres.housekeeping.runs import Did, Job, Step
from ingest.sinks.postgres.housekeeping.table_state import HYPERTABLE, PARTITIONED, View
from ingest.sinks.postgres.schema import TargetTable
from ingest.system.clock import sleep_unless, unix_us
from ingest.system.logs import Occasionally, get_logger
from ingest.system.waiting import unless

PARTITIONS_END, RETENTION_WAITS = "partitions_end", "retention_waits"
HOUSEKEEPING_FAILS, PARTITION_MISSING = "housekeeping_fails", "partition_missing"
CAUSES = {
    RETENTION_WAITS: Cause(
        "old readings stay in the table until a person confirms that they are removed",
        "Give these commands the settings of the service. `{run} housekeeping plan` prints what "
        "would be dropped, and why it waits. If that is right: `{run} housekeeping run --yes`. If "
        "not, correct keep_hot.",
        "ingestretentionwaits",
        rank=150,
    ),
    HOUSEKEEPING_FAILS: Cause(
        "the housekeeping of the table could not do a step; readings are written as before",
        "Fix what the reason names, here or in `{log}` (housekeeping_step_failed, "
        "housekeeping_failed). Then the next run goes on by itself. To run it at once: "
        "`{run} housekeeping run`.",
        "ingesthousekeepingfails",
        rank=160,
    ),
    PARTITION_MISSING: Cause(
        "readings of days without a partition wait as dead letters, and the service makes none",
        "If the role of the service may not make partitions, or what makes them for late readings "
        "is not installed: run `{run} housekeeping run --from DAY` with the URL of the role that "
        "owns the table (DAY is the oldest of these days), or set housekeeping_url. If "
        "partitions_max leaves no more, now or within a day: see whether a device has a wrong "
        "clock (ts_min refuses its readings); if not, raise it. If another tool makes the "
        "partitions: let it make these. Then the readings come back by themselves.",
        "ingestpartitionsend",
        rank=170,
    ),
    PARTITIONS_END: Cause(
        "few partitions are left after the present one; when the last one is over, new readings "
        "become dead letters",
        "`{run} housekeeping status` says how many are left, and why no more are made. Set "
        "housekeeping_url to the role that owns the table, or run `{run} housekeeping run` as it.",
        "ingestpartitionsend",
        rank=180,
    ),
}
PAUSE_S = 600.0  # between two runs; what is due is due by the hour or by the day
WAITING_PAUSE_S = 60.0  # the same while a step waits for a person, who may have just confirmed it
WARNING_S = 3600.0
STOP_S_MAX = 1.0
WORDS_MAX = 500  # characters of what a step says
SPANS_LEFT_MIN = 3  # with fewer partitions ahead somebody should look
FAILED_PAUSES_S = (1.0, 5.0, 30.0, 60.0)  # after runs that failed in a row; then 60 s each

log = get_logger("housekeeping")


def housekeeping_jobs(
    settings: Settings, stopped: Callable[[], bool] = lambda: False, *, from_us: int | None = None
) -> list[Job]:
    """Return the jobs of the housekeeping, in the order in which their steps are done.

    `stopped` is asked by steps that take long. With `from_us` partitions are made from that time
    on. Raises StartError if a setting needs an annex that is not there.
    """
    check_settings(settings)
    jobs: list[Job] = [partitions_ahead(settings, from_us=from_us)]
    for each in annexes():
        if each.jobs is not None:
            jobs += each.jobs(settings, stopped)
    return jobs


class TableJobs:
    """`readings` and the declared tables, each with the jobs of its runs, in this order.

    The parameters are those of housekeeping_jobs. A declared table has no archive and no rollups.
    """

    def __init__(
        self,
        settings: Settings,
        stopped: Callable[[], bool] = lambda: False,
        *,
        from_us: int | None = None,
    ) -> None:
        self._readings = (
            make_target(settings),
            housekeeping_jobs(settings, stopped, from_us=from_us),
        )
        plain = replace(settings, archive_dir="", rollups=False)
        self._of_declared = housekeeping_jobs(plain, stopped, from_us=from_us)
        self._declared = [each.name for each in make_tables(settings).all]
        self._schema = settings.table_schema

    def __iter__(self) -> Iterator[tuple[TargetTable, list[Job]]]:
        yield self._readings
        for name in self._declared:  # in the schema that `readings` was found in meanwhile
            yield TargetTable(self._schema, name), self._of_declared

    def found(self, view: View) -> None:
        """Take over in which schema a table was found."""
        self._schema = view.schema or self._schema


class TableFound(NamedTuple):
    """What the last run has found of a table, and left.

    `hidden` is what is said of detached partitions that a run has left behind. With thousands of
    partitions it is not counted each time: so `bytes` is the sum of all, None without partitions.
    """

    view: View
    bytes: int | None
    oldest_us: int | None
    growth: Growth | None
    waiting: list[str]
    hidden: str


def ends_soon(view: View) -> bool:
    """Whether few partitions are left: readings of later days would become dead letters."""
    return view.kind == PARTITIONED and view.spans_ahead < SPANS_LEFT_MIN


def _said(step: Step, why: str) -> str:
    return f"{step.kind} {step.partition}: {why}"


class Housekeeping:
    """The housekeeping of one process, and `late`, which makes partitions for its writers.

    `url` is the writers'. `disk_free_bytes` returns the room on the disk of the database, if that
    is known.
    """

    def __init__(
        self,
        settings: Settings,
        url: DatabaseUrl,
        *,
        disk_free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._disk_free_bytes = disk_free_bytes
        self._url = housekeeping_url(settings, url)
        self.late = late_of_tables(settings, self._url)
        self._stopping = asyncio.Event()  # until `run` is given another one
        self._tables = TableJobs(settings, lambda: self._stopping.is_set())  # noqa: PLW0108
        self._found: dict[str, TableFound] = {}  # by the name of the table
        self._failed: dict[str, list[str]] = {}  # of the last run on each
        self._occasionally = Occasionally(WARNING_S)

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set. A run that is under way has STOP_S_MAX to end by itself."""
        self._stopping = stopping
        failures = 0
        pause_s = 0.0
        while not await sleep_unless(stopping, pause_s):
            # What a stop cuts off goes on in the next run, as after a kill.
            reports = await unless(stopping, self._all(stopping), grace_s=STOP_S_MAX)
            pause_s = min(PAUSE_S, WAITING_PAUSE_S) if self.waiting else PAUSE_S
            if reports is not None and all(reports):
                failures = 0
                if any(each is not None and each.has_more for each in reports):  # has ended early
                    pause_s = 0.0
            else:
                pause_s = min(PAUSE_S, FAILED_PAUSES_S[min(failures, len(FAILED_PAUSES_S) - 1)])
                failures += 1

    async def _all(self, stopping: asyncio.Event) -> list[runs.Report | None]:
        """Run once on each table."""
        return [await self._once(stopping, *each) for each in self._tables]

    async def _once(
        self, stopping: asyncio.Event, target: TargetTable, jobs: list[Job]
    ) -> runs.Report | None:
        """Run once; return None if another try may help soon."""
        settings = self._settings
        where = (self._url(), timeouts(settings), settings.partition_span, jobs)
        try:
            if settings.housekeeping:
                report = await runs.run(*where, target=target, stopped=stopping.is_set)
            else:
                report = await runs.look(*where, target=target)
        except Exception as error:
            # Such as an entry of the registry, or a file of the archive, that somebody has changed.
            # Posts must not stop for it, and would: an error that leaves a task ends the process.
            known = isinstance(error, StartError)
            why = str(error) if known else f"{type(error).__name__}: {error}"
            self._failed[target.table] = [why]
            # After a stop nothing is said: the last line is that of the drain.
            if not stopping.is_set() and self._occasionally.due(why) is not None:
                log.warning("housekeeping_failed", why=why, exc_info=not known)
            return None
        self._tables.found(report.view)
        self._look_at(target.table, report)
        needs = report.schema.needs
        if needs and self._occasionally.due(needs) is not None:
            log.warning("schema_version_differs", why=needs)
        for each in report.did:
            self._tell(each)
        return report

    def _tell(self, did: Did) -> None:
        """Log what became of a step; of those that say the same, one an hour."""
        step, partition, why = did.step.kind, did.step.partition, did.error or did.left
        if not why:
            log.info("housekeeping_did", step=step, partition=partition)
        elif self._occasionally.due((step, why)) is None:
            pass
        elif did.error:
            log.warning("housekeeping_step_failed", step=step, partition=partition, why=why)
        else:
            log.warning("housekeeping_step_left", step=step, partition=partition, why=why)

    def _look_at(self, table: str, report: runs.Report) -> None:
        """Keep what others ask for."""
        view = report.view
        self.late.seen(view)
        if not report.other_run:
            self._failed[table] = [
                _said(each.step, each.error) for each in report.did if each.error
            ]
        at_work = report.other_run or report.has_more
        is_partitioned = view.kind == PARTITIONED
        self._found[table] = TableFound(
            view,
            sum(each.bytes for each in view.partitions) if is_partitioned else None,
            report.oldest_us,
            growth(view.partitions, view.now_us, duration_us(self._settings.keep_hot)),
            [_said(each, each.waits) for each in report.due if each.waits],
            report.hidden_words if report.hidden and not at_work else "",
        )

    def trouble(self) -> Trouble:
        """Return what is wrong with the tables or their housekeeping, or nothing.

        The details are what the first step that failed says, or that waits; with paths of the
        machine. Before those that wait: which readings can get no partition. At the end: what is
        detached.
        """
        found = self._found.values()
        failed = list(chain.from_iterable(self._failed.values()))
        waiting = list(chain.from_iterable(each.waiting for each in found))
        hidden = "; ".join(filter(None, (each.hidden for each in found)))
        lacking = self.late.lacking
        said = failed or ([lacking] if lacking else waiting)
        more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
        shown = said[0][:WORDS_MAX] + more if said else ""
        ends = [each.view.table for each in found if ends_soon(each.view)]
        if ends:
            cause = PARTITIONS_END
            shown = "; ".join(filter(None, (f"few are left of {', '.join(ends)}", shown)))
        elif failed or hidden:
            cause = HOUSEKEEPING_FAILS
        elif lacking:
            cause = PARTITION_MISSING
        else:
            cause = RETENTION_WAITS if waiting else ""
        return trouble_of(CAUSES, cause, "; ".join(filter(None, (shown, hidden))))

    @property
    def partitioned(self) -> list[TableFound]:
        """The tables that have partitions."""
        return [each for each in self._found.values() if each.view.kind == PARTITIONED]

    def full_in_s(self) -> float | None:
        """Return when the tables fill the disk of their database, if that disk is known."""
        free = self._disk_free_bytes()
        grows = [each.growth for each in self._found.values() if each.growth is not None]
        if not grows or free is None:
            return None
        return Growth(
            sum(each.bytes_per_s for each in grows), max(each.ends_in_s for each in grows)
        ).full_in_s(free)

    @property
    def oldest_us(self) -> int | None:
        """When the oldest reading was measured."""
        found = [each.oldest_us for each in self._found.values()]
        return min((each for each in found if each is not None), default=None)

    @property
    def waiting(self) -> int | None:
        """How many steps wait for a person; None if no table can have some."""
        kinds = (PARTITIONED, HYPERTABLE)
        found = [each for each in self._found.values() if each.view.kind in kinds]
        return sum(len(each.waiting) for each in found) if found else None

    @property
    def failed(self) -> int | None:
        """How many steps the last runs could not do; None before the first one."""
        return sum(map(len, self._failed.values())) if self._failed or self._found else None


METRICS: Metrics[Housekeeping] = (
    Metric(
        "partitions",
        "Partitions of all our tables.",
        lambda it: (
            sum(len(each.view.partitions) for each in it.partitioned) if it.partitioned else None
        ),
    ),
    Metric(
        "partition_spans_ahead",
        "Days or months ahead that have a partition, at least.",
        lambda it: min((each.view.spans_ahead for each in it.partitioned), default=None),
    ),
    Metric(
        "table_bytes",
        "Bytes of all partitions, with their indexes.",
        lambda it: sum(each.bytes or 0 for each in it.partitioned) if it.partitioned else None,
    ),
    Metric(
        "table_full_in_seconds",
        "Until the embedded database fills its disk.",
        lambda it: it.full_in_s(),
    ),
    Metric(
        "housekeeping_steps_waiting",
        "Steps that wait for a person.",
        lambda it: it.waiting,
    ),
    Metric(
        "housekeeping_steps_failed",
        "Steps that the last run could not do; 1 if it could not run.",
        lambda it: it.failed,
    ),
    Metric(
        "table_oldest_age_seconds",
        "Age of the oldest reading in the table.",
        lambda it: None if it.oldest_us is None else (unix_us() - it.oldest_us) / 1e6,
    ),
)
