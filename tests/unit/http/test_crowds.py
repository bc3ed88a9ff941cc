"""Connections by network: the largest network is always known."""

from __future__ import annotations

import random

from ingest.http.crowds import Crowds


def test_largest_is_the_largest_after_any_steps() -> None:
    """Compared with a count by hand, over thousands of random steps."""
    chance = random.Random(1)
    crowds = Crowds[int]()
    there: dict[int, str] = {}
    for step in range(5_000):
        member = chance.randrange(60)
        network = there.get(member) or f"10.0.0.{chance.choice([1, 1, 1, 2, 2, 3, 4, 5])}"
        if member not in there and chance.random() < (0.9 if step % 1_000 < 600 else 0.3):
            crowds.add(network, member, float(step))
            there[member] = network
        else:
            crowds.remove(network, member)
            there.pop(member, None)
        name, members = crowds.largest()
        sizes = {each: list(there.values()).count(each) for each in there.values()}
        assert len(members) == max(sizes.values(), default=0)
        assert set(members) == {each for each, of in there.items() if of == name}
        if members:
            moved = next(iter(members))
            crowds.to_the_end(name, moved)
            assert [*members].index(moved) == len(members) - 1
