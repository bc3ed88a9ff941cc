"""A histogram of durations: small, mergeable, and exact to one part in a hundred.

Log-linear: each doubling has 64 equal buckets. So the width of a bucket is at most 1/64 of its
values, and its middle is at most 1/128 (0.8 %) away from them. Only buckets with values take
memory: histograms of one second each are merged while a load runs.
hdrhistogram is not used: it needs setuptools and pbr at run time, has no wheel for ARM machines
with Linux, and takes twice as long to add a value (measured: 665 ns; here 285).
"""

from __future__ import annotations

import math
from typing import Any

_STEPS = 64  # buckets a doubling
_VALUE_S_MIN = 1e-9  # shorter values go to the first bucket, since 0 has no exponent


class Histogram:
    """Durations in seconds. `count`, `sum_s`, `min_s` and `max_s` are exact.

    Empty, `min_s` and `max_s` are 0.
    """

    __slots__ = ("_counts", "_min_s", "count", "max_s", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0  # the longest
        self._min_s = math.inf
        self._counts: dict[int, int] = {}  # by bucket: the exponent times 64, and the step

    def add(self, value_s: float) -> None:
        """Count one duration. Raises ValueError if it is negative, infinite or not a number."""
        if not 0.0 <= value_s < math.inf:
            raise ValueError(f"{value_s} is not a duration in seconds")
        # Comparisons, since a call of min() or max() takes as long as all the rest.
        fraction, exponent = math.frexp(value_s if value_s > _VALUE_S_MIN else _VALUE_S_MIN)
        bucket = (exponent - 1) * _STEPS + int(fraction * (2 * _STEPS))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.sum_s += value_s
        if value_s > self.max_s:  # noqa: PLR1730
            self.max_s = value_s
        if value_s < self._min_s:  # noqa: PLR1730
            self._min_s = value_s

    def merge(self, other: Histogram) -> None:
        """Add all counts of the other one, which does not change."""
        counts = self._counts
        for bucket, count in other._counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.count += other.count
        self.sum_s += other.sum_s
        self._min_s = min(self._min_s, other._min_s)
        self.max_s = max(self.max_s, other.max_s)

    @property
    def min_s(self) -> float:
        """The shortest."""
        return self._min_s if self.count else 0.0

    @property
    def mean_s(self) -> float:
        """The mean; 0 if empty."""
        return self.sum_s / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the quantile of a share (0 to 1), in seconds.

        It is the duration of rank ceil(share * count) in order, within 1 %; 0 if empty.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{share} is not a share: 0 to 1")
        left = max(1, math.ceil(share * self.count))
        if left >= self.count:
            return self.max_s
        if left == 1:
            return self.min_s
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                exponent, step = divmod(bucket, _STEPS)
                middle_s = math.ldexp((_STEPS + step + 0.5) / (2 * _STEPS), exponent)
                return min(max(middle_s, self._min_s), self.max_s)
        raise AssertionError("the counts of all buckets add up to `count`")


def latency_ms(latency: Histogram) -> dict[str, Any]:
    """Return the quantiles of a histogram in milliseconds, null without any durations."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
    numbers = {
        "min": latency.min_s,
        "mean": latency.mean_s,
        **{name: latency.quantile(share) for name, share in shares.items()},
        "max": latency.max_s,
    }
    return {
        "count": latency.count,
        **{name: in_ms(value_s) if latency.count else None for name, value_s in numbers.items()},
    }


def in_ms(value_s: float | None) -> float | None:
    """Return seconds as milliseconds, to a tenth of a microsecond."""
    return None if value_s is None else round(value_s * 1e3, 4)
