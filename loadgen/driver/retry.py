"""Posts that are under way, and posts that wait for another try.

Pure: time is an argument. Promises: a pause is never shorter than Retry-After; posts that were
refused together do not come back together.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from loadgen.traffic.post import Post


class Retry(NamedTuple):
    """The policy of retries after 408, 429, 5xx, a lost connection, a time-out.

    Tries go on until `give_up_s` after the first one. The pause after a Retry-After is that time
    plus up to half of it (an impatient client waits at most `patience_s` and half of it). Without
    a Retry-After it is random, up to `pause_s_min` doubled with each try, at most `pause_s_max`.
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
    """Posts that wait for a further try. `next_s` is the moment of the first; infinite: none."""

    def __init__(self, retry: Retry | None, seed: int | None) -> None:
        self.next_s = math.inf
        self._retry = retry
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Flight]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def again_s(self, flight: Flight, now_s: float, retry_after_s: int | None) -> float | None:
        """Return the moment of the next try; None: no further try."""
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
        """Let a post wait until `again_s`."""
        self._pushed += 1  # of two with the same moment the first one goes first
        heappush(self._heap, (again_s, self._pushed, flight))
        self.next_s = self._heap[0][0]

    def pop(self) -> Flight:
        """Remove and return the first post."""
        flight = heappop(self._heap)[2]
        self.next_s = self._heap[0][0] if self._heap else math.inf
        return flight

    def end(self) -> list[Flight]:
        """Remove and return all posts, and plan no further try."""
        ended = [flight for _, _, flight in sorted(self._heap)]
        self._heap.clear()
        self.next_s = math.inf
        self._retry = None
        return ended
