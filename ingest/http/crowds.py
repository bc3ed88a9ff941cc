"""Connections by the network that they come from, and which network has most of them.

Networks are those of request.Client: one customer has at least a /64 of IPv6.
Promises: the cost of a call does not depend on the number of connections.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class Crowds(Generic[Member]):
    """Members by network; each with the time since when it is one.

    The oldest is the first, unless `to_the_end` has moved it.
    """

    def __init__(self) -> None:
        self._members: dict[str, dict[Member, float]] = {}
        self._networks: dict[int, dict[str, None]] = {}  # by their number of members
        self._most = 0

    def add(self, network: str, member: Member, since_s: float) -> None:
        """Add a new member."""
        members = self._members.setdefault(network, {})
        self._resized(network, len(members), len(members) + 1)
        members[member] = since_s

    def remove(self, network: str, member: Member) -> None:
        """Remove a member, if it is one."""
        members = self._members.get(network, {})
        if members.pop(member, None) is not None:
            self._resized(network, len(members) + 1, len(members))
            if not members:
                del self._members[network]

    def to_the_end(self, network: str, member: Member) -> None:
        """Put a member behind the others of its network, with the same time."""
        members = self._members[network]
        members[member] = members.pop(member)

    def largest(self) -> tuple[str, Mapping[Member, float]]:
        """Return the network with most members, and these; an empty one if there is no member."""
        if not self._most:
            return "", {}
        network = next(iter(self._networks[self._most]))
        return network, self._members[network]

    def _resized(self, network: str, old: int, new: int) -> None:
        if old:
            alike = self._networks[old]
            del alike[network]
            if not alike:
                del self._networks[old]
        if new:
            self._networks.setdefault(new, {})[network] = None
        if new > self._most or self._most not in self._networks:
            self._most = new
