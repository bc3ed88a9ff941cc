"""The posts of one message of the stream: which readings, as which bytes, with which key.

Promises: the same message, filters and limits always make the same posts with the same keys, also
in another process. So a target that has seen a key has all readings of that post. If a setting or
the message differs, the key does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import orjson

from ingest.buffers.frames import HEAD_BYTES
from ingest.model.reading import Reading
from ingest.model.rows import decode_rows
from ingest.system.clock import rfc3339_or_us

KEY_BYTES = 16
NAMES_REMEMBERED = 20_000


class PostLimits(NamedTuple):
    """The bounds of one post."""

    rows_max: int
    bytes_max: int


class ForwardPost(NamedTuple):
    """A post: its idempotency key, its body, and what the body holds."""

    key: str
    body: bytes
    readings: Sequence[Reading]


class Filters:
    """Which readings are sent. A glob has `*`, `?` and `[..]`; no glob at all means every name."""

    def __init__(self, devices: Sequence[str] = (), metrics: Sequence[str] = ()) -> None:
        self._devices = _matcher(devices)
        self._metrics = _matcher(metrics)
        self.wants = lru_cache(NAMES_REMEMBERED)(self._wants)

    def _wants(self, device_id: str, metric: str) -> bool:
        return bool(self._devices(device_id) and self._metrics(metric))


def _matcher(globs: Sequence[str]) -> Callable[[str], object]:
    return re.compile("|".join(map(translate, globs or ("*",)))).fullmatch


def outgoing(
    message: bytes, tuples: bytes, filters: Filters, limits: PostLimits
) -> Iterator[ForwardPost]:
    """Yield the posts of a message whose rows are `tuples`; none if no reading is wanted.

    A reading that alone is larger than `bytes_max` is a post of its own.
    """
    texts: list[bytes] = []
    readings: list[Reading] = []
    size = 1  # `[`; each reading has a comma or `]` behind it
    for reading in decode_rows(tuples):
        if not filters.wants(reading.device_id, reading.metric):
            continue
        text = _text(reading)
        full = len(texts) >= limits.rows_max or size + len(text) + 1 > limits.bytes_max
        if texts and full:
            yield _post(message, texts, readings)
            texts, readings, size = [], [], 1
        texts.append(text)
        readings.append(reading)
        size += len(text) + 1
    if texts:
        yield _post(message, texts, readings)


def _post(message: bytes, texts: Sequence[bytes], readings: Sequence[Reading]) -> ForwardPost:
    body = b"[" + b",".join(texts) + b"]"
    # The head has the gateway's number of the message, its time, and the check sum of its rows.
    digest = blake2b(message[:HEAD_BYTES], digest_size=KEY_BYTES)
    digest.update(body)
    return ForwardPost(digest.hexdigest(), body, readings)


def _text(reading: Reading) -> bytes:
    return orjson.dumps(
        {
            "ts": rfc3339_or_us(reading.ts_us),
            "device_id": reading.device_id,
            "metric": reading.metric,
            "value": reading.value,
        }
    )
