"""Receives the body of one post; bounds the bytes and the time of each body and of all together.

Promises: the first FREE_BYTES of a body are received at once. A larger body must reserve its whole
size out of `all_bytes_max`, first come, first served, and stays unread on its socket until then. It
then has `body_s_max` to arrive. A body that gets no reservation within `body_s_max` is refused with
503, since the lack is ours. So slow large bodies delay other large bodies, but never small ones,
and use no more memory than allowed.
A body counts until the caller has finished with it. One that arrived whole counts from then on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.streams import StreamReader

from ingest.http.request import Request
from ingest.model.errors import Refused

FREE_BYTES = 16 * 1024
SOCKET_BYTES = 256 * 1024  # one read of a socket may bring this much before it can be paused


class Bodies:
    """All bodies that are being received at one port; together they have `all_bytes_max`."""

    def __init__(self, *, body_bytes_max: int, body_s_max: float, all_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._body_s_max = body_s_max
        self._bytes_max = all_bytes_max
        self._bytes_taken = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def check(self, size_bytes: int) -> None:
        """Raise Refused("body_too_large") if a body of this size is not allowed."""
        if size_bytes > self._body_bytes_max:
            raise Refused(
                "body_too_large",
                f"a body may have at most {self._body_bytes_max} bytes",
                body_bytes_max=self._body_bytes_max,
            )

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytes]:
        """Give the whole body once it has arrived; it counts until the context ends.

        Raises Refused (`body_too_large`, `body_timeout`, `buffer_full`, `bad_request`) or
        ConnectionError if the client is gone.
        """
        declared = request.content_length
        self.check(declared or 0)
        content = request.content
        start = b""
        if content.is_eof():
            start = content.read_nowait()
        elif declared is None or declared <= FREE_BYTES:
            _send_continue(request)
            start = await self._read(content, FREE_BYTES)
        counted_bytes = len(start)
        self.check(counted_bytes)
        if content.at_eof():
            if not self.count_in(counted_bytes):
                raise _too_many("too many bodies at once")
        else:
            counted_bytes = declared or self._body_bytes_max
            await self._wait_for_memory(request, counted_bytes)
        try:
            if not start:
                _send_continue(request)
            if not content.at_eof():
                start += await self._read(content, self._body_bytes_max - len(start))
                self.check(len(start))
            yield start
        finally:
            self.count_out(counted_bytes)

    def count_in(self, size_bytes: int) -> bool:
        """Count a body as in memory. Returns False if there is no room for it."""
        if self._bytes_taken + size_bytes > self._bytes_max:
            return False
        self._bytes_taken += size_bytes
        return True

    def count_out(self, size_bytes: int) -> None:
        """Count a body no longer; the next bodies in the queue may now be received."""
        self._bytes_taken -= size_bytes
        self._grant()

    async def _read(self, content: StreamReader, stop_bytes: int) -> bytes:
        """Read to the end, or until more than `stop_bytes` have arrived."""
        parts: list[bytes] = []
        size_bytes = 0
        try:
            async with asyncio.timeout(self._body_s_max):
                while size_bytes <= stop_bytes and not content.at_eof():
                    part = await content.readany()
                    size_bytes += len(part)
                    parts.append(part)
        except TimeoutError:
            raise Refused(
                "body_timeout", f"the body did not arrive within {self._body_s_max:g} s"
            ) from None
        except web.RequestPayloadError:
            raise Refused("bad_request", "the body is not complete") from None
        except RuntimeError as error:  # aiohttp raises it if the transport is closed already
            raise ConnectionResetError("the client is gone") from error
        return b"".join(parts)

    async def _wait_for_memory(self, request: Request, size_bytes: int) -> None:
        if not self._queue and self.count_in(size_bytes):
            return
        if len(self._queue) >= max(1, self._bytes_max // SOCKET_BYTES):
            raise _too_many("too many large bodies at once")
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (size_bytes, granted)
        self._queue.append(place)
        if request.transport is not None:
            request.transport.pause_reading()
        try:
            async with asyncio.timeout(self._body_s_max):
                await granted
        except (TimeoutError, asyncio.CancelledError) as gave_up:
            self._leave(place)
            if isinstance(gave_up, TimeoutError):
                raise _too_many("too many large bodies at once") from None
            raise
        finally:
            if request.transport is not None and not request.transport.is_closing():
                request.transport.resume_reading()

    def _leave(self, place: tuple[int, asyncio.Future[None]]) -> None:
        if place in self._queue:
            self._queue.remove(place)
            self._grant()
        else:  # granted in the same moment
            self.count_out(place[0])

    def _grant(self) -> None:
        while self._queue and self.count_in(self._queue[0][0]):
            _, granted = self._queue.popleft()
            if not granted.done():
                granted.set_result(None)


def _too_many(detail: str) -> Refused:
    return Refused("buffer_full", detail, retry_after_s=2)


def _send_continue(request: Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
