"""The posts of one message of the stream: which readings, in which bytes, with which key, signed.

Promises: the same message, filters and limits always make the same posts with the same keys, also
in another process. So a target that has seen a key has all readings of that post. If a setting or
the message differs, the key does.
The signature is that of the specification "Standard Webhooks", so that libraries can check it:

    webhook-id         the idempotency key
    webhook-timestamp  when it was sent, in Unix seconds
    webhook-signature  v1, and the base64 of HMAC-SHA256(secret, "ID.TIMESTAMP.BODY")

The secret is in no log and in no error.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest.buffers.frames import HEAD_BYTES
from ingest.config.origins import UnusableFile, read_secret_again
from ingest.model.moments import decode_readings
from ingest.model.reading import Reading
from ingest.system.clock import rfc3339_or_us
from ingest.system.logs import Occasionally, get_logger

KEY_BYTES = 16
NAMES_REMEMBERED = 20_000
SECRET_CHARACTERS_MIN = 16
PREFIX = "whsec_"  # what follows is base64
WARNING_S = 60.0

_log = get_logger("forward")


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
    for reading in decode_readings(tuples):
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


class Signer:
    """Signs with the secret of a file. Raises ConfigError if that cannot be used at the start."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._occasionally = Occasionally(WARNING_S)
        self._secret = b""
        self._read()

    def headers(self, key: str, body: bytes, now_s: float) -> dict[str, str]:
        """Return the headers of a post. Blocks for the time of reading a small file."""
        try:
            self._read()
        except UnusableFile as error:
            if self._occasionally.due(error.why) is not None:
                _log.warning("forward_secret_unusable", file=str(self._file), why=error.why)
        timestamp = str(int(now_s))
        return {
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._secret, key, timestamp, body),
        }

    def _read(self) -> None:
        secret = _secret_of(self._file, read_secret_again(self._file))
        if self._secret and secret != self._secret:
            _log.info("forward_secret_changed", file=str(self._file))
        self._secret = secret


def _secret_of(file: Path, text: str) -> bytes:
    if len(text) < SECRET_CHARACTERS_MIN:
        raise UnusableFile(file, f"has fewer than {SECRET_CHARACTERS_MIN} characters")
    if not text.startswith(PREFIX):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise UnusableFile(file, f"has no base64 behind {PREFIX}") from None


def signature(secret: bytes, key: str, timestamp: str, body: bytes) -> str:
    """Return the header webhook-signature."""
    digest = hmac.digest(secret, f"{key}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(digest).decode()
