"""The buffer that the settings choose: makes it, opens it, and empties it at the end of a drain.

Promises: a journal is only opened where files survive a crash of the machine, unless the settings
say that this does not matter; and only if all readings in it have the home that the declared tables
give them now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.buffers.journal.log import Journal
from ingest.buffers.journal.segments import PLAIN, WITH_TABLES, scans, segment_files
from ingest.buffers.memory import MemoryBuffer
from ingest.buffers.waiting import PUT_WAIT_S_MAX
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings
from ingest.config.values import MIB
from ingest.model.block import SHARED_ROWS_MAX
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.model.ports import Buffer, DeadLetters, Work
from ingest.system.clock import rfc3339_or_us
from ingest.system.files import (
    filesystem_of,
    is_remote,
    is_volatile,
    open_regular,
    replace_private,
    sync_folder,
)
from ingest.system.logs import get_logger
from ingest.system.state_folder import StateFolder
from ingest.writer.refused_rows import set_aside_rest

# A new file is begun at this size, or at a quarter of the journal: whole files are removed.
SEGMENT_BYTES = 64 * MIB
Column = tuple[str, str, str, int]  # table, its measurement, column, since (Unix microseconds)
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
        works = buffer.open()
        _check_homes(folder, settings)
        return works
    if left := segment_files(folder.journal):
        get_logger("journal").warning("journal_left_behind", files=len(left), why="buffer=memory")
        announce(
            f"a journal of {len(left)} files lies in {folder.journal} and is NOT read with "
            "--buffer memory: start with --buffer journal to store what it holds"
        )
    return buffer.open()


def changed_columns(folder: StateFolder, settings: Settings) -> set[Column]:
    """Return which columns the declared tables have and the journal's note has not, and reverse.

    The note has the columns that the readings in the journal were taken with. Without it, or if it
    is damaged: none. Raises OSError.
    """
    taken_with = list[Column]()
    with (
        suppress(FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError),
        open_regular(folder.journal_columns) as note,
    ):
        taken_with = msgspec.json.decode(note.read(), type=list[Column])
    return {*_columns(settings)} ^ {*taken_with}


def note_columns(folder: StateFolder, settings: Settings) -> None:
    """Note the columns that the next readings in the journal are taken with. Raises OSError.

    Call it before the first of them is taken, but only when the database has accepted the tables:
    else readings would wait that must not be written with these tables, nor with others.
    """
    if settings.buffer == "journal" and changed_columns(folder, settings):
        replace_private(folder.journal_columns, msgspec.json.encode(_columns(settings)), sync=True)
        sync_folder(folder.journal)


def _columns(settings: Settings) -> list[Column]:
    return [
        (table.name, table.measurement, column, since_us)
        for table in make_tables(settings).all
        for column, since_us in zip(table.columns, table.since_us, strict=True)
    ]


def _check_homes(folder: StateFolder, settings: Settings) -> None:
    """Check that no reading in the journal would have another home if it were posted again.

    Where the columns differ from those that they were taken with, no reading may be as late as the
    first `since`. Raises StartError.
    """
    first = min(changed_columns(folder, settings), key=itemgetter(3), default=None)
    newest_us = (each.newest_ts_us for each in scans(folder.journal))
    if first and (until_us := max(newest_us, default=-(1 << 63))) >= first[3]:
        raise StartError(
            f"the journal still has readings, the newest of {rfc3339_or_us(until_us)}. They were "
            f"taken with other tables ({folder.journal_columns}) than tables_file declares now. "
            f"What differs: column {first[2]!r} of table {first[0]!r}, since "
            f"{rfc3339_or_us(first[3])}. A device that posts these readings again would store them "
            "twice. If the column is new, declare a `since` later than these readings. Else start "
            "once more as before, and stop when all is written: the last line says held=0"
        )


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
