"""The counters: several observations at once are counted like one after the other."""

from __future__ import annotations

import json

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


def test_requests_answered_together_count_one_each() -> None:
    """By route and status, each with its own time."""
    ledger = Ledger()
    ledger.requests_answered(ROUTE, 202, [0.9, 0.05, 0.0001])
    ledger.request_answered(ROUTE, 202, 0.3)
    ledger.requests_answered(ROUTE, 503, [0.2])
    assert ledger.requests == {(ROUTE, 202): 4, (ROUTE, 503): 1}
    assert sum(ledger.request_s[ROUTE].counts) == 5
    assert ledger.request_s[ROUTE].total == pytest.approx(1.4501)


def used() -> Ledger:
    """Return a ledger with a count in each kind of counter."""
    ledger = Ledger()
    ledger.received, ledger.published, ledger.at_receiver = 10, 7, 1
    ledger.rejected["all_invalid"] += 2
    ledger.requests_answered(ROUTE, 202, (0.5, 0.001))
    ledger.request_answered("other", 404, 0.01)
    ledger.batch_stored("copy", 0.2, 3, 1)
    ledger.commit_s.observe(0.3)
    ledger.connection_closed("header_late")
    return ledger


def test_snapshot_comes_back_whole_through_json() -> None:
    """Numbers, dicts by text and by pair, histograms; none of the counters is left out."""
    ledger = used()
    sent = json.loads(json.dumps(ledger.snapshot()))
    again = Ledger.from_snapshot(sent)
    assert json.loads(json.dumps(again.snapshot())) == sent
    assert again.requests == ledger.requests
    assert again.request_s[ROUTE].counts == ledger.request_s[ROUTE].counts
    assert sent.keys() == vars(ledger).keys() - {"gauges"}


def test_added_snapshots_are_the_sum_and_change_no_source() -> None:
    """Also for labels that only one of them has."""
    one, other = used(), Ledger()
    other.rejected["busy"] += 5
    other.request_answered(ROUTE, 503, 0.5)
    before = one.snapshot()
    total = Ledger()
    for each in (one, other, one):
        total.add(each.snapshot())
    assert one.snapshot() == before
    assert total.received == 20
    assert total.rejected == {"all_invalid": 4, "busy": 5}
    assert total.requests[ROUTE, 202] == 4
    assert sum(total.request_s[ROUTE].counts) == 5
    assert total.commit_s.total == pytest.approx(0.6)
    assert total.imbalance == 2 * one.imbalance + other.imbalance


def test_counters_of_a_newer_version_are_left_out() -> None:
    """The others are read."""
    again = Ledger.from_snapshot({**used().snapshot(), "teleported": 3, "gauges": 4})
    assert again.received == 10
    assert again.gauges is None
    assert not hasattr(again, "teleported")


@pytest.mark.parametrize(
    "wrong",
    [
        {"received": "10"},
        {"received": [1]},
        {"received": True},
        {"received": None},
        {"rejected": 4},
        {"rejected": [["busy", "x"]]},
        {"requests": [[[["deep"]], 1]]},
        {"commit_s": [[1, 2], 0.5]},
        {"commit_s": 3},
        {"request_s": [["/", 3]]},
    ],
)
def test_what_is_no_snapshot_is_an_error(wrong: dict[str, object]) -> None:
    """And never another exception."""
    with pytest.raises(ValueError, match=r"counter|argument|longer|shorter"):
        Ledger.from_snapshot({**used().snapshot(), **wrong})
