"""The age of the oldest message that is not done: from the numbers of the broker alone."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.roles.nats.stream_state import LOOKS_MAX, StreamState, Undone, state_of
from ingest.roles.nats.streams import Found

EMPTY: dict[str, Any] = {
    "config": {},
    "state": {"first_seq": 1, "last_seq": 0, "messages": 0, "bytes": 0},
}


def _state(last: int, done_to: int, *, made: str = "today") -> StreamState:
    empty = state_of(Found(EMPTY, None))
    assert empty is not None
    return empty._replace(made=made, last=last, done_to=done_to, waiting=last - done_to)


def test_message_ages_until_it_is_done() -> None:
    """Newer messages do not make it younger; when it is done, the next one counts."""
    undone = Undone()
    assert undone.age_s(100, _state(0, 0)) == 0
    assert undone.age_s(102, _state(5, 0)) == 0
    assert undone.age_s(104, _state(9, 0)) == 2
    assert undone.age_s(110, _state(9, 3)) == 8
    assert undone.age_s(112, _state(12, 5)) == 8, "the sixth came between 102 and 104"
    assert undone.age_s(114, _state(12, 12)) == 0
    assert undone.age_s(200, _state(12, 12)) == 0
    assert undone.age_s(202, _state(13, 12)) == 0
    assert undone.age_s(204, _state(13, 12)) == 2


def test_flow_that_is_done_in_time_has_no_age() -> None:
    """At each look some messages are under way."""
    undone = Undone()
    for second in range(0, 600, 2):
        age_s = undone.age_s(second, _state(100 + second * 10, 90 + second * 10))
        assert age_s <= 2


def test_what_was_there_before_counts_from_the_first_look() -> None:
    """And another stream of the same name begins anew."""
    undone = Undone()
    assert undone.age_s(50, _state(1_000, 10)) == 0
    assert undone.age_s(80, _state(1_000, 10)) == 30
    assert undone.age_s(82, _state(4, 0, made="tomorrow")) == 0
    assert undone.age_s(84, _state(4, 0, made="tomorrow")) == 2


@pytest.mark.parametrize("done_to", [0, 5_000])
def test_days_of_looks_take_no_memory_and_lose_little(done_to: int) -> None:
    """The age stays right, or nearly if the oldest is done meanwhile."""
    undone = Undone()
    for second in range(0, 20_000, 2):
        age_s = undone.age_s(second, _state(second + 1, 0))
        assert age_s == second
    assert len(undone._looks) <= LOOKS_MAX + 1
    age_s = undone.age_s(20_000, _state(20_000, done_to))
    assert age_s == pytest.approx(20_000 - done_to, abs=600)
