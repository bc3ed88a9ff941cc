"""What the table needs while it is in use: partitions for its readings, and what was done so far.

Part of sinks/postgres. It connects as the owner of the table, and never writes a reading. Annexes
have further jobs, which its runs do.
"""
