"""The connections of a port, bounded so that hostile or faulty clients cannot exhaust it.

Promises: at most `connections_max` connections. A connection is closed if it has not sent a whole
head in time, idles too long or does not read its answers. There is no timer for each request: one
sweep a second checks all connections.
If there are too many, a new one is accepted and another one is closed. First those whose request is
not here yet, then idle ones; each time of the network that has most of them. One that has connected
just now is spared while another network has more connections.
If another process has the socket, each connection ends with its next answer (`step_down`).
Does not: bound the connections of a network, since a fleet may be behind one. Know any route.
Malformed requests get a problem answer and no log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

from ingest.http.clients import Proxies
from ingest.http.connection import Connection
from ingest.http.framer import require_parser
from ingest.http.listener import Listener
from ingest.http.request_and_answer import CLOSE, Answer, KnownHeads, Reply, Request
from ingest.http.rounds import PlainBodies
from ingest.http.tls import Certificate, TlsConnection
from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger
from ingest.system.process_setup import SPARE_FILES

SWEEP_S_MAX = 1.0
SLOW_S = 1.0  # a request that is not here after this time comes slowly
NEEDS_TLS = "needs_tls"
NEARLY_ALL = 0.8  # of the connections that the limit of open files allows
# To close ten thousand connections at once would block the event loop for 0.1 s, and then all of
# these clients might connect again at once.
DROPS_A_ROUND, DROP_PAUSE_S = 20, 0.005
GONE_LOOK_S = 0.02  # between two looks whether the last connection has ended
LOOKS = 16  # so many connections at most are looked at to find one to close
CHANGED_MAX = 64  # networks; some 0.1 ms
Member = TypeVar("Member", bound=Hashable)


class Connections:
    """The connections of one port. `malformed` returns (and counts) the answer for a problem code.

    `closed` is called with the cause when a limit closes one (not at the end of an idle one).
    With `plain_bodies` these decide when a request that has arrived whole begins, and the heads of
    such requests are remembered. Connections between half and three halves of `connection_s_max`
    old are retired, evenly over the time. With a certificate the port speaks TLS only.
    """

    def __init__(
        self,
        handle: Callable[[Request], Reply],
        malformed: Callable[[str], Answer],
        *,
        closed: Callable[[str], None] = lambda _cause: None,
        plain_bodies: PlainBodies | None = None,
        connections_max: int,
        header_s_max: float,
        keepalive_s_max: float,
        connection_s_max: float = math.inf,
        certificate: Certificate | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        require_parser()
        self.loop = asyncio.get_running_loop()
        self.answer = handle
        self.plain_bodies = plain_bodies  # None: every request begins in the next round
        self.known_heads = KnownHeads() if plain_bodies is not None else None
        self.proxies = proxies
        self.is_closing = False
        self.malformed = malformed
        self._closed = closed
        self.header_s_max = header_s_max
        self.keepalive_s_max = keepalive_s_max
        self._connection_s_max = connection_s_max
        # Each with the time when it was opened, or retired; the oldest is the first.
        self._open: OrderedDict[Connection, float] = OrderedDict()
        self._by_network = Crowds[Connection]()
        self._suspended: set[asyncio.Task[Answer]] = set()
        self._work_ended = asyncio.Event()  # only set while the port is closing
        # Each with the time of its begin, oldest first. A connection with a request in work is in
        # neither.
        self._half_open: OrderedDict[Connection, float] = OrderedDict()
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        # Those whose request is not here: the half-open ones, and those in the middle of a body.
        self._unfinished = Crowds[Connection]()
        self._certificate = certificate
        self._listener: Listener | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._log = get_logger("connections")
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(connections_max, max(files - SPARE_FILES, 16))
        self._untold = (files, connections_max) if self._most < connections_max else None
        self._occasionally = Occasionally(60.0)

    def __call__(self) -> Connection | TlsConnection:
        """Make the protocol of one connection (the event loop calls this)."""
        if self._certificate is None:
            return Connection(self)
        assert self.plain_bodies is not None, "only the data port has a certificate"
        return TlsConnection(
            Connection(self),
            self.plain_bodies.loop_share,
            context=self._certificate.context,
            plain=lambda: self.malformed(NEEDS_TLS).rendered(CLOSE),
        )

    @property
    def count(self) -> int:
        """Connections open now."""
        return len(self._open)

    # Called by the connections

    def connection_made(self, handler: Connection, transport: asyncio.Transport) -> None:
        """Add a new connection; if there are too many, close another one, or this one."""
        if len(self._open) >= self._most:
            self._closed("connections_full")
            another = self._to_close()
            if another is None:
                transport.abort()
                return
            self._drop(another)
        network, now_s = handler.client.network, monotonic_s()
        self._open[handler] = self._half_open[handler] = now_s
        self._by_network.add(network, handler, now_s)
        self._unfinished.add(network, handler, now_s)

    def connection_lost(self, handler: Connection) -> None:
        """Remove a connection. Repeatable."""
        if self._open.pop(handler, None) is None:
            return
        network = handler.client.network
        self._by_network.remove(network, handler)
        self._unfinished.remove(network, handler)
        self._half_open.pop(handler, None)
        self._idle.pop(handler, None)

    def head_begun(self, handler: Connection) -> None:
        """Start the deadline of a head, at its first bytes."""
        if self._idle.pop(handler, None) is not None:
            self._half_open[handler] = now_s = monotonic_s()
            self._unfinished.add(handler.client.network, handler, now_s)

    def work_begun(self, handler: Connection) -> None:
        """Exempt a connection from the sweep while its request is in work."""
        if self._half_open.pop(handler, None) is not None:
            self.body_ended(handler)
        self._idle.pop(handler, None)

    def work_ended(self, handler: Connection) -> None:
        """Count the connection as idle, until its client sends the next head."""
        if handler in self._open:
            self._idle[handler] = monotonic_s()
        if self.is_closing:
            self._work_ended.set()

    def body_awaited(self, handler: Connection) -> None:
        """Exempt it from the sweep; it may be closed for another one as long as its body comes."""
        self._idle.pop(handler, None)
        if self._half_open.pop(handler, None) is None and handler in self._open:
            self._unfinished.add(handler.client.network, handler, monotonic_s())

    def body_ended(self, handler: Connection) -> None:
        """Its request is whole now, or nobody waits for the rest of it."""
        self._unfinished.remove(handler.client.network, handler)

    def put_off(self, go_on: Callable[[], object], network: str) -> None:
        """Call `go_on`, a short step, later. Networks take turns."""
        if self.plain_bodies is None:
            self.loop.call_soon(go_on)
        else:
            self.plain_bodies.loop_share.put_off(go_on, network)

    def suspended(self, task: asyncio.Task[Answer]) -> None:
        """Keep the task of an answer that has to wait; `close` waits for it."""
        self._suspended.add(task)
        task.add_done_callback(self._suspended.discard)

    # Too many connections

    def _to_close(self) -> Connection | None:
        """Return the connection to close for a new one; None if all have a request in work."""
        network, _ = self._by_network.largest()
        slow_network, unfinished = self._unfinished.largest()
        for handler, since_s in islice(unfinished.items(), 1):
            if slow_network == network or monotonic_s() - since_s >= SLOW_S:
                return handler
        return (
            self._idle_of(network) or next(iter(self._idle), None) or next(iter(unfinished), None)
        )

    def _idle_of(self, network: str) -> Connection | None:
        """Return an idle connection of the largest network, mostly the one idle for longest."""
        for handler in islice(self._idle, LOOKS):
            if handler.client.network == network:
                return handler
        _, members = self._by_network.largest()
        for handler in list(islice(members, LOOKS)):
            if handler in self._idle:
                return handler
            self._by_network.to_the_end(network, handler)  # the next time others are looked at
        return None

    # Closing connections that are late

    def _drop(self, handler: Connection) -> None:
        self.connection_lost(handler)
        if handler.transport is not None and handler.transport.get_write_buffer_size():
            # A normal close would wait for ever for a client that does not read.
            handler.transport.abort()
        handler.close()

    async def _sweep(self) -> None:
        period_s = min(SWEEP_S_MAX, self.header_s_max / 4, self.keepalive_s_max / 4)
        while True:
            more = False
            try:
                more = self._sweep_once(period_s)
            except Exception:  # a bug; without the sweep slow clients would be there for ever
                if (left_out := self._occasionally.due("sweep")) is not None:
                    self._log.error("sweep_failed", exc_info=True, similar_suppressed=left_out)
            await asyncio.sleep(DROP_PAUSE_S if more else period_s)

    def _sweep_once(self, period_s: float) -> bool:
        """Close those that are late, a few; return whether there are more."""
        self._tell_if_near()
        if self._certificate is not None:
            self._certificate.read_if_changed()
        if self._drop_late() == DROPS_A_ROUND:
            return True
        self._retire_oldest(period_s)
        return False

    def _tell_if_near(self) -> None:
        """Log once that open files limit the connections, when nearly all of these are open."""
        if self._untold is None or len(self._open) < NEARLY_ALL * self._most:
            return
        (files, wanted), self._untold = self._untold, None
        self._log.warning(
            "fewer_connections",
            most=self._most,
            wanted=wanted,
            open_files_max=files,
            open_files_needed=wanted + SPARE_FILES,
        )

    def _retire_oldest(self, period_s: float) -> None:
        """Retire some connections; called once in each period."""
        now_s, age_s = monotonic_s(), self._connection_s_max
        share = math.ceil(len(self._open) * period_s / age_s)
        for handler, since_s in list(islice(self._open.items(), share)):
            if now_s - since_s < age_s / 2:
                return
            handler.retires = True
            self._open[handler] = now_s
            self._open.move_to_end(handler)

    def _drop_late(self) -> int:
        """Close connections that are too late, at most DROPS_A_ROUND; return how many."""
        now_s = monotonic_s()
        dropped = 0
        for waiting, most_s in (
            (self._half_open, self.header_s_max),
            (self._idle, self.keepalive_s_max),
        ):
            while waiting and dropped < DROPS_A_ROUND:
                handler, since_s = next(iter(waiting.items()))
                if now_s - since_s < most_s:
                    break
                if waiting is self._half_open:
                    self._closed("header_late")
                self._drop(handler)
                dropped += 1
        return dropped

    # Opening and closing the port

    async def listen(
        self,
        host: str,
        port: int,
        flag: str,
        *,
        tokens: str = "none yet",
        given: Sequence[socket.socket] = (),
        accepts: Callable[[], bool] = lambda: True,
    ) -> str:
        """Bind and serve, or serve at the sockets that are `given`; return the real HOST:PORT.

        They listen already; see Listener.take. Raises StartError that names `flag`. `tokens` goes
        into the warning for an address other than loopback: it says which pages need a token.
        """
        self._listener = listener = Listener(self)
        try:
            bound, real_port = (
                listener.take(given, accepts) if given else await listener.open(host, port)
            )
        except (OSError, OverflowError) as error:
            raise StartError(
                f"cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or error}); "
                f"choose another address with {flag} HOST:PORT"
            ) from error
        if not ipaddress.ip_address(bound.partition("%")[0]).is_loopback:
            self._log.warning("open_to_the_network", address=bound, tokens=tokens)
        self._sweeper = asyncio.create_task(self._sweep())
        return f"[{bound}]:{real_port}" if ":" in bound else f"{bound}:{real_port}"

    async def step_down(self, *, idle_s: float, timeout_s: float) -> None:
        """Leave the socket to the next process. Then `close`.

        Each connection ends with its next answer. One that stays idle for `idle_s` is closed. All
        others have `timeout_s`: for requests in work, and those that are arriving. A stop may come
        before the port listens: then there is nothing to leave.
        """
        if self._listener is None:
            return
        await self._listener.close()
        for handler in self._open:
            handler.retires = True
        since_s = monotonic_s()
        while self._open and (waited_s := monotonic_s() - since_s) < timeout_s:
            late = list(islice(self._idle, DROPS_A_ROUND)) if waited_s >= idle_s else []
            for handler in late:
                del self._idle[handler]
                handler.leave()
            await asyncio.sleep(DROP_PAUSE_S if late else GONE_LOOK_S)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Stop listening, wait `timeout_s` for requests in work, close all. Repeatable."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        await listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.is_closing = True  # each answer is the last one of its connection now
        transports = [each.transport for each in self._open]  # closed ones have none any more
        for handler in list(self._open):
            if not handler.is_in_work:
                handler.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._suspended or any(each.is_in_work for each in self._open):
                    self._work_ended.clear()
                    await self._work_ended.wait()
        late = set(self._suspended)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)  # each still counts its post as ended
        for handler in list(self._open):
            handler.close()
        for transport in transports:
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()  # its client does not read


class Crowds(Generic[Member]):
    """Members by network, as in Client; each with the time since when it is one.

    The oldest is the first, unless `to_the_end` has moved it. Most devices connect for one post,
    and nobody asks for the largest network meanwhile. So networks are sorted by their size when
    somebody asks, or when CHANGED_MAX of them have changed.
    Promises: the cost of a call does not depend on the number of members.
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
