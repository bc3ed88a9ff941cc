"""The buffer that the settings choose: makes it, opens it, and empties it at the end of a drain.

Promises: a journal is only opened where files survive a crash of the machine, unless the settings
say that this does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.buffers.journal.log import Journal
from ingest.buffers.journal.segments import PLAIN, WITH_TABLES, segment_files
from ingest.buffers.memory import MemoryBuffer
from ingest.buffers.waiting import PUT_WAIT_S_MAX
from ingest.config.settings import Settings
from ingest.config.values import MIB
from ingest.model.block import SHARED_ROWS_MAX
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.model.ports import Buffer, DeadLetters, Work
from ingest.system.files import filesystem_of, is_remote, is_volatile
from ingest.system.logs import get_logger
from ingest.system.state_folder import StateFolder
from ingest.writer.refused_rows import set_aside_rest

# A new file is begun at this size, or at a quarter of the journal: whole files are removed.
SEGMENT_BYTES = 64 * MIB
UNLESS = "--buffer memory, or say that it does not matter: --journal-unsafe true"


def make_buffer(settings: Settings, folder: StateFolder, ledger: Ledger) -> Buffer:
    """Return the buffer of `settings.buffer`; touches no file yet."""
    bounds: dict[str, Any] = {
        "rows_max": settings.buffer_rows_max,
        "bytes_max": settings.buffer_bytes_max,
        "put_wait_s_max": PUT_WAIT_S_MAX,
        # A batch takes whole blocks, so a larger block would be a larger batch.
        "shared_rows_max": min(settings.batch_rows_max, SHARED_ROWS_MAX),
    }
    if settings.buffer == "memory":
        return MemoryBuffer(**bounds)
    journal = Journal(
        folder.journal,
        segment_bytes=min(SEGMENT_BYTES, settings.journal_bytes_max // 4),
        version=WITH_TABLES if settings.tables_file else PLAIN,
        observe_sync_s=ledger.journal_sync_s.observe,
    )
    return JournalBuffer(journal, ledger, journal_bytes_max=settings.journal_bytes_max, **bounds)


def open_buffer(
    buffer: Buffer, settings: Settings, folder: StateFolder, announce: Callable[[str], None]
) -> list[Work]:
    """Open the buffer; return its background work, which runs while posts already come in.

    Raises StartError. With the memory buffer an existing journal is not touched, and `announce`
    tells the user about it.
    """
    if settings.buffer == "journal":
        parts = folder.durable_parts(embedded=not settings.database_url)
        check_promise(parts, unsafe=settings.journal_unsafe, unless=UNLESS)
    elif left := segment_files(folder.journal):
        get_logger("journal").warning("journal_left_behind", files=len(left), why="buffer=memory")
        announce(
            f"a journal of {len(left)} files lies in {folder.journal} and is NOT read with "
            "--buffer memory: start with --buffer journal to store what it holds"
        )
    return buffer.open()


def check_promise(folders: Sequence[Path], *, unsafe: bool, unless: str) -> None:
    """Check that files in `folders` survive a crash of the machine, as `durable` promises.

    Raises StartError if they do not, unless `unsafe`; logs a warning if they may not. `unless` are
    the flags that allow such a folder.
    """
    for folder in folders:
        kind = filesystem_of(folder)
        if is_volatile(kind) and not unsafe:
            raise StartError(
                f"{folder} would be on {kind}, which forgets all at a restart: a 202 would not be "
                f"durable; choose another --state-dir, or {unless}"
            )
        if is_volatile(kind) or is_remote(kind):
            get_logger("journal").warning(
                "file_system", folder=folder, kind=kind, why="what is fsynced there may be lost"
            )


async def keep_rest(buffer: Buffer, dead_letters: DeadLetters, ledger: Ledger) -> None:
    """Keep rows that no writer will store: in the journal if there is one, else as dead letters."""
    await buffer.keep_rest()
    await set_aside_rest(buffer, dead_letters, ledger)
