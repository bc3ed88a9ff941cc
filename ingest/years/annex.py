"""What this annex adds to the lists of the main house, made from the settings.

pyarrow is loaded only when something is archived or read: it takes 60 MB of memory and half a
second, and it is an optional extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ingest.app.annexes import Annex
from ingest.config.named_files import archive_dir
from ingest.config.values import duration_us
from ingest.model.errors import StartError

if TYPE_CHECKING:
    from ingest.config.settings import Settings
    from ingest.sinks.postgres.connection import DatabaseUrl
    from ingest.sinks.postgres.housekeeping.runs import Job
    from ingest.sinks.postgres.lookup import RolledCurve
    from ingest.sinks.postgres.schema import TargetTable
    from ingest.years.archive.archiver import ParquetArchiver
    from ingest.years.archive.job import Detached
    from ingest.years.late_partitions import LatePartitions
    from ingest.years.retention import Policy


def retention_policy(settings: Settings) -> Policy | None:
    """Return how long readings stay in the table; None: for ever."""
    from ingest.years.retention import Policy  # noqa: PLC0415

    keep_us = duration_us(settings.keep_hot)
    if keep_us is None:
        return None
    return Policy(keep_us, settings.keep_hot, str(archive_dir(settings) or ""))


def late_partitions(settings: Settings, url: DatabaseUrl, target: TargetTable) -> LatePartitions:
    """Return what makes partitions for readings that find none; `url` is that of the owner."""
    from ingest.app.database import late_limit, timeouts  # noqa: PLC0415
    from ingest.years.late_partitions import LatePartitions  # noqa: PLC0415

    return LatePartitions(
        url,
        timeouts(settings),
        span=settings.partition_span,
        target=target,
        limit=late_limit(),
        partitions_max=settings.partitions_max,
        policy=retention_policy(settings),
    )


def jobs(settings: Settings, stopped: Callable[[], bool]) -> list[Job]:
    """Return the jobs of this annex. Rollups come before their readings leave.

    `stopped` is asked by steps that take long.
    """
    from ingest.app.database import make_target  # noqa: PLC0415
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
        found.append(Archiving(_archiving(settings, stopped)))
    return found


def parquet_archiver(
    settings: Settings, stopped: Callable[[], bool] = lambda: False
) -> ParquetArchiver:
    """Return the archiver of `archive_dir`. Raises StartError if there is none. Blocks.

    `stopped`: see ParquetArchiver.
    """
    folder = archive_dir(settings)
    if folder is None:
        raise StartError("there is no archive: archive_dir is not set")
    try:
        from ingest.years.archive.archiver import ParquetArchiver  # noqa: PLC0415
        from ingest.years.archive.files import ArchiveFolder  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"the archive needs pyarrow, which cannot be loaded ({error}): install "
            "iot-ingest[archive], or build the image with the argument ARCHIVE=1"
        ) from error
    kept = ArchiveFolder(folder, free_bytes_min=settings.disk_free_bytes_min)
    return ParquetArchiver(kept, stopped)


def _archiving(
    settings: Settings, stopped: Callable[[], bool]
) -> Callable[[Detached], Awaitable[None]]:
    """Return what archives partitions. The archiver is made for the first one."""
    made: ParquetArchiver | None = None

    async def archive(source: Detached) -> None:
        nonlocal made
        if made is None:
            made = await asyncio.to_thread(parquet_archiver, settings, stopped)
        await made.archive(source)

    return archive


def rolled_curve() -> RolledCurve:
    """Return what answers the questions of the page from rollups."""
    from ingest.years.rollups import curve  # noqa: PLC0415

    return curve.rolled_curve


ANNEX = Annex(jobs=jobs, late_partitions=late_partitions, rolled_curve=rolled_curve)
