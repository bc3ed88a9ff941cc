"""One connection: aiohttp's protocol, with a short way for requests that arrive whole.

For each request aiohttp wakes a task, makes a request and a writer, and returns through all of
them. With a thousand connections this is 40 us of a post's 55, most of it for memory that is no
longer in the CPU's cache. On the short way, a request that arrived whole waits in the round queue
as bytes, and is answered in one step when its round comes, after all sockets have been read. If a
client is answered between two reads, each reading of the sockets finds fewer requests.

All other requests go aiohttp's way: bodies that have not arrived or are compressed, HTTP/1.0, the
last request of a connection, clients that do not read their answers.
Promises: one request at a time, in order, and an answer for each: also before bytes that are not
HTTP, behind a request with an Upgrade header (which is ignored), and for a client that has closed
its sending side. A wait for a body that is broken ends with an error. The owner is called when half
a head has come and no request is in work.

The private names of aiohttp that this file uses are listed in fence.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from aiohttp import http_parser, web
from aiohttp.streams import StreamReader

from ingest.http.heads import HEAD_END, HTTP_1, code_of, end_of_request, head_bytes, parser_of
from ingest.http.owner import Owner
from ingest.http.request import Client, WholeRequest, client_at, is_whole
from ingest.http.response import Answer

# The body of a refused request is read and dropped for this long. If the connection were closed at
# once, many clients would see an error of the connection and not the answer.
LINGER_S = 5.0
HALF_HEAD_BYTES_MAX = 32 * 1024  # of a head whose end has not come, between two requests
READ_BYTES = 64 * 1024  # of a body that the handler has not read; then the socket is paused
HALF_END = len(HEAD_END) - 1  # may be at the end of some bytes

# Where Python can, a new task runs at once until it has to wait. Most answers never wait.
if sys.version_info >= (3, 12):
    _start_task: Callable[..., asyncio.Task[Answer]] = partial(asyncio.Task, eager_start=True)
else:
    _start_task = asyncio.Task


class Connection(web.RequestHandler):
    """The protocol of one connection."""

    __slots__ = (
        "_apart_bytes",
        "_arriving",
        "_busy",
        "_client",
        "_half",
        "_half_bytes",
        "_no_more",
        "_owner",
        "_rest",
    )

    def __init__(self, owner: Owner, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None switches it off in aiohttp
            keepalive_timeout=2 * owner.keepalive_s_max,  # never used, see _process_keepalive
            lingering_time=LINGER_S,
        )
        self._arriving: StreamReader | None = None  # the newest body, while it is not complete
        self._rest = b""  # bytes behind a request with an Upgrade header, not parsed yet
        self._apart_bytes = 0  # its declared size, -1 if chunked, if it is parsed apart
        self._half = b""  # the last bytes of a head whose end has not come
        self._parser = parser_of(self, loop, READ_BYTES)
        self._owner = owner
        self._no_more = False  # the client has closed its sending side
        self._half_bytes = 0  # of a head that has begun
        self._busy = False  # the first of _messages waits for its round, or one is being answered
        self._client = Client("", "")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who it is."""
        super().connection_made(transport)
        self._client = client_at(transport)

    def data_received(self, data: bytes) -> None:
        """Parse; enqueue a request that is whole; count the bytes of half a head."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._parse(data)
        else:
            self._waiter = None  # otherwise aiohttp would wake its task
            try:
                self._parse(data)
            finally:
                self._waiter = waiter
            if not (self._messages or self._busy):
                self._half_head(len(data))
        if self._messages:
            self._half_bytes = 0
            self._go_on()
            if len(self._messages) > 1:
                self._bound_what_waits()

    def _parse(self, data: bytes) -> None:
        """Parse all requests in some bytes. The parser stops behind each; it then has to go on."""
        lines = data.count(HTTP_1)
        if lines != 1 or self._arriving or self._half or self._apart_bytes or self._rest:
            self._parse_unusual(data, lines)
            return
        before = len(self._messages)
        super().data_received(data)
        if len(self._messages) == before:
            self._half = data[-HALF_END:]
            return
        message, content = self._messages[-1]
        end = data.find(HEAD_END) + len(HEAD_END) + content.total_bytes
        if end == len(data) and content.is_eof() and not getattr(message, "upgrade", True):
            return  # the common case: one request, and nothing behind it
        if self._is_complete(message, content):
            self._parse_on()
            if getattr(message, "upgrade", True):  # the parser has dropped what stands behind it
                self._parse_apart(data[end_of_request(data, message, content) :])
            else:
                self._note_half(data)
        elif self._apart_bytes:
            self._half = data[-HALF_END:]

    def _parse_unusual(self, data: bytes, lines: int) -> None:
        """Parse bytes that belong to several requests, or to one that came before."""
        is_apart = self._half or self._apart_bytes or self._rest
        if is_apart or (lines and b"upgrade" in data.lower()):
            self._parse_apart(self._rest + data)
            return
        before, body = len(self._messages), self._arriving
        had_bytes = 0 if body is None else body.total_bytes
        super().data_received(data)
        if len(self._messages) > before:
            if not self._is_complete(*self._messages[-1]):
                return
        elif body is None:
            self._half = data[-HALF_END:]
            return
        elif not body.is_eof():
            return
        self._parse_on()
        if body is None or body.total_bytes - had_bytes != len(data):
            self._note_half(data)

    def _note_half(self, data: bytes) -> None:
        """Note the last bytes, if they may be of a head whose end has not come."""
        body_bytes = self._messages[-1][1].total_bytes if self._messages else -1
        if self._arriving is None and data.rfind(HEAD_END) + HALF_END + 1 + body_bytes != len(data):
            self._half = data[-HALF_END:]

    def _parse_on(self) -> None:
        """Parse what stands behind a complete request."""
        self._arriving, self._apart_bytes = None, 0
        while self._parser is not None:
            before = len(self._messages)
            self._parser.message_consumed()
            super().data_received(b"")
            if self._upgraded:
                self._upgraded = False
                self._parser.set_upgraded(False)
            if len(self._messages) == before or not self._is_complete(*self._messages[-1]):
                return
            if len(self._messages) >= self._max_msg_queue_size:
                return  # aiohttp calls again when some of these have been taken

    def _is_complete(self, message: Any, content: StreamReader, apart: bool = False) -> bool:
        """Whether others may stand behind the newest request; note its body if it is not here."""
        if not isinstance(message, http_parser.RawRequestMessage):
            self._break_off_bodies()
            return False  # bytes that are not HTTP
        if not content.is_eof():
            self._arriving = content
            if message.upgrade or apart:
                self._apart_bytes = int(message.headers.get("Content-Length", -1))
        return content.is_eof()

    def _parse_apart(self, data: bytes) -> None:
        """Parse the requests one by one: behind an Upgrade header the parser drops all bytes."""
        start, self._rest = 0, b""
        while True:
            part = data[start : self._end_of_part(data, start)]
            start += len(part)
            before, is_sized = len(self._messages), self._apart_bytes > 0
            super().data_received(part)
            has_come = len(self._messages) > before
            if has_come:
                is_end = self._is_complete(*self._messages[-1], apart=True)
            else:
                is_end = self._arriving is not None and self._arriving.is_eof()
            if is_end:
                self._parse_on()
            is_half = not (has_come or is_end or is_sized)
            self._half = (self._half + part)[-HALF_END:] if is_half else b""
            if start >= len(data):
                return
            if len(self._messages) >= self._max_msg_queue_size:
                self._rest = data[start:]
                return

    def _end_of_part(self, data: bytes, start: int) -> int:
        if self._apart_bytes > 0 and self._arriving is not None:
            return start + self._apart_bytes - self._arriving.total_bytes
        half = b"" if start else self._half
        end = (half + data).find(HEAD_END, start)  # of a head, or of a chunked body
        return end - len(half) + len(HEAD_END) if end >= 0 else len(data)

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
                content.total_bytes + head_bytes(message) for message, content in self._messages
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
        request = WholeRequest(cast(http_parser.RawRequestMessage, message), content, self._client)
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
                if self._no_more and not self._messages:
                    answer.keep_alive = False
                transport.write(answer.rendered())
                if not answer.keep_alive or self._close:
                    self.force_close()  # closes once the answer is sent, as above
        self._go_on()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's meaning: stay open
        """Note that the client sends no more; what has come whole is answered before the end."""
        self._no_more = True
        in_work = self._messages or self._busy or self._current_request is not None
        return bool(in_work) and self._arriving is None

    @property
    def is_last(self) -> bool:
        """Whether the request in work is the last one of its client."""
        return self._no_more and not self._messages

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
        code = code_of(exc, status)
        if code == "internal":
            self.log_exception("Error handling request", exc_info=exc)
        return cast(web.StreamResponse, self._owner.malformed(code))
