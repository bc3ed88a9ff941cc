"""A cache of series (device and metric) that were posted: their names, checked and encoded once.

A hit costs two look-ups in a dict. The admin port asks which series were posted. So it learns which
devices are active, at no cost per reading. All formats share the one cache of the process.
"""

from __future__ import annotations

from collections import deque

from ingest.model.reading import Reading, name_fault
from ingest.model.rows import encode_row, names_between

SERIES_CACHED_MAX = 32_768
CACHES_KEPT_MAX = 4  # full ones that `take` has not returned yet: 26 MB

# The bytes between ts and value in the rows of a series, by metric and device_id. By metric first,
# because there are few metrics: one large dict is faster than many small ones.
Names = dict[str, dict[str, bytes]]


class SeriesCache:
    """Valid names. `known` is for the hot path, which only reads it.

    The cache is emptied when it is full or taken. So it holds the series posted since then.
    """

    def __init__(self) -> None:
        self.known: Names = {}
        self._known_count = 0
        self._filled: deque[Names] = deque(maxlen=CACHES_KEPT_MAX)
        self._forgotten = 0  # full caches that found no place in _filled

    def names(self, metric: str, device_id: str) -> bytes:
        """Return the bytes between ts and value. Raises KeyError for an invalid or missing name."""
        try:
            return self.known[metric][device_id]
        except KeyError:
            if name_fault(metric) or name_fault(device_id):
                raise
        if self._known_count >= SERIES_CACHED_MAX:
            self._begin_anew()
        names = self.known.setdefault(metric, {})[device_id] = names_between(device_id, metric)
        self._known_count += 1
        return names

    def encode(self, reading: Reading) -> bytes:
        """Encode one reading whose names are valid; its series counts as posted."""
        return encode_row(
            reading.ts_us, self.names(reading.metric, reading.device_id), reading.value
        )

    def met(self) -> int:
        """Return how many series were posted since the last `take`, or a larger number."""
        return self._known_count + SERIES_CACHED_MAX * len(self._filled)

    def take(self) -> tuple[list[Names], bool]:
        """Return the series posted since the last call, and whether the list is complete.

        The next posts then pay a miss for each series, some 2 us. Other posts pay nothing.
        """
        if self._known_count:
            self._begin_anew()
        taken, complete = list(self._filled), not self._forgotten
        self._filled.clear()
        self._forgotten = 0
        return taken, complete

    def _begin_anew(self) -> None:
        """Keep the cache for `take`, and start an empty one."""
        self._forgotten += len(self._filled) == CACHES_KEPT_MAX
        self._filled.append(self.known)
        self.known, self._known_count = {}, 0


SERIES = SeriesCache()
