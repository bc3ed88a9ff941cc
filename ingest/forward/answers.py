"""What the answer of a target means for a batch."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

_AGAIN = frozenset({408, 425, 429})  # of the 4xx, those that speak of this moment only
_DIGITS_MAX = 10


class AnswerMeaning(Enum):
    """What became of a batch."""

    DONE = "done"
    AGAIN = "again"  # send it again later
    REFUSED = "refused"  # it would be refused again


def meaning_of(status: int) -> AnswerMeaning:
    """Return what a status means. A redirect is refused: readings go where the operator says."""
    if 200 <= status < 300:
        return AnswerMeaning.DONE
    if 300 <= status < 500 and status not in _AGAIN:
        return AnswerMeaning.REFUSED
    return AnswerMeaning.AGAIN


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
