"""The timeline is small, and keeps its sums when its cells are merged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadgen.measure.timeline import CELLS_MAX, LOST, Timeline


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
