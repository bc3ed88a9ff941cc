"""Where a request comes from, as a browser says it; and whether a host is a name of the loopback.

A page of any site can make a browser send requests to any address, also to the loopback. The
browser says so in its headers. Programs that are no browsers do not send these headers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from ingest.system.loopback import is_loopback_host


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
