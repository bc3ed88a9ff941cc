"""The archive: Parquet files of partitions that have left the table, checked bit by bit."""
