"""The job of housekeeping that archives detached partitions; what is in the archive; the way back.

The registry knows which files have which span, with their checksum: the key is `files/NAME`, of the
partition that was archived first. How far a partition is on its way out of the table, is under
`archive/NAME`: see years/partition_life.py.
Promises: a partition is marked as verified only after the archiver has returned. `restore` is one
transaction: a partition is there with all its rows, or not at all.
Does not: know files; the archiver is given to the job. Nor plan a step: retention plans those of
the kind `archive`. The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    END_US,
    bounds_entry,
    literal,
)
from ingest.sinks.postgres.housekeeping.runs import Job, Step
from ingest.sinks.postgres.housekeeping.table_state import PARTITIONED, View
from ingest.sinks.postgres.schema import quoted
from ingest.years import partition_life
from ingest.years.archive import table_rows
from ingest.years.archive.table_rows import SCAN_S_MAX, RowsTable
from ingest.years.partition_life import ARCHIVE, State

ATTACH_LOCK_S_MAX = 3
ALONE_S_MAX = 60.0  # how long `verify` and `restore` wait for a run


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
    def file_names(self) -> list[str]:
        """The names of all files."""
        return [name for name, _, _ in self.files]

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
    """The job. Its steps come from retention.

    `archive` archives all rows of a table, and verifies it. It raises StartError if that cannot be
    done.
    """

    kinds = frozenset({ARCHIVE})

    def __init__(self, archive: Callable[[Detached], Awaitable[None]]) -> None:
        self._archive = archive

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Archive one partition, which is detached."""
        table, there, attached = await table_rows.beside(
            connection, view.table, step.partition, view.target.columns
        )
        if not there:
            raise StartError(f"the table {table.name} is gone: it cannot be archived")
        if attached:
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
    """Make the partition of `found` again from `rows` of binary COPY, and pin it.

    Raises StartError if it cannot be done, or its checksum is another one; nothing is changed then.
    """
    if view.kind != PARTITIONED:
        raise StartError(f"{view.table} has no partitions: there is no place for the readings")
    for each in view.partitions:
        if each.from_us < found.to_us and found.from_us < each.to_us:
            raise StartError(
                f"{each.name} has readings of this time. If they are late ones, the next "
                "housekeeping run merges them with the archive, and then it can be restored"
            )
    table, there, _ = await table_rows.beside(
        connection, view.table, found.name, view.target.columns
    )
    if there:
        entry = await partition_life.entry_of(connection, view.table, found.name)
        if entry is not None and entry.under_way:
            raise StartError(
                f"{table.name} is on its way into the archive: `ingest housekeeping run` ends "
                "that, and then it can be restored"
            )
        raise StartError(f"there is a table {table.name}, which is not a partition: rename it")
    known = await registry.make(connection, view.table, view.owner)
    async with connection.transaction():
        await connection.execute("set local statement_timeout = 0")
        await connection.execute(
            f"create table {table.name} (like {view.table} including defaults "
            "including constraints including storage including generated)"
        )
        await table_rows.copy_in(connection, table, rows)
        if await table_rows.checksum(connection, table) != (found.rows, found.sum):
            raise StartError(f"{table.name}: the rows differ from those of the archive")
        await connection.execute(f"alter table {table.name} owner to {quoted(view.owner)}")
        await _attach(connection, view.table, table, found)
        made: dict[str, object] = {
            registry.PARTITION + found.name: bounds_entry(found.from_us, found.to_us),
            registry.PINNED + found.name: {"why": "restored"},
        }
        await registry.put(connection, known, made)


async def _attach(connection: Connection, parent: str, table: RowsTable, found: Contents) -> None:
    """Attach the table. The constraint spares the scan of it under the lock."""
    lower, upper = literal(found.from_us), literal(found.to_us)
    checks = [f"{{ts}} >= {lower}"] if found.from_us != BEGINNING_US else []
    checks += [f"{{ts}} < {upper}"] if found.to_us != END_US else []
    if checks:
        check = f"alter table {{table}} add constraint ingest_bounds check ({' and '.join(checks)})"
        await connection.execute(table.named(check), timeout=SCAN_S_MAX)
    await connection.execute(f"set local lock_timeout = '{ATTACH_LOCK_S_MAX}s'")
    await connection.execute(
        f"alter table {parent} attach partition {table.name} "
        f"for values from ({lower}) to ({upper})",
        timeout=SCAN_S_MAX,
    )
    if checks:
        await connection.execute(f"alter table {table.name} drop constraint ingest_bounds")
