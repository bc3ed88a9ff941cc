"""Who sent a request: one that came through proxies, and which addresses may be one client."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from ingest.config.settings import Settings
from ingest.config.values import networks
from ingest.http.clients import Client, Proxies, network_of
from tests.support.receiver import post, running_receiver

PROXIES = Proxies(networks("10.0.0.0/8, ::1,127.0.0.1"))


def client(peer: str, *forwarded: str) -> Client:
    """Return the client that counts."""
    headers = CIMultiDictProxy(CIMultiDict([("X-Forwarded-For", each) for each in forwarded]))
    return PROXIES.client_of(headers, Client(peer, peer))


@pytest.mark.parametrize(
    ("peer", "forwarded", "counts"),
    [
        ("10.0.0.1", ("203.0.113.7",), "203.0.113.7"),
        ("::ffff:10.0.0.1", ("203.0.113.7",), "203.0.113.7"),
        ("::1", ("2001:db8::7",), "2001:db8::7"),
        ("10.0.0.1", ("[2001:db8::7]:4711",), "2001:db8::7"),
        ("10.0.0.1", ("203.0.113.7:4711",), "203.0.113.7"),
        # Through two proxies of ours; in one header or in two.
        ("10.0.0.1", ("203.0.113.7, 10.2.0.9",), "203.0.113.7"),
        ("10.0.0.1", ("203.0.113.7", "10.2.0.9"), "203.0.113.7"),
        # What the client has written itself does not count.
        ("10.0.0.1", ("198.51.100.1, 203.0.113.7",), "203.0.113.7"),
        ("203.0.113.7", ("198.51.100.1",), "203.0.113.7"),
        ("203.0.113.7", ("10.0.0.1",), "203.0.113.7"),
        # Nobody is named, or no address.
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("",), "10.0.0.1"),
        ("10.0.0.1", ("unknown",), "10.0.0.1"),
        ("10.0.0.1", ("203.0.113.7, <script>",), "10.0.0.1"),
        ("10.0.0.1", ("10.3.3.3",), "10.0.0.1"),
        ("", ("203.0.113.7",), ""),
    ],
)
def test_last_address_that_is_no_proxy_counts(
    peer: str, forwarded: tuple[str, ...], counts: str
) -> None:
    """Only a trusted peer is believed, and only what it has added. A proxy is never one client."""
    known = "" if PROXIES.has(counts) else counts
    assert client(peer, *forwarded) == Client(counts, network_of(known))


def test_networks_that_are_none_are_named() -> None:
    """The error names the part that is wrong; host bits are an error too."""
    assert networks("") == networks(" , ") == ()
    for text, named in (("10.0.0.0/8, proxy", "'proxy'"), ("10.0.0.1/8", "'10.0.0.1/8'")):
        with pytest.raises(ValueError, match="not an address or network") as raised:
            networks(text)
        assert named in str(raised.value)


@pytest.mark.parametrize(("trusted", "seen"), [("127.0.0.1", "203.0.113.7"), ("", "127.0.0.1")])
async def test_refused_posts_are_of_the_client_behind_the_proxy(trusted: str, seen: str) -> None:
    """The same with a head that has come before."""
    async with running_receiver(trusted_proxies=trusted, access="open") as receiver:
        device = await receiver.connect()
        for _ in range(2):
            await device.send(post(b"no json", headers={"X-Forwarded-For": "203.0.113.7"}))
            assert (await device.reply()).status == 400
        addresses = {each["peer"] for each in receiver.refused_posts.listed()}
    assert addresses == {seen}


def test_no_proxy_is_trusted_by_default() -> None:
    """Else each client could choose its address."""
    assert Settings().trusted_proxies == ""


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
