"""`ingest dlq`: the command, what it shows, and its replay."""
