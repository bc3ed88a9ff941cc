"""The archive, made from the settings. pyarrow is loaded only when something is archived or read.

It takes 60 MB of memory and half a second, and it is an optional extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ingest.config.named_files import archive_dir
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.years.archive.job import Detached

if TYPE_CHECKING:
    from ingest.years.archive.archiver import ParquetArchiver


def parquet_archiver(
    settings: Settings, stopped: Callable[[], bool] = lambda: False
) -> ParquetArchiver:
    """Return the archiver of `archive_dir`. Raises StartError if there is none. Blocks."""
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


def archiving(
    settings: Settings, stopped: Callable[[], bool]
) -> Callable[[Detached], Awaitable[None]]:
    """Return what archives partitions. The archiver is made for the first one.

    `stopped`: see ParquetArchiver.
    """
    made: ParquetArchiver | None = None

    async def archive(source: Detached) -> None:
        nonlocal made
        if made is None:
            made = await asyncio.to_thread(parquet_archiver, settings, stopped)
        await made.archive(source)

    return archive
