"""The devices seen since the start: their number, the newest, the silent, the most rejected ones.

Up to DEVICES_MAX this is exact. Further devices are only counted, by a bitmap: two of them may have
the same bit, so there are at least so many. The answer says so. A device is seen when a post with a
valid reading of it comes, whether the post is accepted or not. Times are exact to the pause between
two calls of `look`.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from collections.abc import Iterable
from typing import Any

from ingest.formats.series import SERIES, SeriesCache
from ingest.system.clock import rfc3339_s, unix_us

DEVICES_MAX = 100_000
ROUND_DEVICES = 2_000  # in one round of the event loop: less than a millisecond
LOOK_SERIES_PER_S = 2_000  # each causes a cache miss at its next post: at most 0.4 % of a core
LOOK_S_MAX = 20.0
LISTED_MAX = 50
_BITS = 1 << 23  # 1 MiB


class Devices:
    """The registry. It hears of devices from formats/series.py, which sees those of all posts."""

    def __init__(self, series: SeriesCache = SERIES) -> None:
        self._series = series
        series.listener = lambda device_ids: self.seen(device_ids, unix_us())
        self._place: dict[str, int] = {}
        self._first_us = array("q")
        self._last_us = array("q")
        self._rejected: dict[str, int] = {}
        self._bitmap = bytearray(_BITS // 8)
        self._bits_set = 0
        self.rejected_sampled = False
        self._looked_us = self._started_us = unix_us()

    # Collecting

    def is_due(self) -> bool:
        """Whether to `look` now. The more devices post, the longer is the pause."""
        age_s = (unix_us() - self._looked_us) / 1e6
        return age_s >= min(self._series.found / LOOK_SERIES_PER_S, LOOK_S_MAX)

    def look(self) -> None:
        """Note all devices that have posted so far, and hear again of those that post from now."""
        self._looked_us = unix_us()
        self._series.look()

    def seen(self, device_ids: Iterable[str], now_us: int) -> None:
        """Note some devices."""
        places, last_us, bitmap = self._place, self._last_us, self._bitmap
        for device_id in device_ids:
            place = places.get(device_id)
            if place is not None:
                last_us[place] = now_us
            elif len(places) < DEVICES_MAX:
                places[device_id] = len(last_us)
                self._first_us.append(now_us)
                last_us.append(now_us)
            else:
                bit = hash(device_id) % _BITS
                if not bitmap[bit >> 3] >> (bit & 7) & 1:
                    bitmap[bit >> 3] |= 1 << (bit & 7)
                    self._bits_set += 1

    def rejected(self, device_ids: Iterable[str]) -> None:
        """Count a rejected reading for each of these devices."""
        for device_id in device_ids:
            if device_id in self._rejected or len(self._rejected) < DEVICES_MAX // 10:
                self._rejected[device_id] = self._rejected.get(device_id, 0) + 1
            else:
                self.rejected_sampled = True

    # Reporting

    @property
    def exact(self) -> bool:
        """Whether `count` and the lists are exact."""
        return not self._bits_set

    @property
    def count(self) -> int:
        """So many devices were seen; at least so many unless `exact`."""
        return len(self._place) + self._bits_set

    async def report(self, silent_s: float) -> dict[str, Any]:
        """Return counts and lists for JSON. Takes 10 ms at 100,000 devices, in several rounds.

        A device is silent if it has not been seen for longer than `silent_s`.
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
            "since": rfc3339_s(self._started_us),
            "count": self.count,
            "exact": self.exact,
            "followed_max": DEVICES_MAX,
            "silent_s": silent_s,
            "silent_count": len(silent),
            "silent": [self._described(names[place], place) for place in longest],
            "newest": [self._described(names[place], place) for place in newest],
            "rejected": [{"device_id": name, "rejected": count} for name, count in most],
            "rejected_sampled": self.rejected_sampled,
        }

    async def listed(self, prefix: str, after: str, count: int) -> tuple[list[str], int]:
        """Return the first `count` names that begin with `prefix` and come after `after`.

        They are in the order of their bytes. Also returns how many begin with `prefix`. Takes 20 ms
        at 100,000 devices, in several rounds.
        """
        found: list[str] = []
        matching = 0
        names = list(self._place)
        for start in range(0, len(names), ROUND_DEVICES):
            part = [
                each for each in names[start : start + ROUND_DEVICES] if each.startswith(prefix)
            ]
            matching += len(part)
            found = heapq.nsmallest(count, [*found, *(each for each in part if each > after)])
            await asyncio.sleep(0)
        return found, matching

    def described(self, device_id: str) -> dict[str, Any] | None:
        """Return when one device was first and last seen, or None if it was not seen."""
        place = self._place.get(device_id)
        return None if place is None else self._described(device_id, place)

    def _described(self, device_id: str, place: int) -> dict[str, Any]:
        return {
            "device_id": device_id,
            "first_seen": rfc3339_s(self._first_us[place]),
            "last_seen": rfc3339_s(self._last_us[place]),
        }
