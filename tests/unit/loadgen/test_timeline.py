"""The timeline is small, and keeps its sums when its cells are merged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.measure.timeline import CELLS_MAX, LOST, Cell, Timeline


@given(st.lists(st.floats(1e-6, 3600), min_size=1, max_size=60), st.sampled_from([0.5, 0.99, 1.0]))
def test_cell_quantile_is_within_one_percent_of_the_sorted_one(
    durations: list[float], share: float
) -> None:
    """A cell's quantile is within one percent of the sorted list's."""
    cell = Cell()
    for each in durations:
        cell.durations.add(each)
    exact = sorted(durations)[max(0, -int(-share * len(durations) // 1) - 1)]
    assert cell.quantile_s(share) == pytest.approx(exact, rel=0.01)


def test_cell_without_durations_has_no_quantile() -> None:
    """A cell without durations has no quantile, not 0."""
    assert Cell().quantile_s(0.99) is None


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


def test_cell_of_a_moment_covers_that_moment_after_widening() -> None:
    """After widening, the cell of a moment still covers it."""
    timeline = Timeline()
    for second in range(4 * CELLS_MAX):
        timeline.at(second).accepted += second == 777
    assert timeline.width_s == 4.0
    (found,) = [point for point in timeline.points(4 * CELLS_MAX) if point.cell.accepted]
    assert found.at_s - found.span_s / 2 <= 777 < found.at_s + found.span_s / 2


def test_commits_between_two_looks_are_spread_over_that_time() -> None:
    """Commits are spread over the time between two reads, so a late read gives no peak."""
    timeline = Timeline()
    timeline.commit(0.5, 3.5, 300)
    counts = [point.cell.committed for point in timeline.points(4.0)]
    assert counts == pytest.approx([50, 100, 100, 50])
    timeline.commit(3.5, 3.5, 7)
    assert sum(point.cell.committed for point in timeline.points(4.0)) == pytest.approx(307)


def test_short_rest_at_the_end_is_left_out_and_a_longer_one_is_a_rate_of_its_own() -> None:
    """A last part of a tenth of a second is left out; one of half a second has its own rate."""
    timeline = Timeline()
    for at_s in (0.5, 1.05):
        timeline.at(at_s).accepted += 10
    assert [point.span_s for point in timeline.points(1.1)] == pytest.approx([1])
    assert [point.span_s for point in timeline.points(1.5)] == pytest.approx([1, 0.5])
