"""From the settings to the table that is written to."""

from __future__ import annotations

from ingest.config.settings import Settings
from ingest.sinks.postgres.target import TargetTable


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
