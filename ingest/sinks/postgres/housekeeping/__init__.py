"""What keeps the table usable for years: partitions, retention, and what was done so far.

Part of sinks/postgres. It connects as the owner of the table, and never writes a reading.
"""
