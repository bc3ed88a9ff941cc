"""The traffic of a World: that of `loadgen verify`, in crowds, with the times of its answers.

Every other CROWD of posts is due at one moment: they share frames of the journal and blocks.
Does not: judge. FAULTS.md lists these figures, which have no limit.
"""

from __future__ import annotations

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
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.kept = self.cut_off = 0
        self._sent: set[int] = set()  # posts in flight
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
        self._sent.add(post.number)

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Note an answer; note its time if it is the last one of its post."""
        self._sent.discard(post.number)
        self.kept += post.readings if 200 <= status < 300 else 0
        if final:
            self._took_s.append(now_s - intended_s)
        super().answered(post, status, body, intended_s, now_s, final=final)

    def lost(self, loss: Loss) -> None:
        """Note a try without an answer."""
        self.cut_off += loss.post.number in self._sent
        self._sent.discard(loss.post.number)
        super().lost(loss)
