"""A request as the pages read it, and its head, which requests with the same bytes share."""

from __future__ import annotations

from asyncio import BaseTransport, Transport
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from aiohttp import StreamReader
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

from ingest.model.errors import Refused

AUTHORIZATION = "Authorization"


class Client(NamedTuple):
    """Who sent a request.

    `address` is "" on a Unix socket or if unknown. `network` counts as one client: an IPv4 address,
    or the /64 of an IPv6 address; "" if a proxy does not say whose request it brings.
    """

    address: str
    network: str


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


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return the network of an address, as in Client. Any other text is returned as it is."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(IPv6Network((int(ip) >> 64 << 64, 64)))


def client_at(transport: BaseTransport) -> Client:
    """Return the client of a connection."""
    name = transport.get_extra_info("peername")
    address = str(name[0]) if isinstance(name, tuple) and name else ""
    return Client(address, network_of(address))
