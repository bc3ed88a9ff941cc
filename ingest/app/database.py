"""The connections to the database, made from the settings: who connects where, how long."""

from __future__ import annotations

from collections.abc import Callable

from ingest.app.archive import archiving
from ingest.app.target import make_target
from ingest.config.folders import archive_dir
from ingest.config.reread_url import RereadUrl
from ingest.config.settings import Settings
from ingest.config.values import duration_us
from ingest.sinks.postgres.connection import DatabaseUrl, Timeouts
from ingest.sinks.postgres.housekeeping.ahead import HalfDetached, PartitionsAhead
from ingest.sinks.postgres.housekeeping.archiving import Archiving
from ingest.sinks.postgres.housekeeping.chunks import Chunks
from ingest.sinks.postgres.housekeeping.keeping import Policy
from ingest.sinks.postgres.housekeeping.late import LateLimits, LatePartitions
from ingest.sinks.postgres.housekeeping.plan import Job
from ingest.sinks.postgres.housekeeping.retention import Retention
from ingest.sinks.postgres.housekeeping.rollups import Rollups
from ingest.sinks.postgres.housekeeping.spans import DAY_US

LATE_DAYS_MAX = 36_500  # an older reading is a faulty clock: no partition is made for it
PARTITIONS_AHEAD = 7  # beyond now + ts_ahead_s_max: a week to notice that no more are made


def timeouts(settings: Settings) -> Timeouts:
    """Return the time-outs of a connection that writes."""
    return Timeouts(
        connect_s_max=settings.connect_s_max,
        lock_s_max=settings.command_s_max / 5,
        statement_s_max=settings.command_s_max * 2 / 3,
        command_s_max=settings.command_s_max,
        schema_check_s=settings.schema_check_s,
    )


def housekeeping_url(settings: Settings, url: DatabaseUrl) -> DatabaseUrl:
    """Return what gives the URL of the owner's role; without one, that of the writers."""
    return RereadUrl(settings, "housekeeping_url") if settings.housekeeping_url else url


def partitions_ahead(settings: Settings, *, from_us: int | None = None) -> PartitionsAhead:
    """Return the job that makes partitions ahead of time; with `from_us` from that time on."""
    return PartitionsAhead(
        ahead_s=settings.ts_ahead_s_max,
        spans=PARTITIONS_AHEAD,
        from_us=from_us,
        partitions_max=settings.partitions_max,
    )


def retention_policy(settings: Settings) -> Policy | None:
    """Return how long readings stay in the table; None: for ever."""
    keep_us = duration_us(settings.keep_hot)
    if keep_us is None:
        return None
    return Policy(keep_us, settings.keep_hot, _archive(settings))


def _archive(settings: Settings) -> str:
    folder = archive_dir(settings)
    return str(folder) if folder is not None else ""


def late_partitions(settings: Settings, url: DatabaseUrl, *, eager: bool = False) -> LatePartitions:
    """Return what makes partitions for readings that find none; `url` is that of the owner."""
    return LatePartitions(
        url,
        timeouts(settings),
        span=settings.partition_span,
        target=make_target(settings),
        limits=LateLimits(
            late_us_max=LATE_DAYS_MAX * DAY_US,
            late_named=f"{LATE_DAYS_MAX:,} days",
            partitions_max=settings.partitions_max,
            policy=retention_policy(settings),
        ),
        eager=eager,
    )


def rollups(settings: Settings, stopped: Callable[[], bool]) -> Rollups:
    """Return the job that computes rollups, or removes what records late readings."""
    keep_us = duration_us(settings.keep_rollups)
    target = make_target(settings)
    return Rollups(wanted=settings.rollups, keep_us=keep_us, on=target, stopped=stopped)


def housekeeping_jobs(
    settings: Settings, stopped: Callable[[], bool] = lambda: False, *, from_us: int | None = None
) -> list[Job]:
    """Return the jobs of the housekeeping, in the order in which their steps are done.

    Rollups come before their readings leave. `stopped` is asked by steps that take long. With
    `from_us` partitions are made from that time on.
    """
    policy = retention_policy(settings)
    rolled = rollups(settings, stopped)
    jobs: list[Job] = [
        HalfDetached(),
        partitions_ahead(settings, from_us=from_us),
        rolled,
        Retention(
            policy,
            archive_dir=_archive(settings),
            rollups=settings.rollups,
            failed=rolled.failed,
        ),
        Chunks(policy, rollups=settings.rollups),
    ]
    if settings.archive_dir:
        jobs.append(Archiving(archiving(settings, stopped)))
    return jobs
