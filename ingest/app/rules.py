"""The rules of a reading, from the settings: for posts, and for the replay of dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ingest.config.settings import Settings
from ingest.config.source_tables import source_tables
from ingest.config.values import moment_us, nearest
from ingest.formats.map_source import KEYS, Source, SourceFault, compile_source
from ingest.formats.post import Rules
from ingest.model.errors import ConfigError


def device_tags(settings: Settings) -> tuple[str, ...]:
    """Return the tags of line protocol that name a device."""
    return tuple(filter(None, map(str.strip, settings.line_device_tags.split(","))))


def make_rules(settings: Settings) -> Rules:
    """Return the limits for posts and times, and the mappings. Raises ConfigError."""
    return Rules(
        post_rows_max=settings.post_rows_max,
        ts_min_us=moment_us(settings.ts_min),
        ts_ahead_us_max=int(settings.ts_ahead_s_max * 1e6),
        integers_rounded=settings.value_inexact == "round",
        device_tags=device_tags(settings),
        line_escapes=settings.line_escapes,
        sources=make_sources(settings),
    )


def make_sources(settings: Settings) -> Mapping[str, Source]:
    """Return the mappings of the file of sources, by name. Raises ConfigError."""
    sources: dict[str, Source] = {}
    if not settings.sources_file:
        return MappingProxyType(sources)
    path, tables = source_tables(settings.sources_file)
    pages: dict[str, str] = {}
    for number, table in enumerate(tables, 1):
        name = table.get("name") or table.get("preset")
        where = f"{path}, source {number}" + (f" ({name!r:.80})" if name else "")
        try:
            source = compile_source(table)
        except SourceFault as fault:
            near = "" if fault.key in KEYS else nearest(fault.key, KEYS)
            raise ConfigError(f"{where}, key {fault.key}: {fault}{near}") from None
        if source.name in sources:
            raise ConfigError(f"{where}, key name: it is the name of an earlier source, too")
        sources[source.name] = source
        for page in (*source.paths, *source.ignored_paths):
            if page in pages:
                raise ConfigError(f"{where}, key path: {pages[page]} has {page}, too")
            pages[page] = source.name
    return MappingProxyType(sources)
