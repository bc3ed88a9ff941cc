"""The rules of a reading, from the settings: for posts, and for the replay of dead letters."""

from __future__ import annotations

from ingest.config.settings import Settings, ts_min_us
from ingest.formats.post import Rules


def device_tags(settings: Settings) -> tuple[str, ...]:
    """Return the tags of line protocol that name a device."""
    return tuple(filter(None, map(str.strip, settings.line_device_tags.split(","))))


def make_rules(settings: Settings) -> Rules:
    """Return the limits for posts and times."""
    return Rules(
        post_rows_max=settings.post_rows_max,
        ts_min_us=ts_min_us(settings),
        ts_ahead_us_max=int(settings.ts_ahead_s_max * 1e6),
        integers_rounded=settings.value_inexact == "round",
        device_tags=device_tags(settings),
    )
