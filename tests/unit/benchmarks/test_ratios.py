"""Whether one commit is slower than another: the interval, the pairs to add, the verdict."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from fractions import Fraction
from math import comb

import pytest

from benchmarks.against import Compared, measured, often_enough
from benchmarks.alternating import WAYS, Pair, Two, Way
from benchmarks.ratios import (
    CPU,
    MORE_IS_BETTER,
    PAIRS_MAX,
    PAIRS_MIN,
    Interval,
    enough,
    holds,
    interval_of,
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


def test_ranks_are_those_of_the_tables() -> None:
    """The rank is 3 of 12 and 15 of 40: the smallest and the largest number of pairs in use."""
    assert (rank(5), rank(12), rank(40)) == (1, 3, 15)


def test_too_few_pairs_have_no_interval() -> None:
    """The extremes of four ratios contain the median with probability 0.875 only."""
    with pytest.raises(ValueError, match="4 pairs give no interval"):
        interval_of([1.0] * 4)


def test_interval_takes_the_ranks_from_both_ends() -> None:
    """The order of the pairs does not matter, nor does one outlier on each side."""
    values = [1.12, 0.2, *(1 + n / 100 for n in range(1, 10)), 9.0]
    assert interval_of(values) == pytest.approx((1.02, 1.055, 1.09))


def test_interval_holds_the_true_median_of_skew_ratios() -> None:
    """At least 90 % of 2,000 drawn sets do, with a distribution far from normal."""
    drawn = random.Random(1)
    kept = 0
    for _ in range(2_000):
        low, _, high = interval_of([drawn.lognormvariate(0, 1) for _ in range(14)])
        kept += low <= 1.0 <= high
    assert kept >= 1_800


@pytest.mark.parametrize(
    ("name", "found", "kept"),
    [
        (CPU, (0.992, 1.01, 1.03), True),
        (CPU, (0.992, 1.01, 1.0301), False),
        (CPU, (1.001, 1.01, 1.02), True),  # slower, within what is allowed
        (CPU, (0.95, 0.96, 0.97), True),
        (CPU, (0.99, 1.04, 1.10), True),  # wide: 40 pairs could not tell
        (CPU, (1.001, 1.04, 1.10), False),  # wide, and 1.0 is not in it
        (CPU, (0.80, 0.85, 0.90), True),  # wide, and faster
        ("rate", (0.95, 0.97, 1.0), True),
        ("rate", (0.95, 0.97, 0.999), False),
        ("rate", (1.01, 1.02, 1.03), True),
        ("p50", (1.0, 1.02, 1.04), True),
        ("p50", (1.001, 1.02, 1.04), False),
        ("p99", (0.8, 0.85, 0.9), True),
        ("p99", (1.1, 1.2, 1.3), False),
    ],
)
def test_each_bound_can_be_kept_and_missed(
    name: str, found: tuple[float, float, float], kept: bool
) -> None:
    """CPU is judged by its upper end, or by 1.0 if it is wide; the others by 1.0."""
    assert holds(name, Interval(*found)) is kept


@pytest.mark.parametrize(
    ("found", "is_enough"),
    [
        (ratios(PAIRS_MIN - 1), False),
        (ratios(PAIRS_MIN), True),
        (ratios(CPU=[0.9, 1.1] * 20), False),  # too wide
        (ratios(CPU=[1.05, 1.06] * 20), False),  # slower
        (ratios(p99=[1.2, 1.3] * 20), False),
        (ratios(PAIRS_MAX - 1, CPU=[0.9, 1.1] * 20), False),
        (ratios(PAIRS_MAX, CPU=[0.9, 1.1] * 20), True),
        (ratios(PAIRS_MAX, CPU=[1.05, 1.06] * 20), True),
    ],
)
def test_pairs_are_added_while_it_is_wide_or_looks_slower(
    found: dict[str, list[float]], is_enough: bool
) -> None:
    """There are never fewer than 12 pairs, and never more than 40."""
    assert enough(found) is is_enough


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
        names = ("CPU", "rate", "p50", "p99")
        while True:
            this, other = (
                {name: self._drawn.lognormvariate(0, self._noise) for name in names}
                for _ in range(2)
            )
            yield Pair({name: this[name] * self._times.get(name, 1.0) for name in names}, other)


def passes(times: int, **of: float) -> int:
    """Compare `times` times; return how often nothing was slower."""
    drawn = [measured(Drawn(seed, **of), WAYS[0], quick=False) for seed in range(times)]
    return sum(not slower(Compared(WAYS[0], pairs).ratios) for pairs in drawn)


def test_a_commit_passes_against_itself_and_a_slower_one_does_not() -> None:
    """Four cases of nine in ten times need 0.975 each; 6 % more CPU or time is found."""
    assert passes(120) >= 117
    assert passes(50, CPU=1.06) == 0
    assert passes(50, rate=0.94) <= 1
    assert passes(50, p99=1.06) <= 1


def test_pairs_end_balanced_and_at_forty() -> None:
    """A B B A runs as often as B A A B; a comparison without a clear result ends at 40 pairs."""
    for seed in range(20):
        assert len(measured(Drawn(seed), WAYS[0], quick=False)) in range(12, 41, 2)
    assert len(measured(Drawn(1, noise=0.3), WAYS[0], quick=False)) == PAIRS_MAX
    assert len(measured(Drawn(1, CPU=1.2), WAYS[0], quick=False)) == PAIRS_MAX
    assert len(measured(Drawn(1, noise=0.3), WAYS[0], quick=True)) == 5


@pytest.mark.parametrize(
    ("passed", "times", "kept"),
    [(1, 1, True), (0, 1, False), (9, 10, True), (8, 10, False), (2, 3, False), (3, 3, True)],
)
def test_nine_of_ten_must_pass(passed: int, times: int, kept: bool) -> None:
    """A single comparison must pass."""
    assert often_enough(passed, times) is kept
