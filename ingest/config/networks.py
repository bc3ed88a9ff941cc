"""The setting `trusted_proxies`: networks of addresses."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a text such as `10.0.0.0/8, ::1`. Raises ValueError."""
    found = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ip_network(each))
        except ValueError as error:
            raise ValueError(f"{each!r} is not an address or network: {error}") from error
    return tuple(found)
