"""How far a forwarder is behind, and what it passes over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.roles.nats.purge import KEPT, Lag, lag_of, place_to_skip_to
from ingest.roles.nats.stream_state import state_of
from ingest.roles.nats.streams import Found


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
