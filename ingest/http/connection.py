"""One connection: from bytes to requests, one at a time, and from answers to bytes.

aiohttp's parser reads the requests; all other parts of the protocol are here. A request that has
arrived whole waits in the round queue and is answered by a plain call when its round comes, after
all sockets have been read. If a client is answered between two reads, each reading of the sockets
finds fewer requests. Only an answer that has to wait for something gets a task.

A head that has come before, byte for byte, does not go through the parser again, if its body is
here too: that is a third of a small post's CPU (see DESIGN.md). While the parser has a part of a
request, all bytes go to the parser.
The parser is given one request at a time, and what stands behind it is kept here. So neither bytes
that are not HTTP nor a request with an Upgrade header (which is ignored) undo what stands before or
behind them.
Promises: requests are answered in order, each one, also for a client that has closed its sending
side. A wait for a body that is broken ends with an error. At most READ_BYTES and what one read of
the socket brings wait behind a request. The owner is called when half a head has come and no
request is in work.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage

from ingest.http.heads import HEAD_END, KnownHeads, code_of, parser_of
from ingest.http.owner import Owner
from ingest.http.request import Client, Head, Request, client_at
from ingest.http.response import Answer
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger

# The bytes of a refused request are read and dropped for this long. If the connection were closed
# at once, many clients would see an error of the connection and not the answer.
LINGER_S = 5.0
HALF_HEAD_BYTES_MAX = 32 * 1024  # of a head whose end has not come, between two requests
READ_BYTES = 64 * 1024  # of what is not read yet; then the socket is paused
HALF_END = len(HEAD_END) - 1  # may be at the end of some bytes
# The parser gets so much of a chunked body at once, and gets parts for so long in one round of the
# event loop: 256 KiB of the smallest chunks take 30 ms.
PART_BYTES_MAX = 8 * 1024
PARSE_S_MAX = 0.001
# A chunked body with more empty lines is not looked through for its end, as 256 KiB of empty lines
# would take 0.4 s. It is the last one of its connection: what stands behind it is lost.
LINES_MAX = 500
TRIES = 8  # heads of a connection that are not known, in a row; then it is not looked for them
NOBODY = Client("", "")
CLOSE = b"Connection: close\r\n"
STAYS = b"Connection: keep-alive\r\n"

_log = get_logger("connection")

# Reasons to read nothing from the socket, as bits.
BEHIND, BODY, MEMORY, UNREAD, LATER = 1, 2, 4, 8, 16

# Where Python can, a new task runs at once until it has to wait. Most answers never wait.
if sys.version_info >= (3, 12):
    _start_task: Callable[..., asyncio.Task[Answer]] = partial(asyncio.Task, eager_start=True)
else:
    _start_task = asyncio.Task


class Connection(asyncio.Protocol):
    """The protocol of one connection. It is also the `sender` of its requests."""

    __slots__ = (
        *("_at", "_behind", "_client", "_content", "_half", "_half_bytes", "_head", "_later"),
        *("_left", "_lines", "_linger", "_no_more", "_over", "_owner", "_parser", "_paused"),
        *("_request", "_text", "_tries", "transport"),
    )

    def __init__(self, owner: Owner) -> None:
        self.transport: asyncio.Transport | None = None
        self._owner = owner
        self._client = NOBODY
        self._parser: HttpRequestParser | None = parser_of(self, owner.loop, READ_BYTES)
        self._request: Request | None = None  # in work
        self._behind = b""  # what stands behind it begins at _at
        self._at = 0
        self._half = b""  # the last bytes that the parser got, of a head or of a chunked body
        self._half_bytes = 0  # of a head whose end has not come
        self._head: Head | None = None  # of the request that the parser is in
        self._text = b""  # that head, if it came in one piece
        self._content: StreamReader | None = None  # the body of that request
        self._left = 0  # bytes of it that have not come, if its size is known
        self._lines = 0  # empty lines in it, if it is chunked
        self._later = b""  # more bytes of it, or of a head, for the parser in the next round
        self._paused = 0
        self._no_more = False  # the client has closed its sending side
        self._over = False  # no further request is read
        self._linger: asyncio.TimerHandle | None = None
        self._tries = TRIES if owner.known_heads is not None else 0

    @property
    def connected(self) -> bool:
        """Whether the client is there."""
        return self.transport is not None

    @property
    def is_in_work(self) -> bool:
        """Whether a request is being answered."""
        return self._request is not None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who it is."""
        self.transport = cast(asyncio.Transport, transport)
        self._client = client_at(transport)
        self._owner.connection_made(self, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for a body. A request that is whole is answered all the same, to nobody."""
        self.transport = None
        self._over = True
        self._behind, self._at = b"", 0
        if self._linger is not None:
            self._linger.cancel()
        self._break_body()
        # All of these hold this connection: only the garbage collector would free them and it.
        self._parser = self._content = self._head = self._linger = None
        self._owner.connection_lost(self)

    def eof_received(self) -> bool:
        """Note that the client sends no more; what has come whole is answered before the end."""
        self._no_more = True
        return self._content is None and (self._request is not None or bool(self._behind))

    def pause_writing(self) -> None:
        """Begin no further request: the client does not read."""
        self._pause(UNREAD)

    def resume_writing(self) -> None:
        """Go on with the next request."""
        self._resume(UNREAD)
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Begin a request; or keep the bytes until the one in work is answered."""
        if self._over:
            return
        if self._content is not None:
            self._parse(data, 0)
        elif self._request is None and not self._behind:
            self._read(data, 0)
        else:
            self._behind = self._behind[self._at :] + data
            self._at = 0
            self._bound()

    # From bytes to requests

    def _read(self, data: bytes, at: int) -> None:
        """Begin the first request in `data[at:]`. No request is in work."""
        if self._tries and not self._half:
            known = self._owner.known_heads
            assert known is not None, "_tries is 0"
            end = data.find(HEAD_END, at) + len(HEAD_END)
            head = known.find(data[at:end])
            if head is None:
                self._tries -= 1
            elif end + head.body_bytes <= len(data):
                self._tries = TRIES
                self._keep(data, end + head.body_bytes)
                body = data[end : end + head.body_bytes]
                self._begin(Request(head, self._client, self, body))
                return
        self._parse(data, at)

    def _parse(self, data: bytes, at: int) -> None:
        """Give the parser `data[at:]` up to the end of a request; begin that request."""
        began_at, until_s, parser = at, 0.0, self._parser
        assert parser is not None, "the client is there"
        while at < len(data):
            part = data[at : self._end_of_part(data, at)]
            at += len(part)
            try:
                messages, is_upgraded, _ = parser.feed_data(part)
            except Exception as fault:
                if self._content is None or not self._content.is_eof():
                    self._malformed(fault)
                    return
                messages, is_upgraded = [], False  # it is about what stands behind: LINES_MAX
            if is_upgraded:  # the parser believes so; we go on in HTTP
                parser.set_upgraded(False)
            if messages and self._content is None:
                self._head_came(*messages[0], b"" if self._half else part)
            else:
                self._left -= len(part)
                self._half = (self._half + part)[-HALF_END:]
            if self._content is not None and self._content.is_eof():
                self._keep(data, at)
                self._completed(self._content, part)
                return
            if self._half and at < len(data):
                now_s = monotonic_s()
                until_s = until_s or now_s + PARSE_S_MAX
                if now_s > until_s:
                    self._put_off(data[at:])
                    break
        if self._content is None:
            self._half_head(at - began_at)
            return
        if self._request is None:
            assert self._head is not None, "it came with the content"
            self._begin(Request(self._head, self._client, self, None, self._content))
        if self._no_more and not self._later:
            self._break_body()

    def _end_of_part(self, data: bytes, at: int) -> int:
        """Return where the request may end at the earliest: the parser must not get more."""
        if self._content is not None and self._left > 0:
            return at + self._left
        half, part_end = self._half, len(data)
        if half or self._content is not None:
            part_end = min(part_end, at + PART_BYTES_MAX)
        if self._lines > LINES_MAX:
            return part_end
        end = at - len(half) + (half + data[at : at + HALF_END]).find(HEAD_END)
        if end < at - len(half):  # it does not begin in what came before
            end = data.find(HEAD_END, at, part_end)
            if end < 0:
                return part_end
        if self._head is not None:  # it is chunked
            self._lines += 1
            if self._lines > LINES_MAX:
                self._head.keeps_open = False
        return end + len(HEAD_END)  # of a head, or of a chunked body

    def _put_off(self, data: bytes) -> None:
        """Go on with these bytes in the next round."""
        self._later = data
        self._pause(LATER)
        self._owner.loop.call_soon(self._go_on_parsing)

    def _go_on_parsing(self) -> None:
        data, self._later = self._later, b""
        self._resume(LATER)
        self.data_received(data)

    def _head_came(self, message: RawRequestMessage, content: StreamReader, text: bytes) -> None:
        head = self._head = Head(message, has_body=not content.is_eof())
        self._text = text
        self._content = content
        self._left = head.body_bytes
        self._lines = 0
        self._half = b""
        self._half_bytes = 0

    def _completed(self, content: StreamReader, last: bytes) -> None:
        """A request is whole; `last` are the last bytes of it."""
        head, text = self._head, self._text
        self._head = self._content = None
        self._half = self._text = b""
        if head is not None and head.body_bytes < 0:
            # The parser would take the last trailer for a header of the next request.
            self._parser = parser_of(self, self._owner.loop, READ_BYTES)
        if self._request is not None:  # it reads its body from `content`
            self._owner.body_ended(self)
            return
        assert head is not None, "it came with the content"
        body = last if len(last) == head.body_bytes else content.read_nowait()
        if self._tries and text:
            cast(KnownHeads, self._owner.known_heads).parsed(text, head)
        self._begin(Request(head, self._client, self, body))

    def _half_head(self, more_bytes: int) -> None:
        """Count bytes of a head whose end has not come. If they are too many, refuse."""
        self._half_bytes += more_bytes
        if self._half_bytes > HALF_HEAD_BYTES_MAX:
            self._refuse("headers_too_large")
        elif self._no_more and not self._later:
            self.close()
        else:
            self._owner.head_begun(self)

    def _malformed(self, fault: Exception) -> None:
        """The parser has met what is not HTTP."""
        if self._request is None:
            self._head = self._content = None
            self._refuse(code_of(fault))
        else:  # its page refuses it
            self._over = True
            self._break_body()

    def _refuse(self, code: str) -> None:
        self._over = True
        if self.transport is not None:
            self.transport.write(self._owner.malformed(code).rendered(CLOSE))
            self._end(self.transport)

    def _break_body(self) -> None:
        content = self._content
        if content is not None and not content.is_eof() and content.exception() is None:
            broken = web.RequestPayloadError("the body breaks off")
            content.set_exception(broken)
            # A reader that was woken in this round looks for bytes only, and waits again.
            self._owner.loop.call_soon(content.set_exception, broken)

    def _keep(self, data: bytes, at: int) -> None:
        """Keep what stands behind a request."""
        if at < len(data):
            self._behind, self._at = data, at
            self._bound()
        elif self._behind:
            self._behind, self._at = b"", 0

    def _bound(self) -> None:
        if len(self._behind) - self._at > READ_BYTES:
            self._pause(BEHIND)

    # From a request to its answer

    def _begin(self, request: Request) -> None:
        """Line a request up, or one whose body is still arriving."""
        self._request = request
        owner = self._owner
        if request.body is None:
            owner.body_awaited(self)
        else:
            owner.work_begun(self)
            queue = owner.round_queue
            if (
                queue is not None
                and request.head.is_plain
                and queue.enqueue(len(request.body), self._begin_in_round)
            ):
                return
        owner.loop.call_soon(self._answer)

    def _begin_in_round(self) -> None:
        """Answer the request, even if its client is gone: the post is whole, and is kept."""
        request, queue = self._request, self._owner.round_queue
        assert request is not None, "it is in work until it is answered"
        assert request.body is not None, "it was enqueued because it is here"
        assert queue is not None, "it has called this"
        queue.begun(len(request.body))
        request.in_round = True
        self._answer()

    def _answer(self) -> None:
        owner = self._owner
        assert self._request is not None, "it is in work until it is answered"
        try:
            answer = owner.answer(self._request)
        except Exception as error:
            self._failed(error)
            return
        if isinstance(answer, Answer):
            self.reply(answer)
        elif answer is not None:
            task = _start_task(answer, loop=owner.loop)
            if task.done():
                self._has_answer(task)
            else:
                owner.suspended(task)
                task.add_done_callback(self._has_answer)

    def _has_answer(self, task: asyncio.Task[Answer]) -> None:
        try:
            answer = task.result()
        except (Exception, asyncio.CancelledError) as error:
            self._failed(error)
        else:
            self.reply(answer)

    def _failed(self, error: BaseException) -> None:
        """There is no answer: the client is gone, or the port is closing, or we have a fault."""
        if not isinstance(error, ConnectionError | asyncio.CancelledError):
            _log.error("request_failed", exc_info=error)
        self._request = None
        self._owner.work_ended(self)
        self.close()

    def reply(self, answer: Answer) -> None:
        """Write the answer of the request in work; go on with the next one."""
        request, transport = self._request, self.transport
        assert request is not None, "a request is answered once"
        self._request = None
        owner = self._owner
        owner.work_ended(self)
        if transport is None or transport.is_closing():
            return
        head = request.head
        is_last = (
            answer.closes
            or not head.keeps_open
            or self._content is not None
            or self._over
            or owner.is_closing
            or (self._no_more and not self._behind)
        )
        if not is_last and head.version is HttpVersion11 and head.method != "HEAD":
            transport.write(answer.ready())
        else:
            how = CLOSE if is_last else b"" if head.version == HttpVersion11 else STAYS
            transport.write(answer.rendered(how, with_body=head.method != "HEAD"))
        if is_last:
            self._end(transport)
        elif self._behind:
            self._go_on()

    def _go_on(self) -> None:
        """Begin the next request, unless the client does not read its answers."""
        if self._request is not None or self._over or self._paused & UNREAD:
            return
        data, at = self._behind, self._at
        self._behind, self._at = b"", 0
        if data:
            self._read(data, at)
        if len(self._behind) - self._at <= READ_BYTES:
            self._resume(BEHIND)

    def _end(self, transport: asyncio.Transport) -> None:
        """Close once the answer is sent; before that, read and drop what still comes."""
        is_read = self._content is None and not self._over
        self._over = True
        self._behind, self._at = b"", 0
        if is_read or self._no_more:
            transport.close()
            return
        if transport.can_write_eof():
            transport.write_eof()
        self._resume(self._paused)
        self._linger = self._owner.loop.call_later(LINGER_S, transport.close)

    def close(self) -> None:
        """Close the connection, once what was written is sent."""
        self._over = True
        if self.transport is not None:
            self.transport.close()

    # How fast the client may send

    def _pause(self, why: int) -> None:
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused |= why

    def _resume(self, why: int) -> None:
        if not self._paused & why:
            return
        self._paused &= ~why
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_reading(self) -> None:
        """Called by the body: its reader is slower than its client."""
        self._pause(BODY)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called by the body: its reader has taken some bytes, or it is complete."""
        self._resume(BODY)

    def hold_body(self) -> None:
        """Read nothing from the socket until `let_body_come`."""
        self._pause(MEMORY)

    def let_body_come(self) -> None:
        """Go on reading."""
        self._resume(MEMORY)
