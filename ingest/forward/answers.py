"""What the answer of a target means for a batch."""

from __future__ import annotations

from enum import Enum

_AGAIN = frozenset({408, 425, 429})  # of the 4xx, those that speak of this moment only


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
