"""Connections by network: the largest network is always known."""

from __future__ import annotations

import random

import pytest

from ingest.http.crowds import Crowds, network_of


@pytest.mark.parametrize(
    ("peername", "network"),
    [
        (("10.0.0.7", 4711), "10.0.0.7"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_network_is_an_ipv4_address_or_an_ipv6_64(peername: object, network: str) -> None:
    """A client of IPv6 has 2**64 addresses at least; they are one network."""
    assert network_of(peername) == network


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
