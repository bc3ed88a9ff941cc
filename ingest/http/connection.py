"""One connection: aiohttp's protocol, with a short way for the requests that arrive whole.

aiohttp wakes a task for each request, makes a request and a writer, and goes back through all of
it; with a thousand connections that is 40 us of a post's 55, most of it memory that has left the
cache meanwhile. What arrives whole waits in the door's line as bytes instead, and is answered in
one step when its turn comes: after all sockets have been read, since a client that is answered
between two reads asks again at once, and each look at the sockets finds less (33 us a post, or 28).
All else goes aiohttp's way: bodies still on their way or compressed, HTTP/1.0, the last request of
a connection, clients that do not read their answers.
Promises: one request at a time, in order; the owner is told of a broken body, and of half a head
where nothing else is under way.

The private names of aiohttp that it looks at stand in fence.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from aiohttp import http_parser, web
from aiohttp.http_exceptions import LineTooLong

from ingest.http.request import WholeRequest, is_whole
from ingest.http.response import Answer

LINGER_S = 5.0  # a refused body is read and dropped for so long, or the client never sees why
HEADERS_MAX = 64  # of a request
LINE_BYTES_MAX = 8 * 1024  # of its target, and of each header
HALF_HEAD_BYTES_MAX = 32 * 1024  # of a head that has not come to its end, between two requests
READ_BYTES = 64 * 1024  # of a body, unread by the handler, before the socket is paused


class RoundQueue(Protocol):
    """Who says when a whole request is begun."""

    def enqueue(self, body_bytes: int, begin: Callable[[], bool]) -> bool:
        """Have `begin` called in a later turn. False: too much waits, it will not be."""


class Owner(Protocol):
    """The port that a connection belongs to."""

    keepalive_s_max: float
    round_queue: RoundQueue | None  # None: every request goes aiohttp's way

    def malformed(self, code: str) -> Answer:
        """Render (and count) the answer to what is not HTTP."""

    def head_begun(self, handler: web.RequestHandler) -> None:
        """Bytes came that do not complete a head."""

    def work_begun(self, handler: web.RequestHandler) -> None:
        """A whole request is here."""

    def work_ended(self, handler: web.RequestHandler) -> None:
        """It is answered, or nobody is there to read an answer."""

    async def answer(self, request: WholeRequest) -> Answer:
        """Answer it. Raises ConnectionError if its client is gone."""

    def suspended(self, task: asyncio.Task[Answer]) -> None:
        """An answer takes its time."""


class Connection(web.RequestHandler):
    """The protocol of one connection."""

    __slots__ = ("_busy", "_half_bytes", "_owner")

    def __init__(self, owner: Owner, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp switches it off
            auto_decompress=False,
            keepalive_timeout=2 * owner.keepalive_s_max,  # never used, see _process_keepalive
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            max_headers=HEADERS_MAX,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
        )
        self._owner = owner
        # aiohttp's parser stops after so many requests, and one earlier once a body came in pieces;
        # if the socket was not paused then too, nobody would ask it to go on.
        self._max_msg_queue_size -= 1
        self._half_bytes = 0  # of a head that has begun
        self._busy = False  # the first of _messages waits for its turn, or one is being answered

    def data_received(self, data: bytes) -> None:
        """Parse; begin what is whole; note whether the connection now holds half a head."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            super().data_received(data)
        else:
            self._waiter = None  # or aiohttp would wake its task
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
        """Bytes of a head came, and not its end: there must not be too many of them."""
        self._half_bytes += more_bytes
        if self._half_bytes <= HALF_HEAD_BYTES_MAX:
            self._owner.head_begun(self)
        elif self.transport is not None and not self.transport.is_closing():
            self.transport.write(self._owner.malformed("headers_too_large").rendered())
            self.force_close()  # once that is sent, or the owner finds it late

    def _bound_what_waits(self) -> None:
        """Read no more while the requests in line on this connection are many bytes.

        aiohttp bounds their number: 32 bodies of 128 KiB, 32 heads of a megabyte. Its task goes on
        reading as it takes them.
        """
        if not self._buffer_paused:
            waiting_bytes = sum(
                content.total_bytes + _head_bytes(message) for message, content in self._messages
            )
            if waiting_bytes > READ_BYTES:
                self._pause_reading_for_buffer()

    # The short way

    def _go_on(self) -> None:
        """Have the next request begun in its turn, or wake aiohttp's task, which waits for one."""
        if not self._messages or self._busy:
            return
        if self.transport is None or self.transport.is_closing():
            return  # aiohttp's task, woken now, would find the connection gone and fail
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        message, content = self._messages[0]
        round_queue = self._owner.round_queue
        if round_queue is not None and is_whole(message, content) and self._is_free():
            self._owner.work_begun(self)
            self._busy = True
            if round_queue.enqueue(content.total_bytes, self._begin_in_round):
                return
            self._busy = False  # too much waits: that way it is refused
        waiter.set_result(None)

    def _is_free(self) -> bool:
        """Whether the connection is as plain as its next request."""
        return not (
            self.transport is None
            or self.transport.get_write_buffer_size()  # its client does not read
            or self._buffer_paused
            or self._upgraded
            or self._payload_parser is not None
        )

    def _begin_in_round(self) -> bool:
        self._begin()  # even if its client has left: the post is whole
        self._go_on()
        return True

    def _begin(self) -> None:
        message, content = self._messages.popleft()
        if self._parser is not None:  # else the connection is gone
            self._parser.message_consumed()
        request = WholeRequest(cast(http_parser.RawRequestMessage, message), content)
        task = _started(self._owner.answer(request), self._loop)
        if task.done():
            self._end(task)
        else:
            self._owner.suspended(task)
            task.add_done_callback(self._end_later)

    def _end_later(self, task: asyncio.Task[Answer]) -> None:
        self._end(task)
        self._go_on()

    def _end(self, task: asyncio.Task[Answer]) -> None:
        """Write the answer, if somebody is there to read it."""
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
                    self.force_close()  # once that is sent, or the owner finds it late

    def _process_keepalive(self) -> None:
        """aiohttp's own limit knows nothing of the short way; the owner's sweep comes instead."""
        self._keepalive_handle = None

    # aiohttp's way

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on where reading was paused. aiohttp asks after every body, paused or not, and would
        parse and wake the socket for nothing: 1.1 us of a small post's 18.5, measured.
        """
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _break_off_bodies(self) -> None:
        """The parser gave up (a bad chunk): who waits for the body must not wait for ever."""
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
        """Answer what never reached the handler; the parser's text repeats input, so it is cut."""
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
    """Return some of the bytes of a request's head: those that a client may have many of."""
    headers = getattr(message, "raw_headers", ())  # none: it is no request, but an error
    return sum(len(name) + len(value) for name, value in headers)


if sys.version_info >= (3, 12):

    def _started(
        work: Coroutine[Any, Any, Answer], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[Answer]:
        """Run it until it has to wait; most never do."""
        return asyncio.Task(work, loop=loop, eager_start=True)

else:

    def _started(
        work: Coroutine[Any, Any, Answer], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[Answer]:
        return loop.create_task(work)
