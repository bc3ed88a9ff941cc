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
