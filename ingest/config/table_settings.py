"""The settings of the table that is kept for years. The last groups of the documents have them.

They are a part of Settings, in a file of their own because that one has so many.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.config.values import setting

PARTITION_SPAN = "day"  # the default


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSettings:
    """Partitions of the table, and who looks after them."""

    partition_span: str = setting(
        PARTITION_SPAN,
        "a new table has a partition for each day or month (UTC); none: it is one plain table",
        one_of=("none", "day", "month"),
        opens="The table, for years",
    )
    partitions_max: int = setting(
        4_000,
        "most partitions; for late readings half of those that are left are made in a day, without "
        "one they become dead letters (no_partition)",
        within=(10, 100_000),
    )
    keep_hot: str = setting(
        "", "how long readings stay in the table, such as 30d, 12h, 8w or 2y; empty: for ever"
    )
    archive_dir: str = setting(
        "", "folder for Parquet files of readings that leave the table; empty: they are dropped"
    )
    housekeeping_url: str = setting(
        "",
        "URL with the role that owns the table, for the housekeeping; empty: database_url",
        secret=True,
    )
    housekeeping_url_file: str = setting(
        "", "file that contains housekeeping_url; read again at each connect"
    )
    housekeeping: bool = setting(
        True, "the service does the housekeeping; false: a timer must run `ingest housekeeping run`"
    )
    rollups: bool = setting(
        False, "compute count, least, greatest, sum, first, last for each hour, day and series"
    )
    keep_rollups: str = setting("", "how long rollups stay, such as 2y; empty: for ever")
