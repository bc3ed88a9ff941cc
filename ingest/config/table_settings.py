"""The settings of the table that is kept for years. The last groups of the documents have them.

They are a part of Settings, in a file of their own because that one has so many.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.config.values import setting

PARTITION_SPAN = "none"  # the default


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSettings:
    """Partitions of the table, and who looks after them."""

    partition_span: str = setting(
        PARTITION_SPAN,
        "a table that the service makes has a partition for each day or month (UTC), or none",
        one_of=("none", "day", "month"),
        opens="The table, for years",
    )
    partitions_ahead: int = setting(
        7, "so many partitions are made ahead, beyond ts_ahead_s_max", within=(1, 400)
    )
    partition_late_days_max: float = setting(
        3_650.0,
        "a reading that is older gets no partition of its own: dead letter ts_too_old",
        within=(1, 100_000),
    )
    partitions_max: int = setting(
        4_000,
        "with so many partitions late readings get no further one: dead letter no_partition",
        within=(10, 100_000),
    )
    keep_hot: str = setting(
        "", "so long readings stay in the table, as 30d, 12h, 8w, 2y; empty: for ever"
    )
    archive_dir: str = setting(
        "", "folder of Parquet files for readings that leave the table; empty: they are dropped"
    )
    housekeeping_url: str = setting(
        "",
        "database_url with the role that owns the table, for partitions; empty: database_url",
        secret=True,
    )
    housekeeping_url_file: str = setting(
        "", "file that contains housekeeping_url; read again at each connect"
    )
    housekeeping: bool = setting(
        True, "the service does the housekeeping; false: something runs `ingest housekeeping run`"
    )
    housekeeping_pause_s: float = setting(
        600.0, "pause between runs of the housekeeping", within=(1, 86_400)
    )
    rollups: bool = setting(
        False, "compute count, least, greatest, sum, first and last of each hour, day and series"
    )
    keep_rollups: str = setting("", "so long rollups stay, as 2y; empty: for ever")
