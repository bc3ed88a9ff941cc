"""Whether one commit is slower than another: the interval, the pairs to add, the verdict."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from fractions import Fraction
from math import comb

import pytest

from benchmarks.against import Compared, measured
from benchmarks.alternating import WAYS, Pair, Two, Way
from benchmarks.ratios import (
    CPU,
    MORE_IS_BETTER,
    PAIRS_MAX,
    PAIRS_MIN,
    rank,
    slower,
    summary,
)

STEADY = [0.995, 1.005] * 20


def ratios(pairs: int = PAIRS_MIN, **other: list[float]) -> dict[str, list[float]]:
    """Give steady figures around 1.0, except for the named ones."""
    return {name: other.get(name, STEADY)[:pairs] for name in MORE_IS_BETTER}


def held(pairs: int, r: int) -> Fraction:
    """Give the probability that x(r) to x(n+1-r) contains the median, by counting."""
    return 1 - Fraction(2 * sum(comb(pairs, below) for below in range(r)), 2**pairs)


@pytest.mark.parametrize("pairs", range(5, PAIRS_MAX + 1))
def test_interval_is_the_narrowest_that_holds_the_median_in_nine_of_ten(pairs: int) -> None:
    """By the binomial distribution: an interval one rank narrower contains it less often."""
    nine_tenths = Fraction(9, 10)
    assert held(pairs, rank(pairs)) >= nine_tenths > held(pairs, rank(pairs) + 1)


def test_verdict_is_told_on_one_line() -> None:
    """It names the slower figures, and says if 40 pairs did not make CPU narrow enough."""
    assert summary(ratios()).startswith("not slower: CPU 1.000 (0.995 to 1.005), rate 1.000 (")
    assert summary(ratios()).endswith("; 12 pairs")
    both = ratios(CPU=[1.05, 1.06] * 20, p99=[1.2, 1.3] * 20)
    assert slower(both) == [CPU, "p99"]
    assert summary(both).startswith("SLOWER in CPU and p99: CPU 1.055 (1.050 to 1.060)")
    wide = summary(ratios(PAIRS_MAX, CPU=[0.9, 1.1] * 20))
    assert wide.startswith("not slower: ")
    assert wide.endswith("; 40 pairs, which did not bring CPU below a width of 0.04")


class Drawn(Two):
    """Two services whose figures are drawn: one is slower than the other in `times`."""

    def __init__(self, seed: int, noise: float = 0.02, **times: float) -> None:
        self._drawn = random.Random(seed)
        self._noise, self._times = noise, times

    def pairs(self, way: Way, say: Callable[[str], None]) -> Generator[Pair, None, None]:
        """Yield pairs for ever."""
        while True:
            this, other = (
                {name: self._drawn.lognormvariate(0, self._noise) for name in MORE_IS_BETTER}
                for _ in range(2)
            )
            yield Pair({name: this[name] * self._times.get(name, 1.0) for name in this}, other)


def passes(times: int, **of: float) -> int:
    """Compare `times` times; return how often nothing was slower."""
    drawn = [measured(Drawn(seed, **of), WAYS[0], quick=False) for seed in range(times)]
    return sum(not slower(Compared(WAYS[0], pairs).ratios) for pairs in drawn)


def test_a_commit_passes_against_itself_and_a_slower_one_does_not() -> None:
    """Four cases of nine in ten times need 0.975 each; 6 % more of a figure is found."""
    assert passes(200) >= 195
    assert passes(50, CPU=1.06) == 0
    assert passes(50, rate=0.94) <= 1
    assert passes(50, p99=1.06) <= 1
    assert passes(50, PostgreSQL=1.1) <= 1
