"""How long until something is full, at the rate of the last minutes.

The rate is the slope of a straight line through the samples (least squares), as `predict_linear` of
Prometheus has it. A series that did not grow in the last minute begins anew: what has ended, or was
freed, says nothing of what comes, and minutes before an outage must not make its rate look small.
"""

from __future__ import annotations

import math
from collections import deque

SAMPLE_S = 5.0
WINDOW_S = 300.0
STILL_S = 60.0
FULL_S_MAX = 30 * 86_400.0  # later than that is "does not fill"


class Forecast:
    """The samples of one quantity that grows towards a limit.

    Samples of less than `span_s_min` say nothing about its rate.
    """

    def __init__(self, *, span_s_min: float) -> None:
        self._span_s_min = span_s_min
        self._samples: deque[tuple[float, float]] = deque()

    def sample(self, now_s: float, used: float) -> None:
        """Take a sample, at most one in SAMPLE_S."""
        samples = self._samples
        if samples and now_s - samples[-1][0] < SAMPLE_S:
            return
        lately = (before for at_s, before in samples if now_s - at_s <= STILL_S)
        if used <= next(lately, math.inf):
            samples.clear()  # the first sample is the last one before it grows
        samples.append((now_s, used))
        while now_s - samples[0][0] > WINDOW_S:
            samples.popleft()

    def restart(self) -> None:
        """Forget all samples: what grows from now on has nothing to do with them."""
        self._samples.clear()

    def full_in_s(self, limit: float) -> int | None:
        """Return the seconds until `limit`; None if it does not fill, or not within a month."""
        samples = self._samples
        if len(samples) < 2 or samples[-1][0] - samples[0][0] < self._span_s_min:
            return None
        rate = _slope(samples)
        left_s = (limit - samples[-1][1]) / rate if rate > 0 else FULL_S_MAX
        return max(0, round(left_s)) if left_s < FULL_S_MAX else None


def _slope(samples: deque[tuple[float, float]]) -> float:
    count = len(samples)
    mean_s = sum(at_s for at_s, _ in samples) / count
    mean = sum(used for _, used in samples) / count
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in samples)
    return sum((at_s - mean_s) * (used - mean) for at_s, used in samples) / spread
