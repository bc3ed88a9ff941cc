"""Years, an annex: partitions that leave the table, Parquet files, rollups, late readings."""
