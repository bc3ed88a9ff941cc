"""What this annex adds to the lists of the main house, made from the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ingest.app.annexes import Annex
from ingest.config.named_files import archive_dir
from ingest.config.values import duration_us

if TYPE_CHECKING:
    from ingest.config.settings import Settings
    from ingest.sinks.postgres.connection import DatabaseUrl
    from ingest.sinks.postgres.housekeeping.runs import Job
    from ingest.sinks.postgres.lookup import RolledCurve
    from ingest.years.late_partitions import LatePartitions
    from ingest.years.retention import Policy


def retention_policy(settings: Settings) -> Policy | None:
    """Return how long readings stay in the table; None: for ever."""
    from ingest.years.retention import Policy  # noqa: PLC0415

    keep_us = duration_us(settings.keep_hot)
    if keep_us is None:
        return None
    return Policy(keep_us, settings.keep_hot, str(archive_dir(settings) or ""))


def late_partitions(settings: Settings, url: DatabaseUrl, eager: bool = False) -> LatePartitions:
    """Return what makes partitions for readings that find none; `url` is that of the owner."""
    from ingest.app.storage import (  # noqa: PLC0415
        late_limit,
        make_target,
        timeouts,
    )
    from ingest.years.late_partitions import LatePartitions  # noqa: PLC0415

    return LatePartitions(
        url,
        timeouts(settings),
        span=settings.partition_span,
        target=make_target(settings),
        limit=late_limit(),
        partitions_max=settings.partitions_max,
        policy=retention_policy(settings),
        eager=eager,
    )


def jobs(settings: Settings, stopped: Callable[[], bool] = lambda: False) -> list[Job]:
    """Return the jobs of this annex. Rollups come before their readings leave.

    `stopped` is asked by steps that take long.
    """
    from ingest.app.storage import make_target  # noqa: PLC0415
    from ingest.years.archive.command import make_archiving  # noqa: PLC0415
    from ingest.years.archive.job import Archiving  # noqa: PLC0415
    from ingest.years.retention import Chunks, HalfDetached, Retention  # noqa: PLC0415
    from ingest.years.rollups.job import Rollups  # noqa: PLC0415

    policy = retention_policy(settings)
    rollups = Rollups(
        wanted=settings.rollups,
        keep_us=duration_us(settings.keep_rollups),
        on=make_target(settings),
        stopped=stopped,
    )
    retention = Retention(
        policy,
        archive_dir=str(archive_dir(settings) or ""),
        rollups=settings.rollups,
        failed=rollups.failed,
    )
    found: list[Job] = [
        HalfDetached(),
        rollups,
        retention,
        Chunks(policy, rollups=settings.rollups),
    ]
    if settings.archive_dir:
        found.append(Archiving(make_archiving(settings, stopped)))
    return found


def rolled_curve() -> RolledCurve:
    """Return what answers the questions of the page from rollups."""
    from ingest.years.rollups import curve as curves  # noqa: PLC0415

    return curves.rolled_curve


ANNEX = Annex(jobs=jobs, late_partitions=late_partitions, rolled_curve=rolled_curve)
