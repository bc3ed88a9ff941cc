"""The traffic of a World: that of `loadgen verify`, in crowds, with the times of its answers.

Every other CROWD of posts is due at one moment: they share frames of the journal and blocks.
Does not: judge. A run prints these figures, which have no limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from math import ceil

from loadgen.driver.ports import Loss
from loadgen.proof.run import Job, Run
from loadgen.traffic.post import Post

CROWD = 12  # posts, and connections for them


class Traffic(Run):
    """A Run in crowds, that also keeps the times of answers, and has two more counters.

    `kept` counts the readings of posts that a 2xx answered; `cut_off` the tries that were sent and
    got no answer at all (a refused connection is no try that was sent; a 503 is an answer).
    `refused` counts the tries that got a 503; `longest_s` is the longest that a 2xx took from the
    begin of its try. A fault may set both to 0.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.kept = self.cut_off = self.refused = 0
        self.longest_s = 0.0
        self._sent: dict[int, float] = {}  # posts in flight, and since when
        self._took_s: list[float] = []

    def due(self) -> Iterator[float]:
        """Return when posts are due: by turns one by one, and a crowd at one moment."""
        rate = self.job.rate
        assert rate is not None, "faults have an open loop"
        for number in count():
            crowd = number // CROWD
            yield (crowd * CROWD if crowd % 2 else number) / rate

    def p99_ms(self) -> float:
        """Return the p99 of the answer times since the last call, from the intended moment on."""
        took, self._took_s = sorted(self._took_s), []
        return took[ceil(len(took) * 0.99) - 1] * 1_000 if took else 0.0

    def sending(self, post: Post) -> None:
        """Note that a try begins."""
        self._sent[post.number] = time.monotonic()

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Note an answer; note its time if it is the last one of its post."""
        began_s = self._sent.pop(post.number, now_s)
        self.refused += status == 503
        if 200 <= status < 300:
            self.kept += post.readings
            self.longest_s = max(self.longest_s, now_s - began_s)
        if final:
            self._took_s.append(now_s - intended_s)
        super().answered(post, status, body, intended_s, now_s, final=final)

    def lost(self, loss: Loss) -> None:
        """Note a try without an answer."""
        self.cut_off += loss.post.number in self._sent
        self._sent.pop(loss.post.number, None)
        super().lost(loss)
