"""The job of housekeeping that archives detached partitions, and what an archiver needs of a table.

The archiver itself knows files, and lies above this folder: it is given to the job.
Promises: a partition is marked as verified only after the archiver has returned.
Does not: plan a step. Retention plans those of the kind `archive`.

What the registry knows of the archive: which files have which span, with their checksum.

The key is `files/NAME`: NAME is that of the partition that was archived first. How far a partition
is on its way out of the table, is in `archive/NAME`: see years/partition_life.py.
The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.runs import Job, Step
from ingest.sinks.postgres.housekeeping.table_state import PARTITIONED, View
from ingest.years import partition_life
from ingest.years.archive import table_rows
from ingest.years.archive.table_rows import Restore, RowsTable
from ingest.years.partition_life import ARCHIVE, State


class Contents(NamedTuple):
    """The files of one span: Unix microseconds, half open. `sum` is that of the hashes of all rows.

    `files`: name, rows and bytes of each. They were written in the folder of `token`, and moved
    from there. `last_rows` and `last_sum` are of the table that was archived or merged last.
    """

    name: str
    from_us: int
    to_us: int
    rows: int
    sum: int
    files: tuple[tuple[str, int, int], ...]
    token: str
    last_rows: int
    last_sum: int

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(each[2] for each in self.files)


async def contents(connection: Connection, table: str) -> list[Contents]:
    """Return what is in the archive of a table, the oldest first.

    Raises StartError if this role may not see it: that must not look like an empty archive.
    """
    name, readable = await registry.name_beside(connection, table)
    if not readable and await registry.exists(connection, name):
        raise StartError(f"this role may not read {name}: set housekeeping_url to the owner's URL")
    found = (await registry.entries(connection, table, registry.FILES)).items()
    return sorted((_read(name, entry) for name, entry in found), key=lambda each: each.from_us)


def _read(name: str, entry: dict[str, Any]) -> Contents:
    return Contents(
        name,
        entry["from_us"],
        entry["to_us"],
        entry["rows"],
        int(entry["sum"]),
        tuple((each["name"], each["rows"], each["bytes"]) for each in entry["files"]),
        entry["token"],
        entry["last_rows"],
        int(entry["last_sum"]),
    )


async def folders(connection: Connection, table: str) -> set[str]:
    """Return the folders into which files that are in the archive now were written."""
    found = (await registry.entries(connection, table, registry.FILES)).values()
    return {each["folder"] for each in found if "folder" in each}


async def record(connection: Connection, table: str, found: Contents, folder: str) -> None:
    """Store what is in the archive, and in which folder its files were written.

    A sum may be too large for a number of JSON: it is a text.
    """
    known = await registry.make(connection, table)
    entry = found._asdict() | {
        "sum": str(found.sum),
        "last_sum": str(found.last_sum),
        "bytes": found.bytes,
        "folder": folder,
        "files": [{"name": n, "rows": rows, "bytes": size} for n, rows, size in found.files],
    }
    await registry.put(connection, known, {registry.FILES + found.name: entry})


async def pinned(connection: Connection, table: str) -> set[str]:
    """Return the partitions that stay until they are released."""
    return set(await registry.entries(connection, table, registry.PINNED))


async def release(connection: Connection, table: str, partition: str) -> bool:
    """Let retention have a pinned partition again; return whether it was pinned."""
    if partition not in await pinned(connection, table):
        return False
    known = await registry.make(connection, table)
    await registry.remove(connection, known, registry.PINNED + partition)
    return True


class Detached(NamedTuple):
    """A partition of the table `parent` that is detached, and a connection to its database."""

    connection: Connection
    parent: str
    table: RowsTable
    from_us: int
    to_us: int

    async def contents(self) -> Contents | None:
        """Return what is in the archive of a span in which this one lies."""
        for each in await contents(self.connection, self.parent):
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
        table, there = await table_rows.beside(
            connection, view.table, step.partition, view.target.columns
        )
        if not there:
            raise StartError(f"the table {table.name} is gone: it cannot be archived")
        if await table_rows.is_attached(connection, table):
            raise StartError(f"{table.name} is still a partition: it is archived once detached")
        source = Detached(connection, view.table, table, step.from_us, step.to_us)
        await self._archive(source)
        entry = await partition_life.entry_of(connection, view.table, step.partition)
        if entry is None:
            raise StartError(f"{step.partition} was not detached by us")
        kept = await registry.make(connection, view.table)
        await partition_life.store(connection, kept, step.partition, entry.moved(State.VERIFIED))


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
    table, there = await table_rows.beside(connection, view.table, found.name, view.target.columns)
    if there:
        entry = await partition_life.entry_of(connection, view.table, found.name)
        if entry is not None and entry.under_way:
            raise StartError(
                f"{table.name} is on its way into the archive: `ingest housekeeping run` ends "
                "that, and then it can be restored"
            )
        raise StartError(f"there is a table {table.name}, which is not a partition: rename it")
    bounds = (found.from_us, found.to_us)
    wanted = Restore(view.table, table, *bounds, found.rows, found.sum, view.owner)
    await table_rows.restore(connection, wanted, rows)
