"""The intended times of the driver, and its place in the schedule.

Pure: time is an argument. Promises: no call passes over more than `SLICE_POSTS` times, so that a
million posts a second never block the event loop. Does not: wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import repeat

SLICE_POSTS = 2_000  # about 1 ms


class DueTimes:
    """The next intended time, `next_s` (of `time.monotonic`); infinite: not begun, or no more.

    `schedule` yields seconds from the start, growing; None is the closed loop: always due.
    """

    def __init__(self, schedule: Iterable[float] | None) -> None:
        self.next_s = math.inf
        self._started_s = 0.0
        self._closed_loop = schedule is None
        self._schedule = repeat(-math.inf) if schedule is None else iter(schedule)

    def begin(self, started_s: float) -> None:
        """Go to the first time, counted from `started_s`."""
        self._started_s = started_s
        self.advance()

    def advance(self) -> None:
        """Go to the next time."""
        self.next_s = self._started_s + next(self._schedule, math.inf)

    def pass_over(self, until_s: float) -> int:
        """Pass over times up to `until_s`; return how many. Call again if `next_s <= until_s`."""
        if self._closed_loop:
            return 0
        passed = 0
        while self.next_s <= until_s and passed < SLICE_POSTS:
            passed += 1
            self.advance()
        return passed

    def end(self) -> None:
        """End the schedule."""
        self.next_s = math.inf
