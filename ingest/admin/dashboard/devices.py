"""The devices seen since the start: how many, the newest, the silent ones, the most rejected.

Exact to DEVICES_MAX; further ones are only counted, by a bitmap (a tenth of a percent off at a
million), and the answer says so. "Seen" means that a post with a well-formed reading of it came,
whatever became of the post. The resolution is the time between two calls of `look`.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from collections.abc import Callable, Iterable
from math import log
from typing import Any

from ingest.formats.series import SERIES, Names
from ingest.system.clock import rfc3339, unix_us

DEVICES_MAX = 100_000
ROUND_DEVICES = 2_000  # between two turns of the loop, less than a millisecond
LOOK_SERIES_PER_S = 2_000  # each costs its next post a cache miss: 0.4 % of a core at most
LOOK_S_MAX = 20.0
LISTED_MAX = 50
_BITS = 1 << 23  # 1 MiB


class Devices:
    """The registry. `met`, `take` are decode_fast's, where the names of all posts pass."""

    def __init__(
        self,
        *,
        met: Callable[[], int] = SERIES.met,
        take: Callable[[], tuple[list[Names], bool]] = SERIES.take,
    ) -> None:
        self._met = met
        self._take = take
        self._place: dict[str, int] = {}
        self._first_us = array("q")
        self._last_us = array("q")
        self._rejected: dict[str, int] = {}
        self._bitmap = bytearray(_BITS // 8)
        self._bits_set = 0
        self.missed = False  # more series at once than could be noted
        self.rejected_sampled = False
        self._looked_us = unix_us()
        self._started_us = self._looked_us

    # Taking in

    def is_due(self) -> bool:
        """Whether to `look` now: at once while few devices post, less often the more there are."""
        age_s = (unix_us() - self._looked_us) / 1e6
        return age_s >= min(self._met() / LOOK_SERIES_PER_S, LOOK_S_MAX)

    async def look(self) -> None:
        """Note all devices met since the last look. Yields to the loop now and then."""
        now_us = self._looked_us = unix_us()
        caches, complete = self._take()
        self.missed = self.missed or not complete
        turn = 0
        for cache in caches:
            for by_device in cache.values():
                for device_id in by_device:
                    self.seen(device_id, now_us)
                    turn += 1
                    if turn % ROUND_DEVICES == 0:
                        await asyncio.sleep(0)

    def seen(self, device_id: str, now_us: int) -> None:
        """Note one device."""
        place = self._place.get(device_id)
        if place is not None:
            self._last_us[place] = now_us
            return
        if len(self._place) < DEVICES_MAX:
            self._place[device_id] = len(self._last_us)
            self._first_us.append(now_us)
            self._last_us.append(now_us)
        bit = hash(device_id) % _BITS
        byte, mask = bit >> 3, 1 << (bit & 7)
        if not self._bitmap[byte] & mask:
            self._bitmap[byte] |= mask
            self._bits_set += 1

    def rejected(self, device_ids: Iterable[str]) -> None:
        """Count one rejected reading for each device named; what names none is left out."""
        for device_id in device_ids:
            if device_id in self._rejected or len(self._rejected) < DEVICES_MAX // 10:
                self._rejected[device_id] = self._rejected.get(device_id, 0) + 1
            else:
                self.rejected_sampled = True

    # Telling

    @property
    def exact(self) -> bool:
        """Whether `count` and the lists are exact."""
        return len(self._place) < DEVICES_MAX and not self.missed

    @property
    def count(self) -> int:
        """Devices seen; approximate unless `exact`."""
        if len(self._place) < DEVICES_MAX:
            return len(self._place)
        empty = max(1, _BITS - self._bits_set)
        return max(DEVICES_MAX, round(-_BITS * log(empty / _BITS)))

    async def report(self, silent_s: float) -> dict[str, Any]:
        """Return counts and lists, as JSON can say them. 10 ms at 100,000 devices, in turns.

        `silent_s`: a device that has not been seen for longer is silent.
        """
        now_us = unix_us()
        latest_us = now_us - int(silent_s * 1e6)
        silent: list[int] = []
        last_us = self._last_us
        for start in range(0, len(last_us), 5 * ROUND_DEVICES):
            end = start + 5 * ROUND_DEVICES
            silent += [
                place for place, us in enumerate(last_us[start:end], start) if us < latest_us
            ]
            await asyncio.sleep(0)
        names = list(self._place)
        longest = heapq.nsmallest(LISTED_MAX, silent, key=last_us.__getitem__)
        newest = range(len(names) - 1, max(-1, len(names) - 1 - LISTED_MAX), -1)
        most = heapq.nlargest(LISTED_MAX, self._rejected.items(), key=lambda each: each[1])
        return {
            "since": _when(self._started_us),
            "count": self.count,
            "exact": self.exact,
            "followed_max": DEVICES_MAX,
            "silent_s": silent_s,
            "silent_count": len(silent),
            "silent": [self._told(names[place], place) for place in longest],
            "newest": [self._told(names[place], place) for place in newest],
            "rejected": [{"device_id": name, "rejected": count} for name, count in most],
            "rejected_sampled": self.rejected_sampled,
        }

    def told(self, device_id: str) -> dict[str, Any] | None:
        """Return what is known of one device, or None if it has not been seen."""
        place = self._place.get(device_id)
        return None if place is None else self._told(device_id, place)

    def _told(self, device_id: str, place: int) -> dict[str, Any]:
        return {
            "device_id": device_id,
            "first_seen": _when(self._first_us[place]),
            "last_seen": _when(self._last_us[place]),
        }


def _when(us: int) -> str:
    return rfc3339(us - us % 1_000_000)
