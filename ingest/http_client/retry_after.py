"""How long a server wants to be left alone: its header Retry-After."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

_DIGITS_MAX = 10


def retry_after_s(text: str, now_s: float, cap_s: float) -> float:
    """Return the pause of a header Retry-After, from 0 to `cap_s`; 0 if it cannot be read.

    It is a number of seconds, or a date. `now_s` is Unix time.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(cap_s, float(text[:_DIGITS_MAX]) if len(text) <= _DIGITS_MAX else cap_s)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # `-0000`: UTC, from an unknown place
            moment = moment.replace(tzinfo=UTC)
        return min(cap_s, max(0.0, moment.timestamp() - now_s))
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
