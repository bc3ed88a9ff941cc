"""Pauses between tries: at least Retry-After, spread, growing, and bounded by the time."""

from __future__ import annotations

import math

import pytest

from loadgen.driver.retry import Flight, Retry, RetryQueue
from loadgen.traffic.post import Post

NOW_S = 1000.0


def flight(tries: int = 1, first_s: float = NOW_S) -> Flight:
    """Return a post with a number of tries."""
    made = Flight(Post(b"", 1, "live", tries), first_s, first_s)
    made.tries = tries
    return made


def pauses(retry: Retry, tries: int, retry_after_s: int | None = None) -> list[float]:
    """Return many pauses, sorted."""
    waiting = RetryQueue(retry, seed=1)
    found = [waiting.again_s(flight(tries), NOW_S, retry_after_s) for _ in range(500)]
    return sorted(each - NOW_S for each in found if each is not None)


@pytest.mark.parametrize(("tries", "ceiling_s"), [(1, 0.2), (2, 0.4), (5, 3.2), (9, 10), (999, 10)])
def test_pause_is_anything_up_to_a_ceiling_that_doubles(tries: int, ceiling_s: float) -> None:
    """Full jitter: evenly from 0 to a maximum that doubles."""
    found = pauses(Retry(pause_s_min=0.1, pause_s_max=10), tries)
    assert len(found) == 500
    assert 0 <= found[0] < 0.02 * ceiling_s
    assert 0.98 * ceiling_s < found[-1] <= ceiling_s
    assert found[250] == pytest.approx(ceiling_s / 2, rel=0.15)


@pytest.mark.parametrize("asked_s", [1, 7])
def test_retry_after_is_kept_and_stretched_by_up_to_half(asked_s: int) -> None:
    """The pause is Retry-After plus up to half of it, for any policy."""
    found = pauses(Retry(pause_s_min=0.1, pause_s_max=0.2), 1, asked_s)
    assert asked_s <= found[0] < 1.02 * asked_s
    assert 1.48 * asked_s < found[-1] <= 1.5 * asked_s


def test_retry_after_zero_is_at_once() -> None:
    """Retry-After 0 is no pause, not a missing header."""
    assert set(pauses(Retry(), 3, 0)) == {0.0}


def test_try_that_would_come_too_late_is_not_planned() -> None:
    """There is no further try after `give_up_s` since the first one."""
    waiting = RetryQueue(Retry(give_up_s=10), seed=1)
    assert waiting.again_s(flight(), NOW_S, 6) is not None
    assert waiting.again_s(flight(), NOW_S, 11) is None
    assert waiting.again_s(flight(first_s=NOW_S - 9), NOW_S, 6) is None
    assert waiting.again_s(flight(first_s=NOW_S - 9), NOW_S, 0) is not None


def test_without_a_policy_nothing_is_planned() -> None:
    """Without a policy there is no further try, also with Retry-After."""
    assert RetryQueue(None, seed=1).again_s(flight(), NOW_S, 0) is None


def test_those_that_wait_leave_in_the_order_of_their_moments() -> None:
    """Posts leave in the order of their moments; of two equal ones the first goes first."""
    waiting = RetryQueue(Retry(), seed=1)
    assert waiting.next_s == math.inf
    for number, again_s in ((0, 3.0), (1, 1.0), (2, 2.0), (3, 1.0)):
        waiting.push(flight(number), again_s)
    assert len(waiting) == 4
    order = []
    for next_s in (1.0, 1.0, 2.0, 3.0):
        assert waiting.next_s == next_s
        order.append(waiting.pop().post.number)
    assert order == [1, 3, 2, 0]
    assert waiting.next_s == math.inf


def test_end_gives_all_back_and_plans_no_more() -> None:
    """`end` returns all waiting posts, and plans no further try."""
    waiting = RetryQueue(Retry(), seed=1)
    for number in (2, 1):
        waiting.push(flight(number), float(number))
    assert [each.post.number for each in waiting.end()] == [1, 2]
    assert (len(waiting), waiting.next_s) == (0, math.inf)
    assert waiting.again_s(flight(), NOW_S, 1) is None


def test_impatient_client_keeps_retry_after_as_far_as_its_patience_goes() -> None:
    """An impatient client waits at most `patience_s` and half of it, still spread."""
    found = pauses(Retry(patience_s=2.0), 1, 30)
    assert 2 <= found[0] < 2.1
    assert 2.9 < found[-1] <= 3
    assert pauses(Retry(patience_s=2.0), 1, 1)[0] < 1.02
