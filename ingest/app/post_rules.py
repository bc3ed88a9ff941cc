"""What posts may have, who may post, and where what is refused is kept.

That is: the rules of readings, the mapped sources, the tables with columns, the tokens, and the
dead letters, whose replay follows the same rules. All of it is made from the settings and from the
files that they name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ingest.access.token_file import TokenFile
from ingest.access.tokens import OPEN, TOKEN, is_open
from ingest.config.declared_tables import make_tables
from ingest.config.named_files import state_dir, take_entries
from ingest.config.settings import Settings
from ingest.config.values import full_path, moment_us
from ingest.dead_letters.folder.backend import FolderBackend, segment_bytes
from ingest.dead_letters.queue import DeadLetterQueue, LetterBackend
from ingest.formats.mapped.source import IN, KEYS, Source, compile_source
from ingest.formats.post import Rules
from ingest.http.clients import is_loopback
from ingest.model.errors import KeyFault
from ingest.system.words import command_words

SOURCES_SHOWN_MAX = 3


def make_rules(settings: Settings) -> Rules:
    """Return the limits for posts and times, and the mappings. Raises ConfigError."""
    return Rules(
        post_rows_max=settings.post_rows_max,
        ts_min_us=moment_us(settings.ts_min),
        ts_ahead_us_max=int(settings.ts_ahead_s_max * 1e6),
        integers_rounded=settings.value_inexact == "round",
        device_tags=tuple(filter(None, map(str.strip, settings.line_device_tags.split(",")))),
        line_escapes=settings.line_escapes,
        sources=make_sources(settings),
        tables=make_tables(settings),
    )


def make_sources(settings: Settings) -> Mapping[str, Source]:
    """Return the mappings of the file of sources, by name. Raises ConfigError."""
    sources: dict[str, Source] = {}
    if not settings.sources_file:
        return MappingProxyType(sources)
    pages: dict[str, str] = {}

    def take(table: dict[str, Any]) -> None:
        source = compile_source(table)
        if source.name in sources:
            raise KeyFault("name", "it is the name of an earlier source, too")
        sources[source.name] = source
        for page in (*source.paths, *source.ignored_paths):
            if page in pages:
                raise KeyFault("path", f"{pages[page]} has {page}, too")
            pages[page] = source.name

    take_entries(settings.sources_file, "source", KEYS, take)
    return MappingProxyType(sources)


def shown_sources(settings: Settings) -> list[str]:
    """Return the paths of the first sources of the file, a few. Raises ConfigError."""
    return [IN + name for name in make_sources(settings)][:SOURCES_SHOWN_MAX]


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


def make_dead_letters(
    settings: Settings, backend: LetterBackend, *, auto_replay: bool
) -> DeadLetterQueue:
    """Return the dead letters of a process, in the running event loop."""
    return DeadLetterQueue(
        backend,
        bytes_max=settings.dlq_bytes_max,
        auto_replay=auto_replay,
        rules=make_rules(settings),
    )


def folder_letters(settings: Settings, folder: Path, *, auto_replay: bool) -> DeadLetterQueue:
    """Return those of a process that has this folder."""
    backend = FolderBackend(
        folder,
        segment_bytes=segment_bytes(settings.dlq_bytes_max),
        keep_days=settings.dlq_keep_days,
    )
    return make_dead_letters(settings, backend, auto_replay=auto_replay)
