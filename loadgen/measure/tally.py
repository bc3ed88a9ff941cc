"""Counts the outcomes of posts: the observer of a run of load.

Promises: every post that the driver finished is in exactly one class; memory does not grow with the
run. A post is *right* if its final answer is the expected one: for a good post a 2xx with all
readings accepted, for a spoilt one the refusal that it was made for.
Does not: remember single posts (see `verify`).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Protocol

from loadgen.driver.ports import Loss, Observer
from loadgen.measure.histogram import Histogram
from loadgen.measure.timeline import LOST, Timeline
from loadgen.traffic.post import Post
from loadgen.traffic.traffic import BROKEN, GOOD, INVALID, MIXED
from loadgen.wire.answer import counts_of, fields_of

WHYS_MAX = 20
_CODE = re.compile(rb'"code"\s*:\s*"([^"]{1,40})')
_STATUS_DUE = {BROKEN: 400, INVALID: 422}


class HasStart(Protocol):
    """Knows when the run began; the driver does."""

    started_s: float


class _NotStarted:
    started_s = 0.0


class Tally(Observer):
    """The outcomes of all posts so far.

    `bad_items` is that of the traffic: how many items of each mixed post must be dead-lettered.
    Durations count from the intended moment to the final answer, of posts that were intended
    `measured_from_s` after the start or later.
    """

    def __init__(self, bad_items: dict[int, int], measured_from_s: float = 0.0) -> None:
        self.start: HasStart = _NotStarted()  # the driver, set when it is made
        self.last_due_s = 0.0  # the last due time of finished posts, from the start
        self.timeline = Timeline()
        self.latency = Histogram()
        self.right = 0  # posts, as all down to `undeserved`
        self.refused = 0  # good posts with a final answer that is not 2xx
        self.given_up = 0  # posts without a final answer
        self.given_up_written = 0  # of these: posts that the service may have
        self.not_whole = 0  # good posts with a 2xx that did not accept all readings
        self.undeserved = 0  # spoilt posts with an unexpected answer
        self.offered_readings = 0  # of all finished posts
        self.accepted_readings = 0
        self.dead_lettered_readings = 0
        self.codes: Counter[str] = Counter()  # `503 buffer_full`, of all tries that were refused
        self.statuses: Counter[int] = Counter()  # of all tries
        self.whys: Counter[str] = Counter()  # why tries ended without an answer
        self._bad_items = bad_items
        self._measured_from_s = measured_from_s

    @property
    def through(self) -> int:
        """Posts that have had their final call."""
        return self.right + self.wrong

    @property
    def wrong(self) -> int:
        """Posts without the expected answer."""
        return self.refused + self.given_up + self.not_whole + self.undeserved

    # The driver's calls

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Count an answer."""
        cell = self.timeline.at(now_s - self.start.started_s)
        cell.statuses[status] += 1
        self.statuses[status] += 1
        if status >= 300:
            self._note_code(status, body)
        if not final:
            return
        accepted, dead_lettered = _kept(body, post.readings) if status < 300 else (0, 0)
        cell.accepted += accepted
        self.accepted_readings += accepted
        self.dead_lettered_readings += dead_lettered
        self._judge(post, status, accepted, dead_lettered)
        self._through(post, intended_s)
        if intended_s - self.start.started_s >= self._measured_from_s:
            took_s = max(0.0, now_s - intended_s)
            self.latency.add(took_s)
            self.timeline.at(intended_s - self.start.started_s).durations.add(took_s)

    def lost(self, loss: Loss) -> None:
        """Count a try without an answer."""
        self.timeline.at(loss.now_s - self.start.started_s).statuses[LOST] += 1
        self.statuses[LOST] += 1
        if loss.why in self.whys or len(self.whys) < WHYS_MAX:
            self.whys[loss.why] += 1
        if loss.final:
            self.given_up += 1
            self.given_up_written += loss.written
            self._bad_items.pop(loss.post.number, None)
            self._through(loss.post, loss.intended_s)

    def _through(self, post: Post, intended_s: float) -> None:
        due_s = intended_s - self.start.started_s
        if due_s > self.last_due_s:  # noqa: PLR1730  a call of max() costs more
            self.last_due_s = due_s
        self.offered_readings += post.readings
        self.timeline.at(due_s).offered += post.readings

    def _judge(self, post: Post, status: int, accepted: int, dead_lettered: int) -> None:
        ok = 200 <= status < 300
        whole = ok and accepted + dead_lettered == post.readings
        if post.kind == GOOD:
            if whole and not dead_lettered:
                self.right += 1
            elif ok:
                self.not_whole += 1
            else:
                self.refused += 1
            return
        if post.kind == MIXED:
            deserved = dead_lettered == self._bad_items.pop(post.number, 0) and whole
        else:
            deserved = status == _STATUS_DUE[post.kind]
        if deserved:
            self.right += 1
        else:
            self.undeserved += 1

    def _note_code(self, status: int, body: bytes) -> None:
        """Count a refusal by the code of its problem document, which is found without parsing."""
        found = _CODE.search(body)
        code = found[1].decode("ascii", "replace") if found else ""
        name = f"{status} {code}".rstrip()
        if name in self.codes or len(self.codes) < WHYS_MAX:
            self.codes[name] += 1


def _kept(body: bytes, readings: int) -> tuple[int, int]:
    """Return (accepted, dead-lettered) of a 2xx; without these counts all readings are accepted."""
    if body.startswith(b'{"accepted":%d,"dead_lettered":0,' % readings):
        return readings, 0
    fields = fields_of(body)
    if "faulty" in fields:  # of a mapped source: which readings are faulty it does not say
        return readings, 0
    return counts_of(fields) or (readings, 0)
