"""The series (device and metric) that were met: their names, checked and encoded once.

A hit costs two look-ups in a dict. Admin asks which series were met, and so learns which devices
post, at no cost per reading. Formats share the one cache of the process.
"""

from __future__ import annotations

from collections import deque

from msgspec import UnsetType

from ingest.model.reading import Reading, name_fault
from ingest.model.rows import encode_row, names_between

SERIES_CACHED_MAX = 32_768
CACHES_KEPT_MAX = 4  # full ones, until somebody takes them: 26 MB

# What stands between ts and value in the rows of a series, by metric and device_id. By metric
# first, because there are few: one large dict beats many small ones.
Names = dict[str | UnsetType, dict[str, bytes]]


class SeriesCache:
    """Names that are known to be good. `known` is for the hot path, which only reads it.

    It is emptied when it is full or taken, so it holds what was met since then.
    """

    def __init__(self) -> None:
        self.known: Names = {}
        self._known_count = 0
        self._filled: deque[Names] = deque(maxlen=CACHES_KEPT_MAX)
        self._forgotten = 0  # full caches that found no place in _filled

    def names(self, metric: str | UnsetType, device_id: str) -> bytes:
        """Return what is between ts and value in a row. Raises KeyError for a bad or no name."""
        try:
            return self.known[metric][device_id]
        except KeyError:
            if isinstance(metric, UnsetType) or name_fault(metric) or name_fault(device_id):
                raise
        if self._known_count >= SERIES_CACHED_MAX:
            self._begin_anew()
        names = self.known.setdefault(metric, {})[device_id] = names_between(device_id, metric)
        self._known_count += 1
        return names

    def encode(self, reading: Reading) -> bytes:
        """Encode one reading whose names are known to be good; its series counts as met."""
        return encode_row(
            reading.ts_us, self.names(reading.metric, reading.device_id), reading.value
        )

    def met(self) -> int:
        """Return how many series were met since the last `take`, or more."""
        return self._known_count + SERIES_CACHED_MAX * len(self._filled)

    def take(self) -> tuple[list[Names], bool]:
        """Return the series met since the last call, by metric and device; whether these are all.

        Costs the posts that come next a miss for each series, some 2 us, and all others nothing.
        """
        if self._known_count:
            self._begin_anew()
        taken, complete = list(self._filled), not self._forgotten
        self._filled.clear()
        self._forgotten = 0
        return taken, complete

    def _begin_anew(self) -> None:
        """Put the cache by, and begin an empty one."""
        self._forgotten += len(self._filled) == CACHES_KEPT_MAX
        self._filled.append(self.known)
        self.known, self._known_count = {}, 0


SERIES = SeriesCache()
