"""The words of the next steps: how to type a command here, how to correct the database's URL."""

from __future__ import annotations

from ingest.config.settings import Settings
from ingest.system.surroundings import command_words

CREDENTIALS = "/run/credentials/"  # of systemd


def advice(settings: Settings, url_origin: str) -> dict[str, str]:
    """Return a text for each of causes.FIELDS.

    `url_origin` is where database_url was set, as in Loaded.origins.
    """
    words = command_words()
    return {**words, "fix_url": _fix_url(settings, url_origin, words["restart"])}


def database_words(settings: Settings) -> str:
    """Return what sets the URL of the database; empty if it is the embedded one."""
    file = settings.database_url_file
    return f"the file {file}" if file else "database_url" if settings.database_url else ""


def _fix_url(settings: Settings, origin: str, restart: str) -> str:
    if not settings.database_url:
        return "Read the log of the embedded database in the state folder."
    if settings.database_url_file.startswith(CREDENTIALS):  # a copy, made at the start
        return f"Correct the file that the unit's LoadCredential names, then `{restart}`."
    if settings.database_url_file:
        return f"Correct the file {settings.database_url_file}; the service reads it again itself."
    place = origin if origin.startswith(("INGEST_", "--")) else f"database_url in {origin}"
    return f"Correct {place}, then restart the service: `{restart}`."
