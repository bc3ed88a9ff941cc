"""The job of housekeeping that archives detached partitions, and what an archiver needs of a table.

The archiver itself knows files, and lies above this folder: it is given to the job.
Promises: a partition is marked as verified only after the archiver has returned.
Does not: plan a step. Retention plans those of the kind `archive`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import archive_rows, archived, life, registry
from ingest.sinks.postgres.housekeeping.archive_rows import Restore, RowsTable
from ingest.sinks.postgres.housekeeping.archived import Contents
from ingest.sinks.postgres.housekeeping.life import ARCHIVE, State
from ingest.sinks.postgres.housekeeping.plan import Step
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View


class Detached:
    """A partition that is detached: its rows, and what the registry knows of its span."""

    def __init__(
        self, connection: Connection, parent: str, table: RowsTable, from_us: int, to_us: int
    ) -> None:
        self.name = table.table
        self.from_us = from_us
        self.to_us = to_us
        self._connection = connection
        self._parent = parent
        self._table = table

    async def checksum(self, pause: Callable[[float], Awaitable[None]]) -> tuple[int, int]:
        """Return the number of rows, and the sum of their hashes, as the server calculates it.

        After each part of the table `pause` is called with the seconds that it took.
        """
        return await archive_rows.checksum(self._connection, self._table, pause)

    async def rows_max(self) -> int:
        """Return how many rows the table may have, by its size. Costs nothing."""
        return await archive_rows.rows_max(self._connection, self._table)

    async def copy_out(self, marker: bytes, take: Callable[[bytes], Awaitable[None]]) -> int:
        """Give all rows to `take`; return how many there were."""
        return await archive_rows.copy_out(self._connection, self._table, marker, take)

    async def contents(self) -> Contents | None:
        """Return what is in the archive of a span in which this one lies."""
        for each in await archived.contents(self._connection, self._parent):
            if each.from_us <= self.from_us and self.to_us <= each.to_us:
                return each
        return None

    async def folders(self) -> set[str]:
        """Return the folders into which files of the archive were written."""
        return await archived.folders(self._connection, self._parent)

    async def record(self, found: Contents, folder: str) -> None:
        """Store what is in the archive, and the folder of the files."""
        await archived.record(self._connection, self._parent, found, folder)


class Archiver(Protocol):
    """Writes partitions into an archive."""

    async def archive(self, source: Detached) -> None:
        """Archive all rows of a table, and verify it. Raises StartError if it cannot be done."""


class Archiving:
    """A Job. The steps come from retention."""

    kinds = frozenset({ARCHIVE})

    def __init__(self, archiver: Archiver) -> None:
        self._archiver = archiver

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return nothing."""
        return []

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Archive one partition, which is detached."""
        table, there = await archive_rows.beside(
            connection, view.table, step.partition, view.target.columns
        )
        if not there:
            raise StartError(f"the table {table.name} is gone: it cannot be archived")
        if await archive_rows.is_attached(connection, table):
            raise StartError(f"{table.name} is still a partition: it is archived once detached")
        source = Detached(connection, view.table, table, step.from_us, step.to_us)
        await self._archiver.archive(source)
        entry = await life.entry_of(connection, view.table, step.partition)
        if entry is None:
            raise StartError(f"{step.partition} was not detached by us")
        kept = await registry.make(connection, view.table)
        await life.store(connection, kept, step.partition, entry.moved(State.VERIFIED))


async def restore(
    connection: Connection,
    view: View,
    found: Contents,
    rows: AsyncIterator[bytes],
) -> None:
    """Make the partition of `found` again, and pin it. Raises StartError if it cannot be done."""
    if view.kind != PARTITIONED:
        raise StartError(f"{view.table} has no partitions: there is no place for the readings")
    for each in view.partitions:
        if each.from_us < found.to_us and found.from_us < each.to_us:
            raise StartError(
                f"{each.name} has readings of this time. If they are late ones, the next "
                "housekeeping run merges them with the archive, and then it can be restored"
            )
    table, there = await archive_rows.beside(
        connection, view.table, found.name, view.target.columns
    )
    if there:
        entry = await life.entry_of(connection, view.table, found.name)
        if entry is not None and entry.under_way:
            raise StartError(
                f"{table.name} is on its way into the archive: `ingest housekeeping run` ends "
                "that, and then it can be restored"
            )
        raise StartError(f"there is a table {table.name}, which is not a partition: rename it")
    bounds = (found.from_us, found.to_us)
    wanted = Restore(view.table, table, *bounds, found.rows, found.sum, view.owner)
    await archive_rows.restore(connection, wanted, rows)
