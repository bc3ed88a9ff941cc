"""The parser of a connection; where heads and requests end in its bytes, and what was wrong."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParser
from aiohttp.streams import StreamReader

HEADERS_MAX = 64  # of a request
LINE_BYTES_MAX = 8 * 1024  # of its target, and of each header
HEAD_END = b"\r\n\r\n"
HTTP_1 = b"HTTP/1."  # stands in the first line of each request


def parser_of(
    protocol: web.RequestHandler, loop: AbstractEventLoop, read_bytes: int
) -> HttpRequestParser:
    """Return a parser that stops behind each request.

    aiohttp's own reads on, and when it comes to bytes that are not HTTP, it loses the requests
    before them.
    """
    return HttpRequestParser(
        protocol,
        loop,
        read_bytes,
        max_line_size=LINE_BYTES_MAX,
        max_headers=HEADERS_MAX,
        max_field_size=LINE_BYTES_MAX,
        payload_exception=web.RequestPayloadError,
        auto_decompress=False,
        max_msg_queue_size=1,
    )


def end_of_request(data: bytes, message: Any, content: StreamReader) -> int:
    """Return where the only complete request in some bytes ends."""
    end = data.find(HEAD_END, data.find(HTTP_1)) + len(HEAD_END)
    if not message.chunked:
        return end + content.total_bytes
    while size := int(data[end : data.index(b"\r\n", end)].partition(b";")[0], 16):
        end = data.index(b"\r\n", end) + size + 4
    return data.index(HEAD_END, end) + len(HEAD_END)


def head_bytes(message: Any) -> int:
    """Return the bytes of a request's headers: the part of the head that may be large."""
    headers = getattr(message, "raw_headers", ())  # an error in place of a request has none
    return sum(len(name) + len(value) for name, value in headers)


def code_of(fault: BaseException | None, status: int) -> str:
    """Return the problem code for a request that never reached the handler."""
    if isinstance(fault, ConnectionError):
        return "bad_request"  # the client left before its body was here; nobody reads this
    if status >= 500:
        return "internal"
    if isinstance(fault, LineTooLong) or "Too many headers" in str(fault):
        return "headers_too_large"
    return "bad_request"
