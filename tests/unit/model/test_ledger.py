"""The counters: several observations at once are counted like one after the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.ledger import Histogram, Ledger

BOUNDS = (0.001, 0.01, 0.1)
ROUTE = "/v1/readings"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_observations_at_once_are_those_one_by_one(values: list[float]) -> None:
    """Whether they are all in one bucket, or in several."""
    values.sort(reverse=True)
    at_once, one_by_one = Histogram(BOUNDS), Histogram(BOUNDS)
    at_once.observe_all(values)
    for value in values:
        one_by_one.observe(value)
    assert at_once.counts == one_by_one.counts
    assert at_once.total == pytest.approx(one_by_one.total)
    assert sum(at_once.counts) == len(values)


@given(st.floats(0, 1), st.integers(1, 300))
def test_one_observation_may_be_that_of_several_posts(value: float, count: int) -> None:
    """As for the posts of one block, which are stored at the same time."""
    at_once, one_by_one = Histogram(BOUNDS), Histogram(BOUNDS)
    at_once.observe(value, count)
    for _ in range(count):
        one_by_one.observe(value)
    assert at_once.counts == one_by_one.counts
    assert at_once.total == pytest.approx(one_by_one.total)


def test_requests_answered_together_count_one_each() -> None:
    """By route and status, each with its own time."""
    ledger = Ledger()
    ledger.requests_answered(ROUTE, 202, [0.9, 0.05, 0.0001])
    ledger.request_answered(ROUTE, 202, 0.3)
    ledger.requests_answered(ROUTE, 503, [0.2])
    assert ledger.requests == {(ROUTE, 202): 4, (ROUTE, 503): 1}
    assert sum(ledger.request_s[ROUTE].counts) == 5
    assert ledger.request_s[ROUTE].total == pytest.approx(1.4501)
