"""What was done is kept for as long as the setting says, and no longer than needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.roles.nats.purge import Kept

STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 5)), min_size=1, max_size=60)


@given(STEPS, st.sampled_from([0, 10, 100]))
def test_each_message_stays_for_its_time(steps: list[tuple[float, int]], keep_s: float) -> None:
    """Never shorter, and longer by a thousandth at most."""
    kept = Kept(keep_s)
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
    kept = Kept(10)
    assert kept.note(0, 100) == 0
    assert kept.note(10, 100) == 100
    assert kept.note(11, 0) == 0
    assert kept.note(12, 50) == 0
    assert kept.note(21, 60) == 0
    assert kept.note(22, 60) == 50


def test_another_stream_keeps_all_again() -> None:
    """What was remembered of the one before is no place of it."""
    kept = Kept(10)
    kept.note(0, 100)
    kept.clear()
    assert kept.note(10, 200) == 0


def test_long_time_needs_little_memory() -> None:
    """A week, with a look every ten seconds."""
    week_s = 7 * 86_400
    kept = Kept(week_s)
    to = [kept.note(10.0 * number, number) for number in range(week_s // 10 + 1_000)]
    assert max(to) > 900
    assert len(kept) <= 2_002
