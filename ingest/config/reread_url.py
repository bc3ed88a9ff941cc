"""The URL of the database, read again from its file whenever somebody asks.

So a password that was changed needs no restart.
Promises: a file that cannot be used at the moment changes nothing: the last good URL stays in use.
Does not: read a pipe again, since it has its content once.
"""

from __future__ import annotations

from ingest.config.settings import Settings
from ingest.config.sources import read_secret
from ingest.config.values import check_database_url, full_path
from ingest.model.errors import ConfigError
from ingest.system.logs import Occasionally, get_logger

WARNING_S = 60.0  # between warnings that the file cannot be used

_log = get_logger("config")


class RereadUrl:
    """Call it for the URL now. It begins with the one of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url
        self._file = full_path(settings.database_url_file) if settings.database_url_file else None
        self._occasionally = Occasionally(WARNING_S)

    def __call__(self) -> str:
        """Return the URL; blocks for the time of reading a small file."""
        if self._file is not None and self._file.is_file():
            try:
                url = read_secret(self._file)
                check_database_url(url)
            except (ConfigError, ValueError) as error:
                if self._occasionally.due("unusable") is not None:
                    _log.warning("database_url_file_unusable", why=str(error))
            else:
                if url != self._url:
                    _log.info("database_url_changed", file=str(self._file))
                self._url = url
        return self._url
