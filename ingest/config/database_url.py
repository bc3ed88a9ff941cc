"""The URL of the database, read again from its file whenever somebody asks.

So a password that was changed needs no restart. Another setting that has a file may be named, too.
Promises: a file that cannot be used at the moment changes nothing: the last good URL stays in use,
and the log and `fault` say why, never with its content.
Does not: read a pipe again, since it has its content once.
"""

from __future__ import annotations

from pathlib import Path

from ingest.config.origins import UnusableFile, read_secret_again
from ingest.config.settings import Settings
from ingest.config.values import check_database_url, full_path
from ingest.system.logs import Occasionally, get_logger

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
                url = read_secret_again(self._file)
                check_database_url(url)
            except (UnusableFile, ValueError) as error:
                self._warn(self._file, getattr(error, "why", str(error)))
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
