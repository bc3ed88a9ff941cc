"""The addresses of the page about devices: the lists, last readings and curves of one device.

    /devices           counts, and the silent, newest and most rejected ones
    /devices/list      all devices by name, in pages, with their last readings
    /devices/newest    the newest readings, for the page's start
    /devices/readings  readings of one device, or curves of one metric

Promises: all but `/devices/readings` answer also while the database is away, and say `why` there
are no values.
Does not: check who may look; pages.py does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from ingest.admin.dashboard.assets import NO_STORE, compressed
from ingest.admin.dashboard.devices import Devices
from ingest.admin.dashboard.query import device, number, parameters, time_us
from ingest.http.request import Request
from ingest.http.response import JSON, Answer
from ingest.model.errors import Refused
from ingest.sinks.postgres.lookup import (
    BUCKETS_MAX,
    READINGS_MAX,
    Between,
    Lookup,
)
from ingest.system.clock import unix_us

SILENT_S = 60.0
LISTED_MAX = 200
CURVE_US = 3_600_000_000  # the time of a curve if `from` is not given
STEP_S_MAX = 31_536_000.0


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
