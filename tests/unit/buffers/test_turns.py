"""The order in which senders that wait are served."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ingest.buffers import waiting as turns_module
from ingest.buffers.waiting import Turns


def served(turns: Turns[int], count: int) -> list[int]:
    """Serve so many."""
    found = []
    for _ in range(count):
        first = turns.first()
        assert first is not None
        turns.serve()
        found.append(first)
    return found


def test_one_sender_keeps_its_order() -> None:
    """Small posts do not overtake large ones."""
    turns = Turns[int]()
    for number in range(100):
        turns.add(number, "one", 1 + number * 37 % 100)
    assert served(turns, 100) == list(range(100))


def test_senders_with_one_post_each_are_served_as_they_came() -> None:
    """So a fleet with a token for each device is served first come, first served."""
    turns = Turns[int]()
    for number in range(100):
        turns.add(number, str(number), 1 + number * 37 % 100)
    assert served(turns, 100) == list(range(100))


def test_bytes_are_shared_and_not_posts() -> None:
    """One sends a thousand bytes a post, the other ten: both get about as many bytes."""
    turns = Turns[int]()
    for number in range(50):
        turns.add(number, "large", 1_000)
    for number in range(50, 2_050):
        turns.add(number, "small", 10)
    large = sum(number < 50 for number in served(turns, 1_010))
    assert 9 <= large <= 11


def test_post_that_was_not_served_does_not_count() -> None:
    """A sender whose posts have all expired is not behind others for it."""
    turns = Turns[int]()
    turns.add(0, "other", 1)
    for number in range(1, 50):
        turns.add(number, "unlucky", 1_000)
    for number in range(1, 50):
        turns.leave(number)
    turns.add(50, "other", 1)
    turns.add(51, "unlucky", 1)
    assert served(turns, 3) == [0, 51, 50]
    assert turns.first() is None


@pytest.mark.parametrize("senders_max", [1, 2, 5, turns_module.SENDERS_MAX])
def test_each_sender_keeps_its_order_whatever_leaves(
    senders_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a post before it has left, and when what senders were given is forgotten."""
    monkeypatch.setattr(turns_module, "SENDERS_MAX", senders_max)
    rng = random.Random(senders_max)
    for _ in range(300):
        turns, done = Turns[int](), dict[str, int]()
        for number in range(60):
            turns.add(number, rng.choice("abc"), rng.choice((1, 2, 50)))
            if turns.posts and rng.random() < 0.4:
                turns.leave(rng.choice(list(turns.posts)))
            if (first := turns.first()) is not None and rng.random() < 0.4:
                sender = turns.posts[first][0]
                assert done.get(sender, -1) < first
                assert first == next(each for each, (of, _) in turns.posts.items() if of == sender)
                done[sender] = first
                turns.serve()


def test_memory_is_bounded_by_what_waits() -> None:
    """Posts that leave in any order, of ever new senders, leave nothing behind."""
    turns, rng = Turns[int](), random.Random(1)
    turns.add(-1, "stays", 10)
    waiting: list[int] = []
    for number in range(30_000):
        turns.add(number, f"sender {number}", 1)
        waiting.append(number)
        if len(waiting) > 20:
            turns.leave(waiting.pop(rng.randrange(len(waiting))))
    assert len(turns._heap) <= 2 * len(turns.posts) + turns_module.SPARE
    assert len(turns._ends) <= turns_module.SENDERS_MAX
    assert len(turns._own) == len(turns.posts) == 21
    assert len(turns._begins) <= 21
    assert Counter(sender for sender, _ in turns.posts.values())["stays"] == 1
    turns.clear()
    assert not turns._own
