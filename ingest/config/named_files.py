"""The files and folders that settings name: the state folder that applies, the files of lists.

The state folder is as it is set, else that of systemd, of root or of the user. A list is TOML with
`[[source]]` for each sender with JSON of its own, or with `[[table]]` for each table with columns.
It is not the file of settings: a setting is one value, which may also be a flag or a variable.
Does not: know what an entry means (formats/mapped/source.py, config/declared_tables.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ingest.config.origins import read_toml
from ingest.config.settings import Settings
from ingest.config.values import full_path, nearest
from ingest.model.errors import ConfigError, KeyFault

ENTRIES_MAX = 200  # of such a file


def state_dir(settings: Settings) -> Path:
    """Return the state folder that applies, as an absolute path."""
    return _set(settings, "state_dir") or default_state_dir()


def archive_dir(settings: Settings) -> Path | None:
    """Return the folder of the archive as an absolute path; None if there is none."""
    return _set(settings, "archive_dir")


def _set(settings: Settings, name: str) -> Path | None:
    named: str = getattr(settings, name)
    try:
        return full_path(named) if named else None
    except ConfigError as error:
        raise ConfigError(f"setting {name}: {error}") from None


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the default state folder: systemd's, root's under /var/lib, or the user's XDG one."""
    if systemd := environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":", 1)[0])
    if os.geteuid() == 0:
        return Path("/var/lib/iot-ingest")
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # the XDG standard says: ignore a relative path
        try:
            base = full_path(environ.get("HOME") or "~") / ".local/state"
        except ConfigError:
            raise ConfigError("there is no home for a state folder: choose --state-dir") from None
    return base / "iot-ingest"


def take_entries(
    named: str, what: str, keys: Collection[str], take: Callable[[dict[str, Any]], None]
) -> None:
    """Call `take` with each entry `[[what]]` of a file of lists. It may raise KeyFault.

    Raises ConfigError, which names the entry. `keys` are those that an entry may have.
    """
    path = full_path(named)
    written = read_toml(path, f"{what}s")
    other = next((name for name in written if name != what), None)
    if other is not None:
        raise ConfigError(
            f"{path}: {other!r} is no part of a {what}: begin each {what} with [[{what}]]"
        )
    entries = written.get(what, [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise ConfigError(f"{path}: write [[{what}]] with two brackets before each {what}")
    if len(entries) > ENTRIES_MAX:
        raise ConfigError(f"{path} has more than {ENTRIES_MAX} {what}s")
    for number, entry in enumerate(entries, 1):
        try:
            take(entry)
        except KeyFault as fault:
            name = entry.get("name") or entry.get("preset")
            where = f"{path}, {what} {number}" + (f" ({name!r:.80})" if name else "")
            near = "" if fault.key in keys else nearest(fault.key, keys)
            raise ConfigError(f"{where}, key {fault.key}: {fault}{near}") from None
