"""The devices: those seen since the start, and the addresses of the page about them.

    /devices           counts, and the silent, newest and most rejected ones
    /devices/list      all devices by name, in pages, with their last readings
    /devices/newest    the newest readings, for the page's start
    /devices/readings  readings of one device, or curves of one metric

Promises: all but `/devices/readings` answer also while the database is away, and say `why` there
are no values.
Does not: check who may look; pages.py does.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from ingest.admin.dashboard.assets import NO_STORE, compressed
from ingest.admin.dashboard.query import device, number, parameters, time_us
from ingest.formats.block_builder import SERIES, SeriesCache
from ingest.http.request_and_answer import JSON, Answer, Request
from ingest.model.errors import Refused
from ingest.sinks.postgres.lookup import (
    BUCKETS_MAX,
    READINGS_MAX,
    Between,
    Lookup,
)
from ingest.system.clock import rfc3339_s, unix_us
from ingest.system.waiting import in_slices

DEVICES_MAX = 100_000
ROUND_DEVICES = 2_000  # without a look at the time: less than a millisecond
LOOK_SERIES_PER_S = 2_000  # each causes a cache miss at its next post: at most 0.4 % of a core
LOOK_S_MAX = 20.0
EACH_LIST_MAX = 50
_BITS = 1 << 23  # 1 MiB
# Of the addresses.
SILENT_S = 60.0
LISTED_MAX = 200
CURVE_US = 3_600_000_000  # the time of a curve if `from` is not given
STEP_S_MAX = 31_536_000.0


class Devices:
    """The devices seen since the start: their number, the newest, silent and most rejected ones.

    It hears of them from formats/block_builder.py: a device is seen when a post with a valid
    reading of it comes, whether the post is accepted or not. Times are exact to the pause between
    two calls of `look`. Up to DEVICES_MAX all is exact. Further devices are only counted, by a
    bitmap: two of them may have the same bit, so there are at least so many. The answer says so.
    """

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
        async for start in in_slices(range(0, len(last_us), 5 * ROUND_DEVICES)):
            end = start + 5 * ROUND_DEVICES
            silent += [
                place for place, us in enumerate(last_us[start:end], start) if us < latest_us
            ]
        names = list(self._place)
        longest = heapq.nsmallest(EACH_LIST_MAX, silent, key=last_us.__getitem__)
        newest = range(len(names) - 1, max(-1, len(names) - 1 - EACH_LIST_MAX), -1)
        most = heapq.nlargest(EACH_LIST_MAX, self._rejected.items(), key=lambda each: each[1])
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
        async for start in in_slices(range(0, len(names), ROUND_DEVICES)):
            part = [
                each for each in names[start : start + ROUND_DEVICES] if each.startswith(prefix)
            ]
            matching += len(part)
            found = heapq.nsmallest(count, [*found, *(each for each in part if each > after)])
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


class DevicePages:
    """Answers about devices. `lookup` returns None until there is a database."""

    def __init__(self, devices: Devices, lookup: Callable[[], Lookup | None]) -> None:
        self._devices = devices
        self._lookup = lookup

    async def report(self, _request: Request, query: str) -> Answer:
        """Answer `/devices`."""
        given = parameters(query, "silent_s")
        silent_s = number(given, "silent_s", SILENT_S, 1, 31_536_000)
        return _answer(await self._devices.report(silent_s))

    async def listed(self, _request: Request, query: str) -> Answer:
        """Answer `/devices/list`.

        Devices of the table are listed that have not posted since the start: all of them with the
        index, else those of its newest readings. `matching` counts only those that have posted.
        """
        given = parameters(query, "prefix", "after", "limit")
        prefix, after = (_text(given, name) for name in ("prefix", "after"))
        count = int(number(given, "limit", 50, 1, LISTED_MAX))
        names, matching = await self._devices.listed(prefix, after, count + 1)
        last: dict[str, Any] = {}
        document: dict[str, Any] = {"why": ""}
        try:
            lookup = self._asked()
            found = await lookup.devices(names, prefix, after, count + 1)
            last, names = found["last"], sorted({*names, *found["devices"]})
            document |= _advice(found, lookup)
        except Refused as error:
            document["why"] = error.detail
        document |= {
            "matching": matching,
            "exact": self._devices.exact,
            "more": len(names) > count,
            "devices": [
                {"device_id": name, "seen": self._devices.described(name), "last": last.get(name)}
                for name in names[:count]
            ],
        }
        return _answer(document)

    async def newest(self, _request: Request, query: str) -> Answer:
        """Answer `/devices/newest`: the newest readings in the table, of all devices or of one."""
        given = parameters(query, "device_id", "limit")
        device_id, count = _text(given, "device_id"), _limit(given)
        try:
            lookup = self._asked()
            if device_id:
                found = await lookup.last_readings(device_id, count)
            else:
                found = await lookup.newest(count)
        except Refused as error:
            found = {"readings": [], "why": error.detail}
        return _answer(found)

    async def readings(self, request: Request, query: str) -> Answer:
        """Answer `/devices/readings`."""
        given = parameters(query, "device_id", "metric", "from", "to", "step", "limit")
        device_id = device(given)
        metric = device(given, "metric") if "metric" in given else None
        within = Between(time_us(given, "from"), time_us(given, "to"))
        if None not in within and within[0] >= within[1]:  # type: ignore[operator]
            raise Refused("bad_parameter", "from is before to")
        document = {"device_id": device_id, "seen": self._devices.described(device_id)}
        if "step" in given:
            found = await self._curve(given, device_id, metric, within)
        else:
            count = _limit(given)
            found = await self._asked().last_readings(device_id, count, metric, within)
        document |= _advice(found, self._asked())
        return compressed(request.headers, orjson.dumps(document), JSON, NO_STORE)

    async def _curve(
        self, given: dict[str, str], device_id: str, metric: str | None, within: Between
    ) -> dict[str, Any]:
        if metric is None or "limit" in given:
            raise Refused("bad_parameter", "step needs metric, and takes no limit")
        to_us = unix_us() if within.to_us is None else within.to_us
        from_us = to_us - CURVE_US if within.from_us is None else within.from_us
        step_us = round(number(given, "step", 0, 0.001, STEP_S_MAX) * 1e6)
        if not 0 < to_us - from_us <= BUCKETS_MAX * step_us:
            raise Refused("bad_parameter", f"from is before to, by at most {BUCKETS_MAX} steps")
        found = await self._asked().curve(device_id, metric, Between(from_us, to_us), step_us)
        return {"metric": metric, "step": step_us / 1e6, **found}

    def _asked(self) -> Lookup:
        lookup = self._lookup()
        if lookup is None:
            raise Refused("starting", "the service has not seen its database yet")
        return lookup


def _limit(given: dict[str, str]) -> int:
    return int(number(given, "limit", 20, 1, READINGS_MAX))


def _text(given: dict[str, str], name: str) -> str:
    return device(given, name) if given.get(name) else ""


def _advice(found: dict[str, Any], lookup: Lookup) -> dict[str, Any]:
    """Return the answer, with an offer of the index if it is missing."""
    return found if found["device_index"] else {**found, "advice": lookup.index_advice}


def _answer(document: dict[str, Any]) -> Answer:
    """Answer with a page that is shared: `shared` compresses it."""
    return Answer(200, orjson.dumps(document), JSON, headers=NO_STORE)
