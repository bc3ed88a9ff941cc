"""The rules of a reading from the settings, for posts and for dead letters that are replayed."""

from __future__ import annotations

from ingest.config.settings import Settings, ts_min_us
from ingest.formats.post import Rules


def make_rules(settings: Settings) -> Rules:
    """Return what a reading must obey."""
    return Rules(
        post_rows_max=settings.post_rows_max,
        ts_min_us=ts_min_us(settings),
        ts_ahead_us_max=int(settings.ts_ahead_s_max * 1e6),
    )
