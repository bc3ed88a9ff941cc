"""Who sends a request: the client behind a proxy, its network; and the page that a browser shows.

A trusted proxy adds the address of its client to the end of `X-Forwarded-For`. What stands before
that, a client may have written itself. A page of any site can make a browser send requests to any
address, also to the loopback. The browser says so in its headers; other programs do not send these.
Promises: the address is the last one that is no trusted proxy. From any other peer the header
counts for nothing. If a proxy does not say who the client is, its own address is told, but the
network is "": what many clients send must not count as that of one.
"""

from __future__ import annotations

import ipaddress
from asyncio import BaseTransport
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from multidict import CIMultiDictProxy

from ingest.system.loopback import is_loopback_host


class Client(NamedTuple):
    """Who sent a request.

    `address` is "" on a Unix socket or if unknown. `network` counts as one client: an IPv4 address,
    or the /64 of an IPv6 address; "" if a proxy does not say whose request it brings.
    """

    address: str
    network: str


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return the network of an address, as in Client. Any other text is returned as it is."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(IPv6Network((int(ip) >> 64 << 64, 64)))


def client_at(transport: BaseTransport) -> Client:
    """Return the client of a connection."""
    name = transport.get_extra_info("peername")
    address = str(name[0]) if isinstance(name, tuple) and name else ""
    return Client(address, network_of(address))


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


def is_loopback(address: str) -> bool:
    """Whether a bound HOST:PORT is on the loopback."""
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    return ipaddress.ip_address(host).is_loopback


def is_same_origin(headers: Mapping[str, str], name: str = "Origin") -> bool:
    """Whether the page that sent a request is of this server; True if no page sent it.

    The header `name` has its address.
    """
    origin = headers.get(name)
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("Host")
    except ValueError:  # brackets without an IPv6 address
        return False


def is_loopback_name(host: str, also: Collection[str] = ()) -> bool:
    """Whether a Host header is a name of the loopback, or one of `also` (in small letters)."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.lower() in also or is_loopback_host(name.strip("[]"))
