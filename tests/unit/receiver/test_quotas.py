"""How much one sender may send, with a clock that the test moves."""

from __future__ import annotations

import random

import pytest

from ingest.model.errors import Refused
from ingest.receiver import quotas
from ingest.receiver.quotas import Quota, Quotas, Rates


class Clock:
    """Monotonic seconds."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock of the quotas."""
    clock = Clock()
    monkeypatch.setattr(quotas, "monotonic_s", clock)
    return clock


def wait_s(quota: Quota) -> float:
    """Try a post; return after how many seconds it may come, 0: it was taken."""
    try:
        quota.take_post()
    except Refused as refused:
        return refused.retry_after_s or 0.0
    return 0.0


def test_burst_is_taken_then_the_rate(clock: Clock) -> None:
    """Posts: ten at once, then one a second; and the wait that is told is enough."""
    quota = Quota(Rates(posts_per_s=1, burst_s=10))
    assert [wait_s(quota) for _ in range(10)] == [0] * 10
    with pytest.raises(Refused) as raised:
        quota.take_post()
    assert raised.value.code == "too_fast"
    told_s = raised.value.retry_after_s or 0.0
    assert told_s == pytest.approx(1)
    clock.now_s += told_s - 0.01
    assert wait_s(quota) > 0
    clock.now_s += 0.02
    assert wait_s(quota) == 0


def test_first_post_is_taken_however_small_the_burst(clock: Clock) -> None:
    """Half a post is never in the way of the first one."""
    quota = Quota(Rates(posts_per_s=5, burst_s=0.1))
    assert wait_s(quota) == 0
    assert wait_s(quota) == pytest.approx(0.2)


@pytest.mark.parametrize("rate", [5e-324, 1e-310, 1e-300, 1e-9])
def test_tiny_rate_tells_a_wait_that_a_header_can_have(clock: Clock, rate: float) -> None:
    """The wait may be infinite, as a number: then 30 days are told."""
    posts, readings = Quota(Rates(posts_per_s=rate)), Quota(Rates(readings_per_s=rate))
    assert (wait_s(posts), wait_s(readings)) == (0, 0)
    readings.charge(1)
    assert (wait_s(posts), wait_s(readings)) == (quotas.WAIT_S_MAX, quotas.WAIT_S_MAX)


def test_large_post_is_taken_once_and_paid_for(clock: Clock) -> None:
    """Readings: a debt of one post at most, and the mean rate is the limit."""
    quota = Quota(Rates(readings_per_s=100, burst_s=1))
    assert wait_s(quota) == 0
    quota.charge(5_000)
    assert wait_s(quota) == pytest.approx(49)
    clock.now_s += 49.01
    assert wait_s(quota) == 0


@pytest.mark.parametrize("rate", [0.01, 3, 1_000])
def test_mean_rate_is_never_above_the_limit(clock: Clock, rate: float) -> None:
    """Ten times as many posts are tried, at random moments, for a long time."""
    drawn = random.Random(1)
    quota = Quota(Rates(posts_per_s=rate, burst_s=10))
    taken, began_s = 0, clock.now_s
    for _ in range(20_000):
        clock.now_s += drawn.expovariate(10 * rate)
        taken += wait_s(quota) == 0
    passed_s = clock.now_s - began_s
    assert 0.9 * rate * passed_s <= taken <= rate * (passed_s + 10) + 1


def test_without_a_limit_all_is_taken(clock: Clock) -> None:
    """0 means none."""
    assert not Rates().any
    quota = Quota(Rates())
    assert {wait_s(quota) for _ in range(1_000)} == {0.0}


def test_memory_is_bounded_and_those_who_send_are_kept(clock: Clock) -> None:
    """A million networks do not make the one that sends a new sender."""
    known = Quotas(Rates(posts_per_s=1, burst_s=1), senders_max=100)
    busy = known.of("busy")
    for number in range(10_000):
        known.of(f"network {number}")
        assert known.of("busy") is busy
    assert len(known._quotas) == 100
