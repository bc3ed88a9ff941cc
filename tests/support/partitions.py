"""Makes one partition, as the housekeeping does it."""

from __future__ import annotations

from asyncpg import Connection

from ingest.sinks.postgres.housekeeping.making import make_partitions
from ingest.sinks.postgres.housekeeping.partitions import TimeSpan
from ingest.sinks.postgres.housekeeping.table_state import View


async def make_partition(connection: Connection, view: View, bounds: TimeSpan) -> str | None:
    """Make one; return its name. None: a part of its time has a partition by now."""
    made, failed = await make_partitions(connection, view, [bounds])
    if failed is not None:
        raise failed
    return made[bounds] or None
