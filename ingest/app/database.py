"""The connections to the database, made from the settings: who connects where, how long."""

from __future__ import annotations

from collections.abc import Callable

from ingest.config.reread_url import RereadUrl
from ingest.config.settings import Settings
from ingest.sinks.postgres.connection import DatabaseUrl, Timeouts
from ingest.sinks.postgres.housekeeping.ahead import PartitionsAhead
from ingest.sinks.postgres.housekeeping.late import LatePartitions, Limits
from ingest.sinks.postgres.housekeeping.plan import Job
from ingest.sinks.postgres.housekeeping.rollups import Rollups
from ingest.sinks.postgres.schema import TABLE

DAY_US = 86_400_000_000


def timeouts(settings: Settings) -> Timeouts:
    """Return the time-outs of a connection that writes."""
    return Timeouts(
        connect_s_max=settings.connect_s_max,
        lock_s_max=settings.lock_s_max,
        statement_s_max=settings.statement_s_max,
        command_s_max=settings.command_s_max,
        schema_check_s=settings.schema_check_s,
    )


def housekeeping_url(settings: Settings, url: DatabaseUrl) -> DatabaseUrl:
    """Return what gives the URL of the owner's role; without one, that of the writers."""
    return RereadUrl(settings, "housekeeping_url") if settings.housekeeping_url else url


def partitions_ahead(settings: Settings) -> PartitionsAhead:
    """Return the job that makes partitions ahead of time."""
    return PartitionsAhead(ahead_s=settings.ts_ahead_s_max, spans=settings.partitions_ahead)


def late_partitions(settings: Settings, url: DatabaseUrl) -> LatePartitions:
    """Return what makes partitions for readings that find none; `url` is that of the owner."""
    return LatePartitions(
        url,
        timeouts(settings),
        span=settings.partition_span,
        table=TABLE,
        limits=Limits(
            late_us_max=int(settings.partition_late_days_max * DAY_US),
            partitions_max=settings.partitions_max,
        ),
    )


def rollups(settings: Settings, stopped: Callable[[], bool]) -> Rollups:
    """Return the job that computes rollups, or removes what records late readings."""
    keep_us = int(settings.keep_rollups_days * DAY_US)
    return Rollups(wanted=settings.rollups, keep_us=keep_us or None, stopped=stopped)


def housekeeping_jobs(settings: Settings, stopped: Callable[[], bool] = lambda: False) -> list[Job]:
    """Return the jobs of the housekeeping, in the order in which their steps are done.

    `stopped` is asked by steps that take long.
    """
    return [partitions_ahead(settings), rollups(settings, stopped)]
