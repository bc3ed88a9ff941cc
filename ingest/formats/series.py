"""Names that were posted, checked and encoded once: devices and metrics, each for itself.

The names of a row are what it has of the device and then what it has of the metric. So nothing is
kept for each series. JSON and the other formats with items find their names here; lines/keys.py
keeps the keys of lines. All formats tell which devices post, but only those that were not kept. So
a registry learns it at no cost for the others. It calls `look` to be told of all devices again.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import add

from ingest.model.block import device_needles, metric_after
from ingest.model.reading import NAME_CHARACTERS_MAX, name_fault

KEPT_BYTES_MAX = 8 * 1024 * 1024  # of all names: 30,000 devices
TOLD_AT_ONCE = 1_000  # devices: some 0.1 ms of work for a registry
_ENTRY_BYTES = 230  # of a name in its dict, besides its characters: at most 4 bytes for each


class SeriesCache:
    """Valid names. `devices` and `metrics` are for the hot path, which only reads them.

    They have what `rows.names_between` returns for the device, and for the metric. Each device that
    is in `devices` was told to `listener` since the last `look`.
    """

    def __init__(self) -> None:
        self.devices: dict[str, bytes] = {}
        self.metrics: dict[str, bytes] = {}
        self.listener: Callable[[list[str]], None] | None = None
        self.looks = 0
        self.found = 0  # names and keys that were not kept, since the last look
        self._size_bytes = 0
        self._posted: list[str] = []  # devices that are not told yet

    def names(self, metric: str, device_id: str) -> bytes:
        """Return the bytes between ts and value. Raises KeyError for an invalid or missing name.

        The device has then posted.
        """
        return self.all_names([metric], [device_id])[0]

    def all_names(self, metrics: list[str], device_ids: list[str]) -> list[bytes]:
        """Do what `names` does, for many readings. No device has posted if a metric is invalid."""
        if self._size_bytes > KEPT_BYTES_MAX:
            self._forget()
        try:
            afters = [*map(self.metrics.__getitem__, metrics)]
        except KeyError:
            self._keep_metrics([each for each in {*metrics} if each not in self.metrics])
            afters = [*map(self.metrics.__getitem__, metrics)]
        try:
            return [*map(add, map(self.devices.__getitem__, device_ids), afters)]
        except KeyError:
            self._keep_devices([each for each in {*device_ids} if each not in self.devices])
            return [*map(add, map(self.devices.__getitem__, device_ids), afters)]

    def posted(self, device_ids: list[str]) -> None:
        """Tell the listener of these devices, now or soon."""
        self.found += len(device_ids)
        self._posted += device_ids
        if len(self._posted) >= TOLD_AT_ONCE:
            self._tell()

    def look(self) -> None:
        """Tell the listener of all devices that have posted. Each is told again if it posts again.

        The next posts then pay a miss for each name, some 1 us. Other posts pay nothing.
        """
        self._tell()
        self._forget()
        self.looks += 1
        self.found = 0

    def _tell(self) -> None:
        posted, self._posted = self._posted, []
        if self.listener is not None:
            self.listener(posted)

    def _forget(self) -> None:
        self.devices.clear()
        self.metrics.clear()
        self._size_bytes = 0

    def _keep_metrics(self, metrics: list[str]) -> None:
        for metric in metrics:
            if name_fault(metric):
                raise KeyError(metric)
            self.metrics[metric] = metric_after(metric)
            self._size_bytes += 4 * len(metric) + _ENTRY_BYTES

    def _keep_devices(self, device_ids: list[str]) -> None:
        self.devices.update(zip(device_ids, valid_needles(device_ids), strict=True))
        self._size_bytes += 4 * sum(map(len, device_ids)) + len(device_ids) * _ENTRY_BYTES
        self.posted(device_ids)


def valid_needles(device_ids: list[str]) -> list[bytes]:
    """Return `device_needles` of some devices. Raises KeyError if one is invalid."""
    joined, sizes = "".join(device_ids), [*map(len, device_ids)]
    are_plain = joined.isascii() and joined.isprintable()
    if not (are_plain and min(sizes) and max(sizes) <= NAME_CHARACTERS_MAX):
        for device_id in device_ids:
            if name_fault(device_id):
                raise KeyError(device_id)
    return device_needles(device_ids)


SERIES = SeriesCache()
