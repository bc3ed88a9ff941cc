"""Connections by the network that they come from, and which network has most of them.

Networks are those of request.Client: one customer has at least a /64 of IPv6.
Most devices connect for one post, and nobody asks for the largest network meanwhile. So networks
are sorted by their size when somebody asks, or when CHANGED_MAX of them have changed.
Promises: the cost of a call does not depend on the number of connections.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

CHANGED_MAX = 64  # some 0.1 ms
Member = TypeVar("Member", bound=Hashable)


class Crowds(Generic[Member]):
    """Members by network; each with the time since when it is one.

    The oldest is the first, unless `to_the_end` has moved it.
    """

    def __init__(self) -> None:
        self._members: dict[str, dict[Member, float]] = {}
        # As they were sorted last; only the networks of `_changed` have another number now.
        self._sorted: dict[str, int] = {}
        self._networks: dict[int, dict[str, None]] = {}  # by their number of members
        self._changed: dict[str, None] = {}  # in this order, so no chance decides between equals
        self._most = 0

    def add(self, network: str, member: Member, since_s: float) -> None:
        """Add a new member."""
        members = self._members.get(network)
        if members is None:
            members = self._members[network] = {}
        members[member] = since_s
        self._has_changed(network)

    def remove(self, network: str, member: Member) -> None:
        """Remove a member, if it is one."""
        members = self._members.get(network)
        if members is None or members.pop(member, None) is None:
            return
        if members:
            self._has_changed(network)
            return
        del self._members[network]
        if network in self._sorted:
            self._has_changed(network)
        else:  # it came and went, and nobody has asked meanwhile
            del self._changed[network]

    def to_the_end(self, network: str, member: Member) -> None:
        """Put a member behind the others of its network, with the same time."""
        members = self._members[network]
        members[member] = members.pop(member)

    def largest(self) -> tuple[str, Mapping[Member, float]]:
        """Return the network with most members, and these; an empty one if there is no member."""
        self._sort()
        if not self._members:
            return "", {}
        if self._most not in self._networks:
            self._most = max(self._networks)  # 10,000 members have 140 different numbers at most
        network = next(iter(self._networks[self._most]))
        return network, self._members[network]

    def _has_changed(self, network: str) -> None:
        self._changed[network] = None
        if len(self._changed) >= CHANGED_MAX:
            self._sort()

    def _sort(self) -> None:
        for network in self._changed:
            old, new = self._sorted.pop(network, 0), len(self._members.get(network, ()))
            if old:
                alike = self._networks[old]
                del alike[network]
                if not alike:
                    del self._networks[old]
            if new:
                self._sorted[network] = new
                self._networks.setdefault(new, {})[network] = None
                self._most = max(self._most, new)
        self._changed.clear()
