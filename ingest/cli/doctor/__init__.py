"""`ingest doctor`: the command, and its checks."""
