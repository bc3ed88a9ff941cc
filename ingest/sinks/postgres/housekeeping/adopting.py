"""Makes partitions that somebody else has made ours: retention and archive may then remove them.

Does not: change a table. It writes to the registry only. The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import Partition, bounds_entry
from ingest.sinks.postgres.housekeeping.spans import NONE
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View


def adoptable(view: View, names: Sequence[str]) -> list[Partition]:
    """Return those of the named partitions (without names: of all) that are not ours yet.

    Raises StartError if the table is not partitioned by time, or has no partition of that name.
    """
    if view.kind != PARTITIONED:
        raise StartError(f"{view.table} is not partitioned by its time: there is nothing to adopt")
    by_name = {each.name: each for each in view.partitions}
    if unknown := [each for each in names if each not in by_name]:
        raise StartError(f"{view.table} has no partition {unknown[0]} with bounds of its time")
    chosen = [by_name[each] for each in dict.fromkeys(names)] if names else view.partitions
    return [each for each in chosen if not each.ours]


async def adopt(connection: Connection, view: View, chosen: Sequence[Partition], span: str) -> None:
    """Enter the partitions, and the table, as ours, with the bounds that they have now.

    New partitions will have a `span` each. Raises StartError if this role may not make or drop
    partitions, or if there is no span.
    """
    if view.cannot_make:
        raise StartError(view.cannot_make)
    if span == NONE:
        raise StartError("set partition_span to day or month: new partitions get this span")
    async with connection.transaction():
        kept = await registry.make(connection, view.table, view.owner)
        await registry.put(connection, kept, registry.TABLE + view.name, {"span": span})
        for each in chosen:
            entry = bounds_entry(each.from_us, each.to_us)
            await registry.put(connection, kept, registry.PARTITION + each.name, entry)
