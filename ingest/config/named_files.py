"""The state folder that applies: as it is set, else that of systemd, of root or of the user.

The URL of the database, read again from its file whenever somebody asks.

So a password that was changed needs no restart.
Promises: a file that cannot be used at the moment changes nothing: the last good URL stays in use,
and the log and `fault` say why, never with its content.
Does not: read a pipe again, since it has its content once.

The file of sources: TOML with `[[source]]` tables, for senders with JSON of their own.

It is not the file of settings: a setting is one value, which may also be a flag or a variable.
Does not: know what a table means (formats/map_source.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest.config.origins import UnusableFile, read_secret_again, read_toml
from ingest.config.settings import Settings
from ingest.config.values import check_database_url, full_path
from ingest.model.errors import ConfigError
from ingest.system.logs import Occasionally, get_logger


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


WARNING_S = 60.0  # between warnings that the file cannot be used, if the reason is the same

_log = get_logger("config")


class RereadUrl:
    """Call it for the URL now. It begins with the one of the settings.

    `name` is the setting: database_url, or another one that has a file.
    """

    def __init__(self, settings: Settings, name: str = "database_url") -> None:
        named: str = getattr(settings, f"{name}_file")
        file = full_path(named) if named else None
        self._file = None if file is None or file.is_fifo() else file
        self._name = name
        self._url: str = getattr(settings, name)
        self._fault = ""  # why the file could not be used the last time
        self._occasionally = Occasionally(WARNING_S)

    def __call__(self) -> str:
        """Return the URL; blocks for the time of reading a small file."""
        if self._file is not None:
            try:
                url = _url_in(self._file)
            except UnusableFile as error:
                self._warn(self._file, error.why)
            else:
                self._fault = ""
                if url != self._url:
                    _log.info("database_url_changed", file=str(self._file))
                self._url = url
        return self._url

    def fault(self) -> str:
        """Return why the file could not be used at the last call, without its name; else nothing.

        Devices may read it: the name of a file is not for them.
        """
        return self._fault and f"{self._name}_file {self._fault}; the old URL is still used"

    def _warn(self, file: Path, why: str) -> None:
        due = self._occasionally.due(why) is not None
        if due or why != self._fault:
            _log.warning("database_url_file_unusable", file=str(file), why=why)
        self._fault = why


def _url_in(file: Path) -> str:
    url = read_secret_again(file)
    try:
        check_database_url(url)
    except ValueError as error:
        raise UnusableFile(file, str(error)) from None
    return url


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
