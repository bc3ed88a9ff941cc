"""The job of housekeeping that archives detached partitions, and what an archiver needs of a table.

The archiver itself knows files, and lies above this folder: it is given to the job.
Promises: a partition is marked as verified only after the archiver has returned.
Does not: plan a step. Retention plans those of the kind `archive`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import archive_rows, archived, life, registry
from ingest.sinks.postgres.housekeeping.archive_rows import Restore, RowsTable
from ingest.sinks.postgres.housekeeping.archived import Contents
from ingest.sinks.postgres.housekeeping.life import ARCHIVE, State
from ingest.sinks.postgres.housekeeping.plan import Job, Step
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View


class Detached(NamedTuple):
    """A partition of the table `parent` that is detached, and a connection to its database."""

    connection: Connection
    parent: str
    table: RowsTable
    from_us: int
    to_us: int

    async def contents(self) -> Contents | None:
        """Return what is in the archive of a span in which this one lies."""
        for each in await archived.contents(self.connection, self.parent):
            if each.from_us <= self.from_us and self.to_us <= each.to_us:
                return each
        return None


class Archiving(Job):
    """A Job. The steps come from retention.

    `archive` archives all rows of a table, and verifies it. It raises StartError if that cannot be
    done.
    """

    kinds = frozenset({ARCHIVE})

    def __init__(self, archive: Callable[[Detached], Awaitable[None]]) -> None:
        self._archive = archive

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
        await self._archive(source)
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
