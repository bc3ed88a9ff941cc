"""The parts of a run: when posts are due, the search for the largest rate, and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.measure.find_max import CLOSE_ENOUGH, Search
from loadgen.measure.histogram import Histogram
from loadgen.measure.timeline import CELLS_MAX, LOST, Timeline
from loadgen.traffic.schedule import Shape, Stretch, moments

rates = st.just(0.0) | st.floats(1, 500)
stretches = st.builds(Stretch, st.floats(0.01, 5), rates, rates)
shapes = st.builds(
    Shape,
    st.lists(stretches, min_size=1, max_size=4)
    .filter(lambda made: any(each.posts > 0 for each in made))
    .map(tuple),
    st.booleans(),
)


@given(shapes, st.floats(0.1, 10))
def test_number_of_posts_up_to_any_moment_is_that_of_the_shape(
    shape: Shape, within_s: float
) -> None:
    """With constant arrivals the number of posts is right at every moment, to within one."""
    found = list(moments(shape, within_s=within_s))
    assert found == sorted(found)
    assert all(0 <= each < within_s for each in found)
    assert abs(len(found) - shape.posts(within_s)) <= 1 + 1e-6
    for number, at_s in list(enumerate(found))[:: max(1, len(found) // 20)]:
        assert shape.posts(at_s) == pytest.approx(number, abs=1e-3)


STEPS_MAX = 20 + 4 + 12


def _search(passes: Callable[[float], bool], first_rate: float) -> tuple[Search, int]:
    search = Search(first_rate)
    steps = 0
    while search.rate is not None:
        steps += 1
        assert steps <= STEPS_MAX
        search.took(passes(search.rate))
    return search, steps


@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_search_finds_the_border_within_five_percent(border: float, first_rate: float) -> None:
    """The result is at most the limit, and at most 5 % less, from any first rate."""
    search, _ = _search(lambda rate: rate <= border, first_rate)
    assert search.found is not None
    assert border / CLOSE_ENOUGH <= search.found <= border


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


@given(st.lists(st.floats(-1, 100_000), max_size=80))
def test_timeline_keeps_every_count_in_bounded_cells(moments: list[float]) -> None:
    """For a run of any length the number of cells is bounded, and the sums are right."""
    timeline = Timeline()
    for at_s in moments:
        cell = timeline.at(at_s)
        cell.offered += 2
        cell.accepted += 1
        cell.statuses[202] += 1
        cell.statuses[LOST] += 1
        cell.durations.add(0.01)
    points = list(timeline.points(200_000))
    assert len(points) <= CELLS_MAX
    assert sum(cell.offered for _, _, cell in points) == 2 * len(moments)
    assert sum(cell.accepted for _, _, cell in points) == len(moments)
    assert sum(sum(cell.statuses.values()) for _, _, cell in points) == 2 * len(moments)
    assert len({point.span_s for point in points}) <= 1
