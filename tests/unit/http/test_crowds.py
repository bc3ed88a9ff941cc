"""Connections by network: the largest network is always known."""

from __future__ import annotations

import random

from ingest.http.connections import Crowds


def test_largest_is_the_largest_after_any_steps() -> None:
    """Compared with a count by hand, over thousands of random steps; not after each of them."""
    chance = random.Random(1)
    crowds = Crowds[int]()
    there: dict[int, str] = {}
    numbers = [1] * 60 + [2] * 40 + [3] * 20 + list(range(4, 200))
    for step in range(5_000):
        member = chance.randrange(400)
        network = there.get(member) or f"10.0.0.{chance.choice(numbers)}"
        if member not in there and chance.random() < (0.9 if step % 1_000 < 600 else 0.3):
            crowds.add(network, member, float(step))
            there[member] = network
        else:
            crowds.remove(network, member)
            there.pop(member, None)
        if chance.random() < 0.7:
            continue
        name, members = crowds.largest()
        sizes = {each: list(there.values()).count(each) for each in there.values()}
        assert len(members) == max(sizes.values(), default=0)
        assert set(members) == {each for each, of in there.items() if of == name}
        if members:
            moved = next(iter(members))
            crowds.to_the_end(name, moved)
            assert [*members].index(moved) == len(members) - 1
