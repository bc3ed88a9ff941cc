"""The archive: Parquet files of the partitions that are no longer in the table, checked bit by bit.

Imported by app and cli, which give it the connection to the database. The only folder that imports
pyarrow, which is an optional extra: whoever imports a file of this folder needs it.
"""
