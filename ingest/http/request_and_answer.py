"""A request as the pages read it, its head, and its answer as bytes.

Requests with the same bytes before their body share a head: the parser takes it once. An answer is
head and body of HTTP, or a problem document (RFC 9457).
Promises: one write for each answer. Text from a request, a driver or a parser is escaped. Every 503
has a random Retry-After of whole seconds, at least 1.
Does not: decide which answer a request gets.
"""

from __future__ import annotations

import math
import random
from asyncio import Transport
from collections.abc import Coroutine, Iterable, Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import StreamReader
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from multidict import CIMultiDict, CIMultiDictProxy

from ingest.http.clients import Client
from ingest.model.codes import PROBLEMS
from ingest.model.errors import Refused
from ingest.system.clock import unix_s

AUTHORIZATION = "Authorization"
HEADERS_MAX = 64  # of a request
LINE_BYTES_MAX = 8 * 1024  # of its target, and of each header
HEAD_END = b"\r\n\r\n"

# A head is remembered when it comes for the second time. A proxy may give each request a number;
# such heads never come again, and would only fill the memory.
KNOWN_BYTES_MAX = 2 * 1024  # of a head
KNOWN_MAX = 512  # heads; when there are more, these become the older ones, which are kept too
SEEN_MAX = 4_096  # heads that came once; only their hashes are kept
# How the header begins. Heads in which it is written in another way have nothing in common.
_AUTHORIZATION = tuple(b"\r\n%b: " % name for name in (b"Authorization", b"authorization"))

CLOSE = b"Connection: close\r\n"
JSON = b"application/json"
PROBLEM_JSON = b"application/problem+json"
TEXT = b"text/plain; charset=utf-8"

# After how long a client should try again, if the refusal itself does not say it. Each client gets
# a random time around this one.
_RETRY_AFTER_S = {"disk_low": 30.0, "database_on_hold": 5.0, "starting": 2.0, "draining": 2.0}

_STATUS_LINES = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\nContent-Type: ".encode()
    for each in HTTPStatus
}


class Head:
    """What the head of a request says.

    `body_bytes` is -1 for a chunked body. `is_plain`: it is HTTP/1.1 without Content-Encoding,
    Expect, or a Transfer-Encoding other than chunked. So its body can be decoded as it arrived.
    The port keeps in `route`, and the page in `plan`, what it found out about this head. `common`
    is the same head with an empty Authorization, if many heads that differ in that share it.
    """

    __slots__ = (
        *("body_bytes", "common", "headers", "is_plain", "keeps_open", "message", "method"),
        *("plan", "raw_path", "route", "version"),
    )

    def __init__(self, message: RawRequestMessage, *, has_body: bool) -> None:
        self.message = message
        self.method: str = message.method
        self.raw_path: str = message.path
        self.version = message.version
        self.headers: CIMultiDictProxy[str] = message.headers
        self.keeps_open: bool = not message.should_close
        self.body_bytes = 0
        if has_body:
            self.body_bytes = -1 if message.chunked else int(self.headers.get("Content-Length", 0))
        self.is_plain: bool = (
            message.version == HttpVersion11
            and "Content-Encoding" not in self.headers
            and "Expect" not in self.headers
            and ("Transfer-Encoding" not in self.headers or self._is_chunked_only)
        )
        self.route: Any = None
        self.plan: Any = None
        self.common: Head | None = None

    def with_authorization(self, value: str) -> Head:
        """Return the same head with another value of its header Authorization, which it has."""
        headers = CIMultiDict(self.headers)
        headers[AUTHORIZATION] = value
        message = self.message._replace(headers=CIMultiDictProxy(headers), raw_headers=())
        return Head(message, has_body=self.body_bytes != 0)

    @property
    def _is_chunked_only(self) -> bool:
        return [each.strip().lower() for each in self.headers.getall("Transfer-Encoding")] == [
            "chunked"
        ]

    def require_meant(self) -> None:
        """Raise Refused if the head asks for something that this service does not do."""
        headers = self.headers
        if self.version not in (HttpVersion10, HttpVersion11):
            raise Refused("bad_request", "this port speaks HTTP/1.1 and HTTP/1.0")
        if "Transfer-Encoding" in headers and (
            not self._is_chunked_only or self.version == HttpVersion10
        ):
            raise Refused("bad_request", "the only Transfer-Encoding is chunked, with HTTP/1.1")
        if any(each.lower() != "100-continue" for each in headers.getall("Expect", ())):
            raise Refused("bad_request", "the only Expect is 100-continue")
        if len(headers.getall("Content-Encoding", ())) > 1:
            raise Refused(
                "unsupported_encoding", "a body may have one Content-Encoding, gzip or zstd"
            )


class HeldPlace:
    """What a connection holds of the limit of a sender, whose connections in use are counted."""

    __slots__ = ("_used", "sender")

    def __init__(self, sender: str, used: dict[str, int]) -> None:
        self.sender = sender  # "" once it is given back
        self._used = used

    def left(self) -> None:
        """Give it back: the connection is closed, or is used by another sender. Repeatable."""
        sender, self.sender = self.sender, ""
        if sender:
            self._used[sender] -= 1
            if not self._used[sender]:
                del self._used[sender]


NO_PLACE = HeldPlace("", {})  # nobody's


class Request:
    """A request in work.

    `body` is the whole body if it arrived with its head, else None: then it is read from `content`.
    `sender` is its Connection, and `peer` who has connected. `in_round`: `body` may be decoded now,
    and is not counted as in memory any more. The page keeps in `account` whose it is.
    """

    __slots__ = ("account", "body", "content", "head", "in_round", "peer", "sender")

    account: Any

    def __init__(
        self,
        head: Head,
        peer: Client,
        sender: Any,
        body: bytes | None,
        content: StreamReader | None = None,
    ) -> None:
        self.head = head
        self.peer = peer
        self.sender = sender
        self.body = body
        self.content = content
        self.in_round = False

    @property
    def client(self) -> Client:
        """Who sent it: the peer, or the client of a trusted proxy."""
        proxies = self.sender.proxies
        return self.peer if proxies is None else proxies.client_of(self.head.headers, self.peer)

    @property
    def is_forwarded(self) -> bool:
        """Whether a trusted proxy brings it."""
        proxies = self.sender.proxies
        return proxies is not None and proxies.has(self.peer.address)

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers, by name in any case."""
        return self.head.headers

    @property
    def method(self) -> str:
        """In capitals."""
        return self.head.method

    @property
    def transport(self) -> Transport | None:
        """Its connection; None if the client is gone."""
        transport: Transport | None = self.sender.valve.transport
        return transport

    @property
    def is_whole(self) -> bool:
        """Whether all of its body has arrived."""
        return self.content is None or self.content.is_eof()

    def body_start(self, bytes_max: int) -> bytes:
        """Return first bytes of the body: those that have arrived and that nobody has read."""
        if self.body is not None:
            return self.body[:bytes_max]
        if self.content is None or self.content.exception() is not None:
            return b""
        return self.content.read_nowait(bytes_max)

    def without(self, names: Iterable[str]) -> Request:
        """Return the same request without these headers (names in small letters)."""
        kept = [each for each in self.headers.items() if each[0].lower() not in names]
        headers = CIMultiDictProxy(CIMultiDict(kept))
        head = Head(self.head.message._replace(headers=headers), has_body=not self.is_whole)
        return Request(head, self.peer, self.sender, self.body, self.content)


class Answer:
    """One HTTP answer. `headers` are whole lines, each with CRLF.

    `closes`: it is the last one of its connection. Many requests may share an answer, so it must
    not be changed.
    """

    __slots__ = ("_at_s", "_last", "_ready", "body", "closes", "content_type", "headers", "status")
    began_s: float | None = None  # set if its first bytes were sent long before the last ones

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        *,
        headers: bytes = b"",
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.closes = close
        self._ready = self._last = b""
        self._at_s = 0

    def ready(self, *, is_last: bool) -> bytes:
        """Return head and body, for HTTP/1.1; made anew once a second. `is_last`: see `closes`."""
        second = int(unix_s())
        if second != self._at_s:
            self._ready, self._last, self._at_s = b"", b"", second
        if is_last:
            self._last = self._last or self.rendered(CLOSE)
            return self._last
        self._ready = self._ready or self.rendered()
        return self._ready

    def rendered(self, connection: bytes = b"", *, with_body: bool = True) -> bytes:
        """Return head and body; `connection` is a whole header line, or empty."""
        if self.status == HTTPStatus.NO_CONTENT:  # it has no body, and must not say how long one is
            return b"HTTP/1.1 204 No Content\r\nDate: %b\r\n%b%b\r\n" % (
                _date(int(unix_s())),
                self.headers,
                connection,
            )
        return b"%b%b\r\nContent-Length: %d\r\nDate: %b\r\n%b%b\r\n%b" % (
            _STATUS_LINES[self.status],
            self.content_type,
            len(self.body),
            _date(int(unix_s())),
            self.headers,
            connection,
            self.body if with_body else b"",
        )


# What a page gives: an answer; or a coroutine, if it has to wait; or None: then it calls
# `request.sender.reply` later, once, in the event loop.
Reply = Answer | Coroutine[Any, Any, Answer] | None


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Return the value of the Date header, formatted once a second."""
    return formatdate(second, usegmt=True).encode()


def accepts_gzip(headers: Mapping[str, str]) -> bool:
    """Whether the client takes an answer that gzip has made smaller (RFC 9110, 12.5.3)."""
    for coding in headers.get("Accept-Encoding", "").split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() == "gzip":
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False


def problem(refused: Refused, *, headers: bytes = b"", close: bool = False) -> Answer:
    """Return the answer for a refusal; its code is a key of `codes.PROBLEMS`."""
    status, title, _ = PROBLEMS[refused.code]
    document = {
        "type": f"urn:iot-ingest:problem:{refused.code}",
        "title": title,
        "status": status,
        "detail": refused.detail,
        "code": refused.code,
        **refused.fields,
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        about_s = refused.retry_after_s or _RETRY_AFTER_S.get(refused.code, 1.0)
        headers += b"Retry-After: %d\r\n" % retry_after_s(about_s)
    elif refused.retry_after_s is not None:  # one sender waits for its own time: nothing is drawn
        headers += b"Retry-After: %d\r\n" % math.ceil(refused.retry_after_s)
    if refused.code == "unsupported_encoding":
        headers += b"Accept-Encoding: gzip, zstd\r\n"
    return Answer(
        status, orjson.dumps(document), PROBLEM_JSON, headers=headers, close=close or status == 408
    )


def retry_after_s(about_s: float) -> int:
    """Return whole seconds, at least 1, on average about `about_s`.

    The time is random, so that not all refused clients come back at once.
    """
    return 1 + int(random.random() * 2 * about_s)


class KnownHeads:
    """Heads that the parser has taken before, by their bytes.

    If each device has a token of its own, they are too many. So what they have in common is known
    too: the head with an empty Authorization.
    Promises: only the same bytes find a head, or what differs in the text of Authorization only. If
    a client sends new heads all the time, the heads that other clients use meanwhile stay.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._older: dict[bytes, Head] = {}
        self._seen: set[int] = set()

    def find(self, text: bytes) -> Head | None:
        """Return the head with these bytes, if it is known, or made from one that is."""
        head = self._find(text)
        if head is None and (cut := _apart(text)) is not None:
            common = self._find(cut[0])
            if common is not None:
                head = common.with_authorization(cut[1])
                head.common = common
                if self._came_before(text):
                    self._remember(text, head)
        return head

    def _find(self, text: bytes) -> Head | None:
        head = self._known.get(text)
        if head is None and (head := self._older.get(text)) is not None:
            self._remember(text, head)
        return head

    def parsed(self, text: bytes, head: Head) -> None:
        """Note a head that the parser took in one piece; its request has arrived whole."""
        if not (head.is_plain and head.body_bytes >= 0):
            return
        if head.method == "HEAD" or head.message.upgrade or len(text) > KNOWN_BYTES_MAX:
            return
        cut = _apart(text)
        if self._find(text) is not None or (cut and self._find(cut[0]) is not None):
            return  # `find` has counted it; but its body came late
        if self._came_before(text):
            self._remember(text, head)
        if cut is None or head.headers.getall(AUTHORIZATION) != [cut[1]]:
            return
        if self._came_before(cut[0]):
            self._remember(cut[0], head.with_authorization(""))

    def _came_before(self, text: bytes) -> bool:
        number = hash(text)
        if number in self._seen:
            return True
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.add(number)
        return False

    def _remember(self, text: bytes, head: Head) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._older, self._known = self._known, {}
        self._known[text] = head


def _apart(text: bytes) -> tuple[bytes, str] | None:
    """Return a head without the value of its first Authorization, and this value.

    It is without its end, too. So no client can send it as a head, and be taken for another one.
    None: it has none; or something is in it that the parser might not take, or take otherwise.
    """
    for begin in _AUTHORIZATION:
        at = text.find(begin)
        if at >= 0 and len(text) <= KNOWN_BYTES_MAX:
            at += len(begin)
            end = text.find(b"\r\n", at)
            value = text[at:end].decode("latin-1").strip(" ")
            if value.isascii() and value.isprintable():
                return text[:at] + text[end : -len(HEAD_END)], value
    return None


def code_of(fault: BaseException) -> str:
    """Return the problem code for bytes that the parser did not take."""
    if isinstance(fault, LineTooLong) or "Too many headers" in str(fault):
        return "headers_too_large"
    return "bad_request"
