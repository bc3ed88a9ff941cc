"""The connections of the load driver: opens them, keeps the free ones, drops silent ones.

Promises: never more than `connections_max`; a free connection that the service has closed is not
used; the owner is called for each end of a connection. Does not: know when to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

from loadgen.driver.connection import Connection, Head, Owner
from loadgen.driver.retry import Flight
from loadgen.driver.trust import context_of
from loadgen.traffic.post import Target

CONNECT_S_MAX = 10.0
# Some at a time, and more slowly than a uvloop server accepts (one a round of its event loop): if
# the listener's queue overflows, the kernel tries the connection again only a second later.
CONNECTS_AT_ONCE = 32
CONNECTS_PAUSE_S = 0.005
WATCHES_S_MAX = 1.0
EVEN_S = 1.0


async def unreachable(*targets: Target) -> str:
    """Return why no connection to one of the targets is possible, or an empty text."""
    for each in targets:
        if why := await _unreachable(each):
            return why
    return ""


async def _unreachable(target: Target) -> str:
    try:
        async with asyncio.timeout(CONNECT_S_MAX / 2):
            _, writer = await asyncio.open_connection(
                target.host, target.port, ssl=context_of(target)
            )
    except (OSError, TimeoutError) as error:
        return f"cannot connect to {target.authority} ({str(error) or 'no answer'})"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


class Opener(Owner, Protocol):
    """The caller of `open`, and the owner of the connections."""

    def connected(self, connection: Connection, flight: Flight) -> None:
        """Take the connection that `open` has made."""

    def not_connected(self, flight: Flight, why: str) -> None:
        """Take note that there is none; the opener must add one to `places`."""


class Pool:
    """Up to `connections_max` connections to one service.

    A new one goes to the address that has the fewest. So an address that did not answer gets its
    share again when it is back: it is tried once a second, though connections to others are free.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        opener: Opener,
        connections_max: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._tls = tls
        self.free: deque[Connection] = deque()  # used one after another; some may be closed
        self.places = connections_max  # connections that could still be opened
        self._evened_s = -EVEN_S
        self._opener = opener
        self._heads: dict[bytes, Head] = {}
        self._connections: dict[Connection, tuple[str, int]] = {}  # and where each goes to
        self._shares = Counter(dict.fromkeys(addresses, 0))  # open or being opened, by address
        self.opening: dict[asyncio.Task[None], Flight] = {}  # what each new connection is for

    @property
    def ready(self) -> bool:
        """Whether a connection is free, or could be opened."""
        while self.free and not self.free[0].open:
            self.free.popleft()
        return bool(self.free) or self.places > 0

    @property
    def must_open(self) -> bool:
        """Whether a post needs a new connection: none is free, or an address has too few."""
        if not self.free:
            return True
        if len(self._shares) == 1 or not self.places:
            return False
        shares, now_s = self._shares.values(), time.monotonic()
        if max(shares) - min(shares) < 2 or now_s < self._evened_s + EVEN_S:
            return False
        self._evened_s = now_s
        return True

    async def fill(self) -> None:
        """Open all connections, some at a time. If none of these succeeds, stop."""
        while self.places:
            count = min(CONNECTS_AT_ONCE, self.places)
            self.places -= count
            results = await asyncio.gather(*(self._connect() for _ in range(count)))
            connections = [each for each in results if isinstance(each, Connection)]
            self.places += count - len(connections)
            self.free.extend(connections)
            if not connections:
                return
            if self.places:
                await asyncio.sleep(CONNECTS_PAUSE_S)

    def open(self, flight: Flight) -> None:
        """Open a connection for this flight. Only if there are `places`."""
        self.places -= 1
        task = asyncio.get_running_loop().create_task(self._open(flight))
        self.opening[task] = flight
        task.add_done_callback(lambda done: self.opening.pop(done, None))

    async def _open(self, flight: Flight) -> None:
        found = await self._connect()
        if isinstance(found, Connection):
            self._opener.connected(found, flight)
        else:
            self._opener.not_connected(flight, found)

    async def _connect(self) -> Connection | str:
        """Return a connection, or why there is none."""
        address = min(self._shares, key=self._shares.__getitem__)
        self._shares[address] += 1
        found = await self._connect_to(*address)
        if isinstance(found, Connection) and found.open:
            self._connections[found] = address
        else:
            self._shares[address] -= 1
        return found

    async def _connect_to(self, host: str, port: int) -> Connection | str:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._opener, self._heads), host, port, ssl=self._tls
                )
        except TimeoutError:
            return f"no connection within {CONNECT_S_MAX:g} s"
        except ConnectionRefusedError:
            return "connection refused"
        except (OSError, UnicodeError) as error:
            return f"no connection: {getattr(error, 'strerror', None) or error}"
        return connection

    def forget(self, connection: Connection) -> None:
        """Free the place of a closed connection."""
        if (address := self._connections.pop(connection, None)) is not None:
            self._shares[address] -= 1
        self.places += 1

    async def watch(self, answer_s_max: float) -> None:
        """Drop, until cancelled, connections without an answer for `answer_s_max`: by one timer."""
        why = f"no answer within {answer_s_max:g} s"
        while True:
            await asyncio.sleep(min(WATCHES_S_MAX, answer_s_max / 20))
            since_s = time.monotonic() - answer_s_max
            for connection in [
                each for each in self._connections if each.busy and each.sent_s < since_s
            ]:
                connection.drop(why)

    def drop_all(self, why: str) -> None:
        """Close all connections at once; the owner is called."""
        for connection in list(self._connections):
            connection.drop(why)

    async def close(self) -> None:
        """Close all connections, and stop opening."""
        tasks = list(self.opening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.drop_all("")  # after the tasks, which may have opened one just now
