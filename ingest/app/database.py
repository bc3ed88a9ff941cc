"""The database as the settings describe it: table, time-outs, sinks, partitions.

Only `declared_fault` connects; what the others return does, at its first use.
Does not: know the receiver or the writers.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.app.annexes import annexes
from ingest.config.database_url import RereadUrl
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings
from ingest.sinks.postgres import column_tables
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.connection import DatabaseUrl, Timeouts, opened
from ingest.sinks.postgres.housekeeping.known_partitions import (
    KnownPartitions,
    LateLimit,
    PartitionsOfTables,
)
from ingest.sinks.postgres.housekeeping.making import PartitionsAhead
from ingest.sinks.postgres.housekeeping.partitions import DAY_US
from ingest.sinks.postgres.schema import TargetTable
from ingest.sinks.postgres.sink import SinkPostgres

LATE_DAYS_MAX = 36_500  # an older reading is a faulty clock: no partition is made for it
PARTITIONS_AHEAD = 7  # beyond now + ts_ahead_s_max: a week to notice that no more are made


def make_target(settings: Settings) -> TargetTable:
    """Return the table of these settings; the server has not been asked whether it is there."""
    return TargetTable(
        schema=settings.table_schema,
        table=settings.table_name,
        ts=settings.column_ts,
        device_id=settings.column_device_id,
        metric=settings.column_metric,
        value=settings.column_value,
    )


def timeouts(settings: Settings) -> Timeouts:
    """Return the time-outs of a connection that writes."""
    return Timeouts(
        connect_s_max=settings.connect_s_max,
        lock_s_max=settings.command_s_max / 5,
        statement_s_max=settings.command_s_max * 2 / 3,
        command_s_max=settings.command_s_max,
        schema_check_s=settings.schema_check_s,
    )


def make_sink(
    url: str | DatabaseUrl,
    settings: Settings,
    *,
    name: str = "iot-ingest",
    known: KnownServer | None = None,
    on_checked: Callable[[str], None] | None = None,
    late: PartitionsOfTables | None = None,
) -> SinkPostgres:
    """Return a sink that connects to `url` at its first use; see CheckedConnection."""
    sink = SinkPostgres(
        url if callable(url) else lambda: url,
        timeouts(settings),
        method=settings.write_method,
        unsafe=settings.database_unsafe,
        name=name,
        known=known or KnownServer(target=make_target(settings)),
        on_checked=on_checked,
    )
    sink.late = late
    return sink


def housekeeping_url(settings: Settings, url: DatabaseUrl) -> DatabaseUrl:
    """Return what gives the URL of the owner's role; without one, that of the writers."""
    return RereadUrl(settings, "housekeeping_url") if settings.housekeeping_url else url


def make_replay_sink(
    url: DatabaseUrl, settings: Settings, *, name: str, known: KnownServer | None = None
) -> SinkPostgres:
    """Return a sink for a replay by hand, which may need partitions for late readings."""
    sink = make_sink(url, settings, name=name, known=known)
    sink.late = late_of_tables(settings, housekeeping_url(settings, url), eager=True)
    return sink


async def declared_fault(url: str, settings: Settings) -> str:
    """Return why readings would be stored where the service does not look for them, or "".

    Raises StartError if the database cannot be asked.
    """
    async with opened(url, timeouts(settings)) as connection:
        return await column_tables.fault(
            connection, make_target(settings), make_tables(settings).all
        )


def partitions_ahead(settings: Settings, *, from_us: int | None = None) -> PartitionsAhead:
    """Return the job that makes partitions ahead of time; with `from_us` from that time on."""
    return PartitionsAhead(
        ahead_s=settings.ts_ahead_s_max,
        spans=PARTITIONS_AHEAD,
        from_us=from_us,
        partitions_max=settings.partitions_max,
    )


def late_limit() -> LateLimit:
    """Return the age beyond which a reading gets no partition."""
    return LateLimit(LATE_DAYS_MAX * DAY_US, f"{LATE_DAYS_MAX:,} days")


def late_partitions(settings: Settings, url: DatabaseUrl, target: TargetTable) -> KnownPartitions:
    """Return what knows the partitions for readings that find none; an annex makes some, too.

    `url` is that of the owner.
    """
    for each in annexes():
        if each.late_partitions is not None:
            return each.late_partitions(settings, url, target)
    return KnownPartitions(
        url,
        timeouts(settings),
        span=settings.partition_span,
        target=target,
        limit=late_limit(),
    )


def late_of_tables(
    settings: Settings, url: DatabaseUrl, *, eager: bool = False
) -> PartitionsOfTables:
    """Return the same for `readings` and all declared tables."""
    late = PartitionsOfTables(lambda target: late_partitions(settings, url, target), eager=eager)
    # This loads the code: at a write that takes too long, and there may be no file descriptor left.
    late.of(make_target(settings))
    return late
