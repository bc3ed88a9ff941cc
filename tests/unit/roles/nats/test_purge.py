"""What may be purged, and what is pulled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.roles.nats.pulling import SkipCheck
from ingest.roles.nats.purge import KEPT, KeptPlaces, Lag, lag_of, place_to_skip_to
from ingest.roles.nats.stream_state import state_of
from ingest.roles.nats.streams import Found

STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 5)), min_size=1, max_size=60)


@given(STEPS, st.sampled_from([0, 10, 100]))
def test_each_message_stays_for_its_time(steps: list[tuple[float, int]], keep_s: float) -> None:
    """Never shorter, and longer by a thousandth at most."""
    kept = KeptPlaces(keep_s)
    now_s = done_to = 0.0
    done_at: list[tuple[float, int]] = []
    for pause_s, more in steps:
        now_s += pause_s
        done_to += more
        done_at.append((now_s, int(done_to)))
        to = kept.note(now_s, int(done_to))
        due = [place for at_s, place in done_at if now_s - at_s >= keep_s]
        assert to <= max(due, default=0)
        surely = [place for at_s, place in done_at if now_s - at_s >= keep_s * 1.001]
        assert to >= max(surely, default=0)


def test_consumer_that_was_made_anew_keeps_all_again() -> None:
    """Messages that are done a second time stay for their whole time after that."""
    kept = KeptPlaces(10)
    assert kept.note(0, 100) == 0
    assert kept.note(10, 100) == 100
    assert kept.note(11, 0) == 0
    assert kept.note(12, 50) == 0
    assert kept.note(21, 60) == 0
    assert kept.note(22, 60) == 50


def test_another_stream_keeps_all_again() -> None:
    """What was remembered of the one before is no place of it."""
    kept = KeptPlaces(10)
    kept.note(0, 100)
    kept.clear()
    assert kept.note(10, 200) == 0


def test_long_time_needs_little_memory() -> None:
    """A week, with a look every ten seconds."""
    week_s = 7 * 86_400
    kept = KeptPlaces(week_s)
    to = [kept.note(10.0 * number, number) for number in range(week_s // 10 + 1_000)]
    assert max(to) > 900
    assert len(kept) <= 2_002


@pytest.mark.parametrize(
    ("first", "last", "size", "floor", "expected"),
    [
        (1, 0, 0, 0, Lag(0, 0, 0, 0)),
        (1, 10, 1_000, 0, Lag(10, 1_000, 0, 10)),
        (1, 10, 1_000, 4, Lag(6, 600, 4, 10)),
        (5, 10, 600, 2, Lag(6, 600, 4, 10)),  # what was removed is no lag
        (11, 10, 0, 10, Lag(0, 0, 10, 10)),
        (1, 10, 1_000, 12, Lag(0, 0, 12, 10)),  # a stream that was restored
    ],
)
def test_lag_is_what_is_left_to_do(
    first: int, last: int, size: int, floor: int, expected: Lag
) -> None:
    """In messages, and about in bytes."""
    said = {"first_seq": first, "last_seq": last, "messages": last - first + 1, "bytes": size}
    state = state_of(Found({"state": said, "config": {}}, None))
    assert state is not None
    assert lag_of(state, floor) == expected


@given(
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**9),
    st.integers(1, 10**9),
    st.none() | st.integers(0, 2 * 10**6),
)
def test_skip_leaves_less_than_the_bound_and_what_the_writers_need(
    messages: int, first: int, size: int, bytes_max: int, writers: int | None
) -> None:
    """It passes over nothing within the bound, and no more than it must."""
    lag = Lag(messages, size, first, first + messages)
    place = place_to_skip_to(lag, bytes_max, writers)
    if size <= bytes_max:
        assert place == 0
        return
    wanted = lag.last - int(messages * bytes_max * KEPT / size)
    assert place in (0, wanted if writers is None else min(wanted, writers))
    assert place == 0 or lag.first < place <= lag.last
    if writers is None:
        assert (lag.last - place) * size / messages <= bytes_max


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
