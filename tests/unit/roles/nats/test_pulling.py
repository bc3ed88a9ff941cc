"""The check for skipped messages: it finds each one, and never one that somebody else was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.roles.nats.pulling import SkipCheck

HERE, ELSEWHERE, AGAIN, DAMAGED = range(4)


@given(st.lists(st.sampled_from([HERE, HERE, HERE, ELSEWHERE, AGAIN, DAMAGED])))
def test_only_damaged_messages_are_reported(events: list[int]) -> None:
    """Of a stream of which we are given a part, and some of that twice, and some is damaged."""
    check = SkipCheck()
    check.begin(0, 0)
    place = delivery = 0
    damaged: list[int] = []
    reported: list[int] = []
    sure: list[int] = []  # damaged, between two deliveries to us
    since_ours: list[int] = []
    known = True  # whether the last delivery was ours
    for event in events:
        if event == DAMAGED:
            place += 1
            damaged.append(place)
            since_ours.append(place)
            continue
        delivery += 1
        if event == AGAIN:
            assert check.delivered(delivery, 1, is_first=False) is None
            continue
        place += 1
        if event == ELSEWHERE:
            known = False
            since_ours.clear()
            continue
        found = check.delivered(delivery, place, is_first=True)
        if found is not None:
            reported += found
        if known:
            sure += since_ours
        since_ours.clear()
        known = True
    assert set(reported) <= set(damaged)
    # A redelivery to us after one to somebody else hides what was between; nothing else does.
    if AGAIN not in events:
        assert reported == sure


def test_last_messages_are_reported_at_the_end_once() -> None:
    """Also if nothing was delivered since, and not again with the next delivery."""
    check = SkipCheck()
    check.begin(4, 4)
    assert check.ended(4, 4, 4) is None
    assert check.ended(4, 4, 6) == range(5, 7)
    assert check.ended(4, 4, 6) is None
    assert check.ended(4, 4, 7) == range(7, 8)
    assert check.delivered(5, 8, is_first=True) is None
    assert check.ended(9, 12, 12) is None


def test_nothing_is_said_before_the_place_is_known() -> None:
    """After its begin, or a hole, the check waits for two deliveries that follow each other."""
    check = SkipCheck()
    assert check.delivered(7, 20, is_first=True) is None
    assert check.delivered(9, 30, is_first=True) is None
    assert check.delivered(10, 32, is_first=True) == range(31, 32)
    assert check.delivered(12, 3, is_first=False) is None
    assert check.delivered(13, 40, is_first=True) is None
