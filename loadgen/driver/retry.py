"""Posts that are under way, and those that wait to be tried again.

Pure: the caller tells the time. Promises: a pause is never shorter than what Retry-After asks for;
who was sent away together does not come back together.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from loadgen.traffic.post import Post


class Retry(NamedTuple):
    """How to try again after 408, 429, 5xx, a lost connection, a time-out.

    Until `give_up_s` after the first try. A Retry-After is kept, plus up to half of it (an
    impatient client takes it for `patience_s` at most); without one the pause is anything up to
    `pause_s_min` doubled with each try, at most `pause_s_max`.
    """

    give_up_s: float = 300.0
    pause_s_min: float = 0.2
    pause_s_max: float = 10.0
    patience_s: float = math.inf


RETRY = Retry()


@dataclass(slots=True, eq=False)
class Flight:
    """A post between the source and its final call. Times are of `time.monotonic`.

    `written`: bytes of it may have reached the service.
    """

    post: Post
    intended_s: float
    first_s: float
    tries: int = 0
    written: bool = False


class RetryQueue:
    """Those that wait for their next try. `next_s` is the moment of the first; infinite: none."""

    def __init__(self, retry: Retry | None, seed: int | None) -> None:
        self.next_s = math.inf
        self._retry = retry
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Flight]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def again_s(self, flight: Flight, now_s: float, retry_after_s: int | None) -> float | None:
        """Return when to try it again, or None: never."""
        retry = self._retry
        if retry is None:
            return None
        if retry_after_s is not None:
            pause_s = min(retry_after_s, retry.patience_s) * self._random.uniform(1.0, 1.5)
        else:
            ceiling_s = min(retry.pause_s_max, retry.pause_s_min * 2 ** min(flight.tries, 30))
            pause_s = self._random.uniform(0.0, ceiling_s)
        again_s = now_s + pause_s
        return again_s if again_s - flight.first_s <= retry.give_up_s else None

    def push(self, flight: Flight, again_s: float) -> None:
        """Let it wait until `again_s`."""
        self._pushed += 1  # of two with one moment the first goes first
        heappush(self._heap, (again_s, self._pushed, flight))
        self.next_s = self._heap[0][0]

    def pop(self) -> Flight:
        """Return the first, which waits no more."""
        flight = heappop(self._heap)[2]
        self.next_s = self._heap[0][0] if self._heap else math.inf
        return flight

    def end(self) -> list[Flight]:
        """Return all, and plan no more."""
        ended = [flight for _, _, flight in sorted(self._heap)]
        self._heap.clear()
        self.next_s = math.inf
        self._retry = None
        return ended
