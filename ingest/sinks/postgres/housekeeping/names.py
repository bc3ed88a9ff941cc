"""Names of tables and indexes that we make."""

from __future__ import annotations

from ingest.sinks.postgres.housekeeping.spans import NAME_BYTES_MAX


def fitted(stem: str, ending: str) -> str:
    """Return a name that PostgreSQL does not cut: the stem is cut if both are too long."""
    room = NAME_BYTES_MAX - len(ending.encode())
    return stem.encode()[: max(0, room)].decode(errors="ignore") + ending
