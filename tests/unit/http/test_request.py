"""Which addresses may be one client."""

from __future__ import annotations

import pytest

from ingest.http.clients import network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_network_is_the_64_of_an_ipv6_address(address: str, network: str) -> None:
    """One client of IPv6 has a whole /64 to choose its addresses from."""
    assert network_of(address) == network
