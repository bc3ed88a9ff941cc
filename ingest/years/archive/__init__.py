"""The archive: Parquet files of partitions that have left the table, checked bit by bit.

The only folder that imports pyarrow, which is an optional extra.
"""
