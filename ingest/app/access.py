"""Makes the file of tokens from the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ingest.access.rule import OPEN, TOKEN, is_open
from ingest.access.token_file import TokenFile
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.config.values import full_path
from ingest.http.sites import is_loopback
from ingest.system.surroundings import command_words


def tokens_path(settings: Settings) -> Path:
    """Return the file of tokens: as it is set, else that of the state folder."""
    if settings.tokens_file:
        return full_path(settings.tokens_file)
    return state_dir(settings) / "tokens"


def open_tokens(settings: Settings, *, may_be_missing: bool = False) -> TokenFile:
    """Return the file of tokens, read for the first time. Raises StartError.

    That of the state folder may be missing; one that is set only if it `may_be_missing`.
    """
    named = bool(settings.tokens_file) and not may_be_missing
    file = TokenFile(tokens_path(settings), named=named)
    file.open()
    return file


def with_access(settings: Settings, address: str) -> Settings:
    """Return the settings with `access` as it is for all processes that serve at `address`.

    A token that is made later must not change it for some of them. Raises StartError.
    """
    free = is_open(
        settings.access,
        private=is_loopback(address) and not settings.trusted_proxies,
        tokens=open_tokens(settings).tokens.entries.senders,
        address=address,
        run=command_words()["down"],
    )
    return replace(settings, access=OPEN if free else TOKEN)
