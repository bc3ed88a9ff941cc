"""Signs posts, as the specification "Standard Webhooks" says, so that libraries can check it.

    webhook-id         the idempotency key
    webhook-timestamp  when it was sent, in Unix seconds
    webhook-signature  v1, and the base64 of HMAC-SHA256(secret, "ID.TIMESTAMP.BODY")

Promises: the secret is in no log and in no error. Its file is read again for each post; while
it cannot be used, the last good secret is.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from pathlib import Path

from ingest.config.sources import UnusableFile, read_secret_again
from ingest.system.logs import Occasionally, get_logger

SECRET_CHARACTERS_MIN = 16
PREFIX = "whsec_"  # what follows is base64
WARNING_S = 60.0

_log = get_logger("forward")


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
