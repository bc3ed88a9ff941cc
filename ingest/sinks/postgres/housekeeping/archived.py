"""What the registry knows of the archive: which files have which span, with their checksum.

The key is `files/NAME`: NAME is that of the partition that was archived first. How far a partition
is on its way out of the table, is in `archive/NAME`: see life.py.
The driver's errors pass through.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry


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
