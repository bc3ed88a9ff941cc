"""The histogram's quantiles are those of the sorted list, within one percent."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.measure.histogram import Histogram

# Latencies of all sizes are equally likely, not only long ones.
durations = st.floats(math.log(1e-6), math.log(86_400)).map(math.exp)


def filled(values: list[float]) -> Histogram:
    """Return a histogram of these."""
    histogram = Histogram()
    for each in values:
        histogram.add(each)
    return histogram


@given(st.lists(durations, min_size=1), st.floats(0, 1))
def test_quantile_is_the_one_of_its_rank_within_a_hundredth(
    values: list[float], share: float
) -> None:
    """A quantile is the value of rank ceil(share * count), within one percent."""
    in_order = sorted(values)
    exact_s = in_order[max(1, math.ceil(share * len(values))) - 1]
    assert filled(values).quantile(share) == pytest.approx(exact_s, rel=0.01)


@given(durations)
def test_every_duration_falls_into_a_bucket_around_it_that_is_narrow(value_s: float) -> None:
    """From a microsecond to a day a bucket's middle is at most 1/128 away from its values."""
    middle_s = filled([value_s / 2, value_s, value_s * 2]).quantile(0.5)
    assert middle_s == pytest.approx(value_s, rel=1 / 128)


def test_buckets_lie_side_by_side() -> None:
    """Buckets have no gap and no overlap: a longer duration is never in an earlier bucket."""
    values = [1e-9 * ns for ns in range(1, 5_000)]
    found = [filled([0.0, each, 1.0]).quantile(0.5) for each in values]
    assert found == sorted(found)
    assert len(set(found)) > 64 * 7, "64 of each doubling, once a nanosecond is less than one"


SHARES = [number / 20 for number in range(21)]


@given(st.lists(durations), st.lists(durations))
def test_merged_histogram_is_that_of_all_values(one: list[float], other: list[float]) -> None:
    """A merge adds all counts, and does not change the other histogram."""
    merged, second, whole = filled(one), filled(other), filled(one + other)
    merged.merge(second)
    assert [merged.quantile(each) for each in SHARES] == [whole.quantile(each) for each in SHARES]
    assert (merged.count, merged.min_s, merged.max_s) == (whole.count, whole.min_s, whole.max_s)
    assert merged.mean_s == pytest.approx(whole.mean_s)
    again = filled(other)
    assert [second.quantile(each) for each in SHARES] == [again.quantile(each) for each in SHARES]


@given(st.lists(durations, min_size=1))
def test_count_extremes_and_mean_are_exact(values: list[float]) -> None:
    """Count, extremes and mean are exact; the extremes are the quantiles 0 and 1."""
    histogram = filled(values)
    assert histogram.count == len(values)
    assert histogram.min_s == histogram.quantile(0) == min(values)
    assert histogram.max_s == histogram.quantile(1) == max(values)
    assert histogram.mean_s == pytest.approx(sum(values) / len(values))


def test_empty_histogram_says_zero() -> None:
    """An empty histogram has zeros, so that a run without answers can be reported."""
    histogram = Histogram()
    assert (histogram.count, histogram.min_s, histogram.max_s, histogram.mean_s) == (0, 0, 0, 0)
    assert histogram.quantile(0.5) == 0


def test_very_short_and_very_long_ones_are_counted() -> None:
    """Very short and very long durations are counted; the longest stays exact."""
    histogram = filled([0.0, 1e-12, 1e6])
    assert histogram.count == 3
    assert histogram.max_s == histogram.quantile(0.99) == 1e6
    assert histogram.min_s == 0
    assert filled([0.0, 0.0, 1.0]).quantile(0.5) < 1e-8, "a clock that stood is no quarter second"


@pytest.mark.parametrize("value_s", [-1e-9, math.nan, math.inf])
def test_what_is_no_duration_is_refused(value_s: float) -> None:
    """A negative or infinite duration is an error."""
    with pytest.raises(ValueError, match="is not a duration"):
        Histogram().add(value_s)


@pytest.mark.parametrize("share", [-0.1, 1.1, 99])
def test_quantile_of_no_share_is_refused(share: float) -> None:
    """A share above 1, such as 99, is an error."""
    with pytest.raises(ValueError, match="is not a share"):
        Histogram().quantile(share)
