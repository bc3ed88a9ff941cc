"""The names of the table and its columns in the settings: as in PostgreSQL's catalog, no quotes."""

from __future__ import annotations

from ingest.config.settings import Settings

NAME_BYTES_MAX = 63  # PostgreSQL cuts longer names silently
COLUMNS = ("column_ts", "column_device_id", "column_metric", "column_value")


def check_name(name: str) -> None:
    """Check the name of a table or a column. Raises ValueError."""
    if not name:
        raise ValueError("is empty")
    if not name.isprintable():
        raise ValueError("has a character that cannot be printed")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if size > NAME_BYTES_MAX:
        raise ValueError(f"has {size} bytes; PostgreSQL allows {NAME_BYTES_MAX}")


def repeated_column(settings: Settings) -> tuple[str, str] | None:
    """Return the two settings that name the same column, or None."""
    seen = dict[str, str]()
    for each in COLUMNS:
        first = seen.setdefault(getattr(settings, each), each)
        if first != each:
            return first, each
    return None
