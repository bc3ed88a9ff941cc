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
