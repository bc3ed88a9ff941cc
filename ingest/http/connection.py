"""One connection: its requests, one at a time and in order, and their answers.

A request that has arrived whole is answered by a plain call, in a later round, after all sockets
have been read: so each round finds more requests. An answer gets a task only if it has to wait.
If the bytes of a head have come before, and the body is here too, the head is not parsed. Many
small clients write head and body one after the other: so if a page has taken a post with such a
head, a small body may come with the next bytes. While the parser has a part of a request, all bytes
go to the parser (framer.py).
Promises: every request is answered, also if its client has closed its sending side. If a body
breaks off, the wait for it ends with an error. The bytes that wait behind a request are bounded: by
READ_BYTES, and one read of the socket more. The owner is told of a part of a head (`head_begun`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from aiohttp.http import HttpVersion11

from ingest.http.clients import Client, Proxies, client_at
from ingest.http.framer import BEHIND, LATER, UNREAD, Framer, Valve
from ingest.http.request_and_answer import (
    CLOSE,
    HEAD_END,
    NO_PLACE,
    Answer,
    Head,
    HeldPlace,
    KnownHeads,
    Request,
    code_of,
)
from ingest.system.logs import get_logger

# Bytes that come after the last answer are dropped for this long. If the connection were closed at
# once, many clients would see an error of the connection and not the answer.
LINGER_S = 5.0
HALF_HEAD_BYTES_MAX = 32 * 1024  # of a head whose end has not come
READ_BYTES = 64 * 1024  # if more bytes wait for the request in work, the socket is not read
BODY_S, BODY_BYTES_MAX = 1.0, 4 * 1024  # of a body that may come behind a known head
TRIES = 64  # after so many unknown heads in a row, all further ones are parsed
STAYS = b"Connection: keep-alive\r\n"

NOBODY = Client("", "")
_log = get_logger("connection")
# Where Python can, a new task runs at once until it has to wait. Most answers never wait.
_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
_start_task: Callable[..., asyncio.Task[Answer]] = partial(asyncio.Task, **_EAGER)


class Connection(asyncio.Protocol):
    """The protocol of one connection. It is also the `sender` of its requests.

    `owner` are the Connections of its port. They import this file, so they have no type here.
    `is_open`: nobody needs a token, whatever its port says; so it is in an app of others.
    """

    is_open = False
    __slots__ = (
        *("_at", "_behind", "_bodiless", "_framer", "_half_bytes", "_later", "_no_more", "_over"),
        *("_owner", "_request", "_timer", "_tries", "client", "place", "proxies", "retires"),
        "valve",
    )

    def __init__(self, owner: Any) -> None:
        self.valve = Valve()
        self.proxies: Proxies | None = owner.proxies
        self.place: HeldPlace = NO_PLACE
        self.retires = False  # the connection ends with its next answer
        self._owner = owner
        self.client = NOBODY  # until `connection_made`
        self._framer = Framer(self.valve, owner.loop, READ_BYTES)
        self._request: Request | None = None  # in work
        self._behind, self._at = b"", 0  # from _at on: the bytes that came after that request
        self._half_bytes = 0  # of a head whose end has not come
        self._later = b""  # bytes for the parser in the next round
        self._no_more = False  # the client has closed its sending side
        self._over = False  # no further request is read
        # A known head, and its bytes with the part of its body that came with them.
        self._bodiless: tuple[Head, bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None  # until its body, or a last answer, is late
        self._tries = TRIES if owner.known_heads is not None else 0

    @property
    def transport(self) -> asyncio.Transport | None:
        """None: the client is gone."""
        return self.valve.transport

    @property
    def is_in_work(self) -> bool:
        """Whether a request is being answered."""
        return self._request is not None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who it is."""
        self.valve.transport = made = cast(asyncio.Transport, transport)
        self.client = client_at(made)
        self._owner.connection_made(self, made)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for a body. A request that is whole is done; nobody gets its answer."""
        self.valve.transport = None
        self._over = True
        self._behind, self._at = b"", 0
        if self._timer is not None:
            self._timer.cancel()
        self._framer.close()
        self.place.left()
        self._timer = None  # it holds this connection: both would wait for the garbage collector
        self._owner.connection_lost(self)

    def eof_received(self) -> bool:
        """Note that the client sends no more. Whole requests are answered before the end."""
        self._no_more = True
        if self._framer.content is not None and not self._over:
            return False  # the rest of its body never comes
        return self._request is not None or bool(self._behind)

    def pause_writing(self) -> None:
        """Begin no further request: the client does not read."""
        self.valve.shut(UNREAD)

    def resume_writing(self) -> None:
        """Go on with the next request."""
        self.valve.open(UNREAD)
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Begin a request; or keep the bytes until the one in work is answered."""
        if self._over:
            return
        if self._bodiless is not None:
            self._body_came(*self._bodiless, data)
        elif self._framer.content is not None:
            self._parse(data, 0)
        elif self._request is None and not self._behind:
            self._read(data, 0)
        else:
            self._keep(self._behind[self._at :] + data, 0)

    # From bytes to requests

    def _read(self, data: bytes, at: int, found: Head | None = None) -> None:
        """Begin the first request in `data[at:]`, perhaps later. None is in work.

        `found` is its head, if it is known and its body was awaited: it does not wait again.
        """
        framer = self._framer
        if self._tries and framer.content is None and not framer.half:
            known = self._owner.known_heads
            assert known is not None, "_tries is 0"
            end = data.find(HEAD_END, at) + len(HEAD_END)
            head = found or known.find(data[at:end])
            if head is None:
                self._tries -= 1
            elif end + head.body_bytes <= len(data):
                self._tries = TRIES
                self._keep(data, end + head.body_bytes)
                body = data[end : end + head.body_bytes]
                self._begin(Request(head, self.client, self, body))
                return
            elif found is None and not self._no_more and _may_come_behind(head):
                self._await_body(head, data[at:])
                return
        self._parse(data, at)

    def _await_body(self, head: Head, data: bytes) -> None:
        self._bodiless = head, data
        self._owner.body_awaited(self)
        self._timer = self._owner.loop.call_later(BODY_S, self.data_received, b"")

    def _body_came(self, head: Head, data: bytes, more: bytes) -> None:
        """Go on with a request whose head is known; if its body is still not here, parse it."""
        assert self._timer is not None, "it is awaited"
        self._timer.cancel()
        self._bodiless = None
        self._owner.body_ended(self)
        self._read(data + more, 0, head)

    def _parse(self, data: bytes, at: int) -> None:
        """Parse up to the end of a request; begin that request."""
        framer = self._framer
        try:
            stop = framer.feed(data, at)
        except Exception as fault:
            self._malformed(fault)
            return
        if framer.is_complete:
            self._keep(data, stop)
            self._completed()
            return
        if stop < len(data):
            self._put_off(data[stop:])
        if framer.content is None:
            self._half_head(stop - at)
            return
        if self._request is None:
            assert framer.head is not None, "it came with the content"
            self._begin(Request(framer.head, self.client, self, None, framer.content))
        if self._no_more and not self._later:
            framer.break_body()

    def _put_off(self, data: bytes) -> None:
        """Parse these bytes in a later round."""
        self._later = data
        self.valve.shut(LATER)
        self._owner.put_off(self._go_on_parsing, self.client.network)

    def _go_on_parsing(self) -> None:
        data, self._later = self._later, b""
        self.valve.open(LATER)
        self.data_received(data)

    def _completed(self) -> None:
        """A request is whole."""
        framer = self._framer
        self._half_bytes = 0
        if self._tries and framer.text:
            assert framer.head is not None, "it is complete"
            cast(KnownHeads, self._owner.known_heads).parsed(framer.text, framer.head)
        if self._request is not None:  # it reads its body from the content
            framer.end()
            self._owner.body_ended(self)
            return
        head, body = framer.take()
        self._begin(Request(head, self.client, self, body))

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
            self._framer.end()
            self._refuse(code_of(fault))
        else:  # the body is broken; the page that reads it refuses the request
            self._over = True
            self._framer.break_body()

    def _refuse(self, code: str) -> None:
        self._over = True
        if self.transport is not None:
            self.transport.write(self._owner.malformed(code).rendered(CLOSE))
            self._end(self.transport)

    def _keep(self, data: bytes, at: int) -> None:
        """Keep `data[at:]`, which came after a request."""
        if at == len(data):
            self._behind, self._at = b"", 0
            return
        self._behind, self._at = data, at
        if len(data) - at > READ_BYTES:
            self.valve.shut(BEHIND)

    # From a request to its answer

    def _begin(self, request: Request) -> None:
        """Have a request answered in a later round. Its body may still be arriving."""
        self._request = request
        owner = self._owner
        if request.body is None:
            owner.body_awaited(self)
        else:
            owner.work_begun(self)
            queue = owner.plain_bodies if request.head.is_plain else None
            if queue is not None and queue.enqueue(len(request.body), self._begin_in_round):
                return
        owner.loop.call_soon(self._answer)

    def _begin_in_round(self) -> None:
        """Answer the request, even if its client is gone: the post is whole, and is kept."""
        assert self._request is not None, "it is in work until it is answered"
        self._request.in_round = True
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
        request, transport = self._request, self.valve.transport
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
            or self._framer.content is not None
            or self._over
            or owner.is_closing
            or (not self._behind and (self._no_more or self.retires))
        )
        if head.version is HttpVersion11 and head.method != "HEAD":
            transport.write(answer.ready(is_last=is_last))
        else:
            how = CLOSE if is_last else b"" if head.version == HttpVersion11 else STAYS
            transport.write(answer.rendered(how, with_body=head.method != "HEAD"))
        if is_last:
            self._end(transport)
        elif self._behind:
            self._go_on()

    def _go_on(self) -> None:
        """Begin the next request, unless the client does not read its answers."""
        if self._request is not None or self._over or self.valve.is_shut(UNREAD):
            return
        data, at = self._behind, self._at
        self._behind, self._at = b"", 0
        if data:
            self._read(data, at)
        if len(self._behind) - self._at <= READ_BYTES:
            self.valve.open(BEHIND)

    def _end(self, transport: asyncio.Transport) -> None:
        """Close once the answer is sent. If more may come, first read and drop it for LINGER_S."""
        # A retired client may send a request before it reads that the connection ends.
        is_read = self._framer.content is None and not (self._over or self.retires)
        self._over = True
        self._behind, self._at = b"", 0
        if is_read or self._no_more:
            transport.close()
            return
        if transport.can_write_eof():
            transport.write_eof()
        self.valve.open_for_all()
        self._owner.body_ended(self)  # nobody waits for it any more: it is not a slow one
        self._timer = self._owner.loop.call_later(LINGER_S, transport.close)

    def leave(self) -> None:
        """End an idle connection. If a request comes now, it is dropped, and not answered."""
        if not self._over and self.transport is not None:
            self.retires = True
            self._end(self.transport)

    def close(self) -> None:
        """Close the connection, once what was written is sent."""
        self._over = True
        if self.transport is not None:
            self.transport.close()


def _may_come_behind(head: Head) -> bool:
    """Whether the body may come with the next bytes. A refusal by the head alone waits for it too,
    at most BODY_S: the token may have ended since, or be another one."""
    plan = head.plan if head.common is None else head.common.plan
    return plan is not None and head.body_bytes <= BODY_BYTES_MAX
