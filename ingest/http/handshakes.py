"""When a connection may do the next step of its TLS handshake.

A step costs 0.1 to 1 ms of the event loop, for work with the private key. So steps are done one by
one, in the time that each round of the loop keeps for such work (`put_off`).
Promises: at most UNDER_WAY_MAX handshakes have begun and not ended; others wait. Networks that wait
take turns. A client that begins a handshake and says no more cannot keep its place: if others wait,
the oldest one of the network that has most of the places is closed after PLACE_S.
Does not: bound those that wait, or the time of one. Connections does that: they count as open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingest.http.certificate import Certificate
from ingest.http.crowds import Crowds
from ingest.http.request import client_at
from ingest.http.tls import TlsConnection
from ingest.system.clock import monotonic_s

UNDER_WAY_MAX = 20
PLACE_S = 2.0  # two round trips of a slow mobile network
LOOK_S = 0.1  # between two looks at the places, while all are taken and others wait


class Handshakes:
    """All handshakes of one port. `put_off` calls a short step in a later round of the loop."""

    def __init__(
        self, certificate: Certificate, put_off: Callable[[Callable[[], object]], None]
    ) -> None:
        self.certificate = certificate
        self.put_off = put_off
        self._waiting: dict[str, dict[TlsConnection, None]] = {}  # by network, the next one first
        self._under_way: set[TlsConnection] = set()
        self._places = Crowds[TlsConnection]()
        self._due: dict[TlsConnection, None] = {}  # under way, with bytes for the next step
        self._scheduled = False
        self._look: asyncio.TimerHandle | None = None

    def wrapped(self, inner: asyncio.Protocol, plain: Callable[[], bytes]) -> TlsConnection:
        """Return the protocol of a new connection; see TlsConnection."""
        return TlsConnection(
            inner,
            self,
            context=self.certificate.context,
            network_of=lambda transport: client_at(transport).network,
            plain=plain,
        )

    @property
    def under_way(self) -> int:
        """Handshakes that have begun and not ended."""
        return len(self._under_way)

    def ask(self, connection: TlsConnection, network: str) -> None:
        """Call `connection.step` soon; for its first step it may have to wait for others."""
        if connection in self._under_way:
            self._due[connection] = None
        else:
            self._waiting.setdefault(network, {})[connection] = None
        self._schedule()

    def ended(self, connection: TlsConnection, network: str) -> None:
        """Give its place to another one, or wait no more. Repeatable."""
        self._due.pop(connection, None)
        if connection in self._under_way:
            self._under_way.remove(connection)
            self._places.remove(network, connection)
            self._schedule()
        elif (waiting := self._waiting.get(network)) is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[network]

    def _schedule(self) -> None:
        if not self._scheduled and (self._due or self._waiting):
            self._scheduled = True
            self.put_off(self._next)

    def _next(self) -> None:
        """Do one step."""
        self._scheduled = False
        if self._due:
            connection = next(iter(self._due))
            del self._due[connection]
            connection.step()
        elif self._waiting:
            if len(self._under_way) >= UNDER_WAY_MAX and not self._free_a_place():
                if self._look is None:
                    self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)
                return
            self._begin_next()
        self._schedule()

    def _look_again(self) -> None:
        self._look = None
        self._schedule()

    def _begin_next(self) -> None:
        """Begin the handshake of the network whose turn it is."""
        network = next(iter(self._waiting))
        waiting = self._waiting.pop(network)
        connection = next(iter(waiting))
        del waiting[connection]
        if waiting:
            self._waiting[network] = waiting  # behind the others
        self._under_way.add(connection)
        self._places.add(network, connection, monotonic_s())
        connection.step()

    def _free_a_place(self) -> bool:
        """Close the oldest one of the largest network, if it had its time; say whether."""
        network, members = self._places.largest()
        connection, since_s = next(iter(members.items()))
        if monotonic_s() - since_s < PLACE_S:
            return False
        self.ended(connection, network)
        connection.abort()
        return True
