"""A histogram of durations: small, mergeable, and exact to one part in a hundred.

Log-linear: each doubling is cut into 64 equal buckets, so that a bucket is at most 1/64 of its
value wide, and its middle at most 1/128 (0.8 %) away from what fell into it. From 1 us (and finer)
to 39 hours; what is longer is counted in the last bucket, `max_s` stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

_BITS = 7  # of a value that choose its bucket: the leading one, and six that count to 64
_NS_BITS_MAX = 47  # 2**47 ns are 39 hours
_NS_MAX = 2**_NS_BITS_MAX - 1
_BUCKETS = ((_NS_BITS_MAX - _BITS) << (_BITS - 1)) + (1 << _BITS)


class Bucket(NamedTuple):
    """Durations from `lower_s` up to, not including, `upper_s`."""

    lower_s: float
    upper_s: float
    durations: int


class Histogram:
    """Durations in seconds. `count`, `sum_s`, `min_s` and `max_s` are exact.

    Empty, `min_s` and `max_s` are 0.
    """

    __slots__ = ("_counts", "_max_s", "_min_s", "count", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0
        self._min_s = math.inf
        self._max_s = 0.0
        self._counts = [0] * _BUCKETS

    def add(self, value_s: float) -> None:
        """Count one duration. Raises ValueError if it is negative, infinite or not a number."""
        if not 0.0 <= value_s < math.inf:
            raise ValueError(f"{value_s} is not a duration in seconds")
        ns = int(value_s * 1e9)
        # Comparisons, since a call of min() or max() costs as much as all the rest.
        if ns > _NS_MAX:  # noqa: PLR1730
            ns = _NS_MAX
        shift = ns.bit_length() - _BITS
        # `ns >> shift` is 64 to 127, so that the buckets of one doubling follow on the last one's.
        self._counts[(shift << (_BITS - 1)) + (ns >> shift) if shift > 0 else ns] += 1
        self.count += 1
        self.sum_s += value_s
        if value_s > self._max_s:  # noqa: PLR1730
            self._max_s = value_s
        if value_s < self._min_s:  # noqa: PLR1730
            self._min_s = value_s

    def merge(self, other: Histogram) -> None:
        """Count all that the other one has counted; the other stays as it is."""
        self._counts = [mine + its for mine, its in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.sum_s += other.sum_s
        self._min_s = min(self._min_s, other._min_s)
        self._max_s = max(self._max_s, other._max_s)

    @property
    def min_s(self) -> float:
        """The shortest."""
        return self._min_s if self.count else 0.0

    @property
    def max_s(self) -> float:
        """The longest."""
        return self._max_s

    @property
    def mean_s(self) -> float:
        """The mean; 0 if empty."""
        return self.sum_s / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the duration that this share (0 to 1) of all did not exceed, in seconds.

        It is the one of rank ceil(share * count) in order, within 1 %; 0 if empty.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{share} is not a share: 0 to 1")
        rank = max(1, math.ceil(share * self.count))
        if rank >= self.count:
            return self.max_s
        if rank == 1:
            return self.min_s
        left = rank
        for bucket in self.buckets():
            left -= bucket.durations
            if left <= 0:
                middle_s = (bucket.lower_s + bucket.upper_s) / 2
                return min(max(middle_s, self._min_s), self._max_s)
        raise AssertionError("the counts of all buckets add up to `count`")

    def buckets(self) -> Iterator[Bucket]:
        """Yield the buckets that are not empty, shortest first."""
        for index, count in enumerate(self._counts):
            if count:
                shift = max(0, (index >> (_BITS - 1)) - 1)
                lower_ns = (index - (shift << (_BITS - 1))) << shift
                yield Bucket(lower_ns * 1e-9, (lower_ns + (1 << shift)) * 1e-9, count)
