"""The file of sources: TOML with `[[source]]` tables, for senders with JSON of their own.

It is not the file of settings: a setting is one value, which may also be a flag or a variable.
Does not: know what a table means (formats/map_source.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ingest.config.sources import read_toml
from ingest.config.values import full_path
from ingest.model.errors import ConfigError

SOURCES_MAX = 200


def source_tables(named: str) -> tuple[Path, list[dict[str, Any]]]:
    """Return the path of a file of sources, and its tables. Raises ConfigError."""
    path = full_path(named)
    written = read_toml(path, "sources")
    other = next((name for name in written if name != "source"), None)
    if other is not None:
        raise ConfigError(f"{path}: {other!r} is no table of a source; write [[source]] above it")
    tables = written.get("source", [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ConfigError(f"{path}: write [[source]] with two brackets before each source")
    if len(tables) > SOURCES_MAX:
        raise ConfigError(f"{path} has more than {SOURCES_MAX} sources")
    return path, tables
