"""The client of a request that came through a proxy.

A trusted proxy adds the address of its client to the end of `X-Forwarded-For`. What stands before
that, a client may have written itself.
Promises: the address is the last one that is no trusted proxy. From any other peer the header
counts for nothing. If a proxy does not say who the client is, its own address is told, but the
network is "": what many clients send must not count as that of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

from multidict import CIMultiDictProxy

from ingest.http.request import Client, network_of

Networks = Sequence[IPv4Network | IPv6Network]


class Proxies:
    """The proxies that are trusted, by their networks. At least one."""

    def __init__(self, networks: Networks) -> None:
        self._networks = tuple(networks)
        self._known = lru_cache(maxsize=4096)(self._has)

    def has(self, address: str) -> bool:
        """Whether a trusted proxy has this address. A text that is no address is none."""
        return self._known(address)

    def _has(self, address: str) -> bool:
        try:
            ip = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in each for each in self._networks)

    def client_of(self, headers: CIMultiDictProxy[str], peer: Client) -> Client:
        """Return who sent a request of this peer."""
        if not self.has(peer.address):
            return peer
        hops = ",".join(headers.getall("X-Forwarded-For", ())).split(",")
        for hop in reversed(hops):
            address = _address(hop.strip())
            if not address:
                break
            if not self.has(address):
                return Client(address, network_of(address))
        return peer._replace(network="")


def _address(hop: str) -> str:
    """Return the address of one entry, which may have a port; "" if it is none."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ip_address(hop))
    except ValueError:
        return ""
