"""One connection: aiohttp's protocol, with a short way for requests that arrive whole.

For each request aiohttp wakes a task, makes a request and a writer, and returns through all of
them. With a thousand connections this is 40 us of a post's 55, most of it for memory that is no
longer in the CPU's cache. On the short way, a request that arrived whole waits in the round queue
as bytes, and is answered in one step when its round comes. That is after all sockets have been
read. If a client is answered between two reads, it sends its next request at once; then each
reading of the sockets finds fewer requests (33 us a post instead of 28).

All other requests go aiohttp's way: bodies that have not arrived or are compressed, HTTP/1.0, the
last request of a connection, clients that do not read their answers.
Promises: one request at a time, in order. A wait for a body that is broken ends with an error. The
owner is called when half a head has come and no request is in work.

The private names of aiohttp that this file uses are listed in fence.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from aiohttp import http_parser, web
from aiohttp.http_exceptions import LineTooLong

from ingest.http.request import WholeRequest, is_whole
from ingest.http.response import Answer

# The body of a refused request is read and dropped for this long. If the connection were closed at
# once, many clients would see an error of the connection and not the answer.
LINGER_S = 5.0
HEADERS_MAX = 64  # of a request
LINE_BYTES_MAX = 8 * 1024  # of its target, and of each header
HALF_HEAD_BYTES_MAX = 32 * 1024  # of a head whose end has not come, between two requests
READ_BYTES = 64 * 1024  # of a body that the handler has not read; then the socket is paused

# Where Python can, a new task runs at once until it has to wait. Most answers never wait.
if sys.version_info >= (3, 12):
    _start_task: Callable[..., asyncio.Task[Answer]] = partial(asyncio.Task, eager_start=True)
else:
    _start_task = asyncio.Task


class RoundQueue(Protocol):
    """Decides in which round of the event loop a whole request begins."""

    def enqueue(self, body_bytes: int, begin: Callable[[], None]) -> bool:
        """Call `begin` in a later round. Returns False if too much waits: `begin` is not called."""


class Owner(Protocol):
    """The port that a connection belongs to."""

    keepalive_s_max: float
    round_queue: RoundQueue | None  # None: every request goes aiohttp's way

    def malformed(self, code: str) -> Answer:
        """Return (and count) the answer to bytes that are not valid HTTP."""

    def head_begun(self, handler: web.RequestHandler) -> None:
        """Called when bytes came that do not complete a head."""

    def work_begun(self, handler: web.RequestHandler) -> None:
        """Called when a whole request has arrived."""

    def work_ended(self, handler: web.RequestHandler) -> None:
        """Called when a request is answered, or its client is gone."""

    async def answer(self, request: WholeRequest) -> Answer:
        """Answer a request. Raises ConnectionError if its client is gone."""

    def suspended(self, task: asyncio.Task[Answer]) -> None:
        """Called when an answer has to wait for something."""


class Connection(web.RequestHandler):
    """The protocol of one connection."""

    __slots__ = ("_busy", "_half_bytes", "_owner", "_peer")

    def __init__(self, owner: Owner, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None switches it off in aiohttp
            auto_decompress=False,
            keepalive_timeout=2 * owner.keepalive_s_max,  # never used, see _process_keepalive
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            max_headers=HEADERS_MAX,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
        )
        self._owner = owner
        # aiohttp's parser stops after this many requests, and one request earlier if a body came in
        # parts. The socket must be paused in that case too: only its resuming starts the parser
        # again.
        self._max_msg_queue_size -= 1
        self._half_bytes = 0  # of a head that has begun
        self._busy = False  # the first of _messages waits for its round, or one is being answered
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the client's address."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        self._peer = address[0] if isinstance(address, tuple) else ""

    def data_received(self, data: bytes) -> None:
        """Parse; enqueue a request that is whole; count the bytes of half a head."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            super().data_received(data)
        else:
            self._waiter = None  # otherwise aiohttp would wake its task
            try:
                super().data_received(data)
            finally:
                self._waiter = waiter
            if not (self._messages or self._busy):
                self._half_head(len(data))
        if self._messages:
            self._half_bytes = 0
            if not isinstance(self._messages[-1][0], http_parser.RawRequestMessage):
                self._break_off_bodies()
            self._go_on()
            if len(self._messages) > 1:
                self._bound_what_waits()

    def _half_head(self, more_bytes: int) -> None:
        """Count bytes of a head whose end has not come. If they are too many, close."""
        self._half_bytes += more_bytes
        if self._half_bytes <= HALF_HEAD_BYTES_MAX:
            self._owner.head_begun(self)
        elif self.transport is not None and not self.transport.is_closing():
            self.transport.write(self._owner.malformed("headers_too_large").rendered())
            self.force_close()  # closes once the answer is sent; else the owner closes it later

    def _bound_what_waits(self) -> None:
        """Pause reading while the requests that wait on this connection are too many bytes.

        aiohttp bounds only their number: that may be 32 bodies of 128 KiB, or 32 heads of a
        megabyte. Its task resumes reading when it takes them.
        """
        if not self._buffer_paused:
            waiting_bytes = sum(
                content.total_bytes + _head_bytes(message) for message, content in self._messages
            )
            if waiting_bytes > READ_BYTES:
                self._pause_reading_for_buffer()

    # The short way

    def _go_on(self) -> None:
        """Enqueue the next request, or wake aiohttp's task, which waits for a request."""
        waiter = self._waiter
        if not self._messages or self._busy or waiter is None or waiter.done():
            return
        if self.transport is None or self.transport.is_closing():
            return  # aiohttp's task, if woken now, would fail because the connection is gone
        message, content = self._messages[0]
        round_queue = self._owner.round_queue
        if round_queue is not None and is_whole(message, content) and self._is_free():
            self._owner.work_begun(self)
            self._busy = True
            if round_queue.enqueue(content.total_bytes, self._begin_in_round):
                return
            self._busy = False  # too much waits: aiohttp's way refuses the request
        waiter.set_result(None)

    def _is_free(self) -> bool:
        """Whether the connection's state allows the short way."""
        return not (
            self.transport is None
            or self.transport.get_write_buffer_size()  # its client does not read
            or self._buffer_paused
            or self._upgraded
            or self._payload_parser is not None
        )

    def _begin_in_round(self) -> None:
        """Start the first request, even if its client is gone: the post is whole, and is kept."""
        message, content = self._messages.popleft()
        if self._parser is not None:  # None: the connection is gone
            self._parser.message_consumed()
        request = WholeRequest(cast(http_parser.RawRequestMessage, message), content, self._peer)
        task = _start_task(self._owner.answer(request), loop=self._loop)
        if task.done():
            self._end(task)
        else:
            self._owner.suspended(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Answer]) -> None:
        """Write the answer, if the client is still connected; go on with the next request."""
        self._busy = False
        self._owner.work_ended(self)
        transport = self.transport
        try:
            answer = task.result()
        except (ConnectionError, asyncio.CancelledError):
            self.force_close()
        except Exception as error:
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
        else:
            if transport is not None and not transport.is_closing():
                transport.write(answer.rendered())
                if not answer.keep_alive or self._close:
                    self.force_close()  # closes once the answer is sent, as above
        self._go_on()

    def _process_keepalive(self) -> None:
        """Do nothing. The owner's sweep replaces aiohttp's limit, which ignores the short way."""
        self._keepalive_handle = None

    # aiohttp's way

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume reading if it was paused.

        aiohttp calls this after every body, paused or not. Without this check it would parse and
        wake the socket for nothing: 1.1 us of a small post's 18.5, measured.
        """
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _break_off_bodies(self) -> None:
        """End all waits for a body with an error: the parser failed, so its bytes never come."""
        broken = web.RequestPayloadError("the body breaks off")
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(broken)
        for _, payload in self._messages:
            if not payload.is_eof():
                payload.set_exception(broken)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that never reached the handler.

        The parser's own text is not sent, since it repeats bytes of the request.
        """
        if isinstance(exc, ConnectionError):
            code = "bad_request"  # the client left before its body was here; nobody reads this
        elif status >= 500:
            code = "internal"
            self.log_exception("Error handling request", exc_info=exc)
        elif isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            code = "headers_too_large"
        else:
            code = "bad_request"
        return cast(web.StreamResponse, self._owner.malformed(code))


def _head_bytes(message: Any) -> int:
    """Return the bytes of a request's headers: the part of the head that may be large."""
    headers = getattr(message, "raw_headers", ())  # an error in place of a request has none
    return sum(len(name) + len(value) for name, value in headers)
