"""Is one commit slower than another? The median of paired ratios, its 90 % interval, a verdict.

Each pair of short runs gives one ratio a figure: this commit over the other one. Pure: takes
ratios, gives intervals and words.

**The interval.** The n ratios are sorted: x(1) <= .. <= x(n). Each of them lies below the true
median with probability 1/2, so the number of those below it follows the binomial distribution
Bin(n, 1/2). The interval from x(r) to x(n+1-r) misses the median only if fewer than r ratios lie on
one side of it. So it contains the median with probability

    1 - 2 * P(Bin(n, 1/2) <= r - 1)

whatever the distribution of the ratios is. We take the largest r for which this is at least 0.90;
it is 3 of 12 pairs (0.961) and 15 of 40 (0.919). Below 5 pairs there is no such r. Source: W. R.
Thompson, On Confidence Ranges for the Median, Annals of Mathematical Statistics 7 (1936); also
W. J. Conover, Practical Nonparametric Statistics, section 3.2.

**Not slower** means, for CPU (the service's): the interval is narrower than 0.04, and its upper end
is at most 1.03. If 40 pairs do not make it so narrow, it must contain 1.0, or lie below it. For
rate and latency: the interval contains 1.0, or lies on the better side. For PostgreSQL's CPU: it
reaches down to 1.03, since a fifth figure would call a commit slower than itself too often.

**Pairs are added**, from 12 up to 40, while the interval of CPU is too wide, and also while a
figure looks slower: an interval of 90 % is wrong once in ten times, and here are many of them. All
pairs until then decide. So the rule leans towards "not slower" for a commit at the border, but not
for one that is clearly slower (a test draws both).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

CONFIDENCE = 0.90
PAIRS_MIN, PAIRS_MAX = 12, 40
PAIRS_FOR_INTERVAL = 5  # fewer give no interval of 90 %
CPU_WIDTH_MAX = 0.04
CPU_HIGH_MAX = 1.03
CPU, POSTGRES = "CPU", "PostgreSQL"
MORE_IS_BETTER = {CPU: False, "rate": True, "p50": False, "p99": False, POSTGRES: False}

Ratios = Mapping[str, Sequence[float]]  # by figure: those of MORE_IS_BETTER


class Interval(NamedTuple):
    """The median of some ratios, and the 90 % interval around it."""

    low: float
    median: float
    high: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low


def rank(pairs: int) -> int:
    """Return r: the interval goes from the r-th smallest to the r-th largest ratio.

    Raises ValueError if there are too few.
    """
    outside = accumulate(math.comb(pairs, below) * 2.0 ** (1 - pairs) for below in range(pairs))
    found = sum(each <= 1 - CONFIDENCE for each in outside)
    if not found:
        raise ValueError(f"{pairs} pairs give no interval of 90 %")
    return found


def interval_of(ratios: Sequence[float]) -> Interval:
    """Return the median and its interval. Raises ValueError if there are fewer than 5 ratios."""
    ordered = sorted(ratios)
    at = rank(len(ordered)) - 1
    return Interval(ordered[at], statistics.median(ordered), ordered[-1 - at])


def holds(name: str, found: Interval) -> bool:
    """Whether one figure is not slower. A wide interval of CPU must reach down to 1.0."""
    if name == CPU and found.width < CPU_WIDTH_MAX:
        return found.high <= CPU_HIGH_MAX
    if name == POSTGRES:
        return found.low <= CPU_HIGH_MAX
    return found.high >= 1.0 if MORE_IS_BETTER[name] else found.low <= 1.0


def slower(ratios: Ratios) -> list[str]:
    """Return the names of the figures that are slower by these ratios."""
    return [name for name, each in ratios.items() if not holds(name, interval_of(each))]


def is_wide(ratios: Ratios) -> bool:
    """Whether the interval of CPU is wider than it should be."""
    return interval_of(ratios[CPU]).width >= CPU_WIDTH_MAX


def enough(ratios: Ratios) -> bool:
    """Whether no pair need be added."""
    pairs = len(ratios[CPU])
    if pairs < PAIRS_MIN:
        return False
    return pairs >= PAIRS_MAX or not (is_wide(ratios) or slower(ratios))


def summary(ratios: Ratios) -> str:
    """Return the verdict and all figures on one line."""
    found = {name: interval_of(each) for name, each in ratios.items()}
    bad = slower(ratios)
    figures = ", ".join(
        f"{name} {each.median:.3f} ({each.low:.3f} to {each.high:.3f})"
        for name, each in found.items()
    )
    pairs = len(ratios[CPU])
    verdict = f"SLOWER in {' and '.join(bad)}" if bad else "not slower"
    wide = f", which did not bring CPU below a width of {CPU_WIDTH_MAX}" if is_wide(ratios) else ""
    return f"{verdict}: {figures}; {pairs} pairs{wide}"
