"""Who sends most: posts, readings and refused posts of each sender, in spans of ten seconds.

And of whom nothing is stored: of line protocol without a device all lines become dead letters. The
sender gets 2xx, so only the operator can notice (Telegraf without the tag `host`, for example).

Promises: a call costs the same however many senders there are. The memory is bounded: of more than
SENDERS_MAX in one span, those that come first are counted; a busy one is nearly always among them.
Does not: know any token. A sender is a text, as in Block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import nlargest
from itertools import chain, islice
from typing import Any

from ingest.model.causes import SENDER_NOT_STORED, Trouble
from ingest.model.metrics import Metric, Metrics
from ingest.system.clock import monotonic_s
from ingest.system.words import counted

SPAN_S = 10.0
SENDERS_MAX = 5_000  # to find the busiest of so many takes 1 ms
LISTED = 20
NOT_STORED_MAX = 100  # senders
READINGS_MIN, LASTS_S_MIN = 10, 60.0  # less may be one bad post, or somebody who tries something
FORGET_S = 300.0
UNNAMED = "clients of a proxy"  # which does not say whose post it brings: their sender is ""
RATES = ("readings_per_s", "posts_per_s", "refused_per_s")


class _Counts:
    __slots__ = ("posts", "readings", "refused", "valid")

    def __init__(self) -> None:
        self.posts = self.readings = self.valid = self.refused = 0


class Busiest:
    """The senders of this process. A span ends with the first call after it."""

    def __init__(self) -> None:
        self._span: dict[str, _Counts] = {}
        self._began_s = monotonic_s()
        self._before: dict[str, _Counts] = {}  # the last whole span
        # Of whom nothing was stored: since when, until when, how many readings.
        self._not_stored: dict[str, tuple[float, float, int]] = {}

    def posted(self, sender: str) -> None:
        """Count a post, whatever becomes of it."""
        if monotonic_s() - self._began_s >= SPAN_S:
            self._next_span()
        counts = self._span.get(sender)
        if counts is None:
            if len(self._span) >= SENDERS_MAX:
                return
            counts = self._span[sender] = _Counts()
        counts.posts += 1

    def decoded(self, sender: str, readings: int, valid: int) -> None:
        """Count the readings of a post that was counted; so many of them are valid."""
        counts = self._span.get(sender)
        if counts is not None:
            counts.readings += readings
            counts.valid += valid

    def refused(self, sender: str) -> None:
        """Count that a post was refused which was counted."""
        counts = self._span.get(sender)
        if counts is not None:
            counts.refused += 1

    def listed(self) -> list[dict[str, Any]]:
        """Return the busiest ones of the last whole span for JSON, the first one first."""
        if monotonic_s() - self._began_s >= SPAN_S:
            self._next_span()
        most = nlargest(
            LISTED, self._before.items(), key=lambda each: (each[1].readings, each[1].posts)
        )
        return [
            {
                "sender": sender or UNNAMED,
                "posts_per_s": round(each.posts / SPAN_S, 1),
                "readings_per_s": round(each.readings / SPAN_S, 1),
                "refused_per_s": round(each.refused / SPAN_S, 1),
            }
            for sender, each in most
        ]

    def not_stored(self) -> Trouble:
        """Return of whom nothing was stored: of several the one who has sent most."""
        if monotonic_s() - self._began_s >= SPAN_S:
            self._next_span()
        found = [
            (readings, sender)
            for sender, (since_s, until_s, readings) in self._not_stored.items()
            if readings >= READINGS_MIN and until_s - since_s >= LASTS_S_MIN
        ]
        if not found:
            return Trouble()
        readings, sender = max(found)
        words = f"of {counted(len(found), 'sender')} no reading is stored"
        return Trouble(SENDER_NOT_STORED, words, f"{sender or UNNAMED}, {readings:,} readings")

    def _next_span(self) -> None:
        now_s, runs, end_s = monotonic_s(), self._not_stored, self._began_s + SPAN_S
        for sender, each in self._span.items():
            if each.valid or each.refused >= each.posts:  # who was refused knows it
                runs.pop(sender, None)
            elif each.readings:
                since_s, _, readings = runs.get(sender, (self._began_s, 0.0, 0))
                runs[sender] = (since_s, end_s, readings + each.readings)
        lately = ((sender, run) for sender, run in runs.items() if now_s - run[1] < FORGET_S)
        self._not_stored = dict(islice(lately, NOT_STORED_MAX))
        passed = int((now_s - self._began_s) / SPAN_S)
        self._before = self._span if passed == 1 else {}
        self._span = {}
        self._began_s += passed * SPAN_S


METRICS: Metrics[Busiest] = (
    Metric(
        "sender_not_stored",
        "1 while all readings of a sender become dead letters.",
        lambda it: bool(it.not_stored().cause),
    ),
)


def joined(lists: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the busiest senders of several processes, of what `listed` has returned in each."""
    sums: dict[str, dict[str, Any]] = {}
    for each in chain.from_iterable(lists):
        known = sums.setdefault(each["sender"], dict.fromkeys(RATES, 0.0))
        for name in RATES:
            known[name] = round(known[name] + each[name], 1)
    found = nlargest(LISTED, sums.items(), key=lambda one: tuple(one[1].values()))
    return [{"sender": sender, **rates} for sender, rates in found]
