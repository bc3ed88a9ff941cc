"""A listening socket that accepts many connections in one round of the event loop.

uvloop's own server accepts one connection a round. While posts fill each round, a thousand devices
that connect at once would wait for seconds. Those beyond the backlog would wait for the kernel to
try again.
Promises: at most ACCEPTS_A_ROUND a round, so many new connections do not delay the open ones.
Does not: limit the number of connections.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ingest.http.clients import is_loopback
from ingest.system.logs import Occasionally, get_logger

BACKLOG = 2048
ACCEPTS_A_ROUND = 64  # some 0.03 ms each
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # `localhost` without IPv6
# After an accept that failed because files or memory were missing; and between two looks whether a
# socket is accepted from.
PAUSE_S = 0.1


class Listener:
    """Listens on one address, with a socket for each of its meanings (`localhost` may have two).

    `protocol` makes the protocol of one connection.
    """

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._accepts: Callable[[], bool] = lambda: True
        self._opening: set[asyncio.Task[None]] = set()
        self._log = get_logger("listener")
        self._occasionally = Occasionally(10.0)

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Bind and listen; return a real address. Raises OSError or OverflowError.

        If a host has several, it is one beyond the loopback: who asks wants to know who gets in.
        """
        found = await self._loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        failure: OSError | None = None
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                self._sockets.append(_listening(family, address))
            except OSError as error:
                failure = error
                if error.errno not in ABSENT:
                    break
        if not self._sockets or (failure is not None and failure.errno not in ABSENT):
            await self.close()
            raise failure or OSError(f"{host} has no address")
        return self.take(self._sockets)

    def take(
        self, sockets: Sequence[socket.socket], accepts: Callable[[], bool] = lambda: True
    ) -> tuple[str, int]:
        """Accept from sockets that listen already, once `accepts` says so; return an address.

        Of several addresses it is one beyond the loopback. Other processes may have these sockets
        too, and accept from them.
        """
        self._sockets, self._accepts = list(sockets), accepts
        for listening in sockets:
            listening.setblocking(False)
            self._resume(listening)
        names = [each.getsockname() for each in sockets]
        name, port, *_ = min(names, key=lambda name: is_loopback(f"{name[0]}:0"))
        return name, port

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_A_ROUND):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            accepted.setblocking(False)
            opening = self._loop.create_task(self._open(accepted))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accept nothing for PAUSE_S; to try again at once would use the whole CPU."""
        kept_back = self._occasionally.due("accept")
        if kept_back is not None:
            self._log.error("accept_failed", error=str(error), similar_suppressed=kept_back)
        self._loop.remove_reader(listening)
        self._loop.call_later(PAUSE_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening not in self._sockets:
            return
        if self._accepts():
            self._loop.add_reader(listening, self._accept, listening)
        else:
            self._loop.call_later(PAUSE_S, self._resume, listening)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, accepted)
        except OSError:  # the client is gone already
            accepted.close()

    async def close(self) -> None:
        """Stop listening. Repeatable.

        The kernel resets connections not accepted yet, unless another process has the socket too.
        Connections that were accepted have their protocol when this returns.
        """
        while self._sockets:
            listening = self._sockets.pop()
            self._loop.remove_reader(listening)
            listening.close()
        if self._opening:
            await asyncio.wait(self._opening)


async def open_slots(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` listening sockets at the first address that the host has on this machine.

    If there are several, the kernel gives each new connection to one of them. Raises OSError and
    OverflowError, also if somebody listens there already.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    failure = OSError(f"{host} has no address")
    addresses = [(family, address) for family, _, _, _, address in dict.fromkeys(found)]
    for number, (family, address) in enumerate(addresses, 1):
        try:
            first = _listening(family, address)
        except OSError as error:
            failure = error
            if error.errno not in ABSENT:
                break
            continue
        others = [name[0] for kind, name in addresses[number:] if _is_here(kind, name)]
        if others:
            get_logger("listener").warning("one_address_only", address=address[0], not_at=others)
        return _slots(first, family, count)
    raise failure


def _is_here(family: int, address: tuple[Any, ...]) -> bool:
    """Whether this machine has the address."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def _slots(first: socket.socket, family: int, count: int) -> list[socket.socket]:
    """Return the socket, if one is enough; else close it, and open others at its address.

    A socket that shares its port would be bound beside another service of this user. So a first
    one, which does not share, has looked whether there is one.
    """
    if count == 1:
        return [first]
    address = first.getsockname()
    first.close()
    slots: list[socket.socket] = []
    try:
        for _ in range(count):
            slots.append(_listening(family, address, shares=True))
    except (OSError, OverflowError):
        for each in slots:
            each.close()
        raise
    return slots


def _listening(family: int, address: Any, *, shares: bool = False) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except (OSError, OverflowError):
        bound.close()
        raise
    return bound
