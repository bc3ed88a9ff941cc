"""The feed: one event a second to every open page, as server-sent events.

Each event is rendered once for all pages. A page that does not read gets no more events until it
reads again. After SLOW_S_MAX its connection is closed. The page then connects again and asks for
the data that it missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingest.admin.dashboard.assets import HEADERS, NO_STORE
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s

CLIENTS_MAX = 64  # a quarter of the port's connections, so that probes and scrapes have enough
UNREAD_BYTES_MAX = 64 * 1024
SLOW_S_MAX = 20.0
RETRY_MS = 1_000
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
    b"X-Accel-Buffering: no\r\n" + HEADERS + NO_STORE + b"\r\nretry: %d\n\n" % RETRY_MS
)


class AlreadySent(Answer):
    """An answer of which everything has been written already."""

    def __init__(self, began_s: float) -> None:
        super().__init__(200, b"", close=True)
        self.began_s = began_s

    def rendered(self, connection: bytes = b"", *, with_body: bool = True) -> bytes:
        """Return nothing: it is the last answer, and nothing is missing."""
        return b""


class Feed:
    """All open pages."""

    def __init__(self) -> None:
        self.clients = 0
        self._next: asyncio.Future[bytes] | None = None
        self._closed = False

    def send(self, event: bytes) -> None:
        """Send an event (its data, one line) to every open page."""
        self._wake(_data(event))

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._wake(b"")

    def _wake(self, event: bytes) -> None:
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_result(event)

    async def stream(self, request: Request, first: bytes, own: Callable[[], bytes]) -> Answer:
        """Send events to a page until it is gone or the feed is closed. Raises Refused.

        `first` is an event that the page gets at once, if it is not empty. `own` returns whole
        events for this page alone, or nothing; they are sent after each common event.
        """
        if self.clients >= CLIENTS_MAX:
            raise Refused("busy", f"{CLIENTS_MAX} pages are open already", retry_after_s=10)
        began_s = monotonic_s()
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(_HEAD + (_data(first) if first else b""))
        self.clients += 1
        try:
            read_s = monotonic_s()
            while not self._closed:
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                event = await asyncio.shield(self._next)
                if transport.is_closing():
                    break
                if transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
                    if monotonic_s() - read_s > SLOW_S_MAX:
                        transport.abort()
                        break
                    continue
                read_s = monotonic_s()
                transport.write(event + own())
        finally:
            self.clients -= 1
        return AlreadySent(began_s)


def _data(event: bytes) -> bytes:
    return b"data: " + event + b"\n\n"
