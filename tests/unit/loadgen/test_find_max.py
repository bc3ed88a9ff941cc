"""The search finds the limit from both sides, in few steps, and confirms it."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from loadgen.measure.find_max import CLOSE_ENOUGH, Search

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
