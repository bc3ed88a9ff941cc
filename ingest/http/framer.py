"""Finds where a request ends in the bytes of a connection; aiohttp's parser reads the request.

The parser gets one request at a time. If it got more, it would lose complete requests: those before
bytes that are not HTTP, and those after a request with an Upgrade header (which is ignored).
A head ends with an empty line, and so does a chunked body. So the parser gets the bytes up to the
next empty line, and then says whether this was the end. The socket is read while its valve is open.
Does not: keep bytes that it has not given to the parser, or know what becomes of a request.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from importlib.metadata import version
from typing import Any, cast

from aiohttp import StreamReader, http_parser, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage

from ingest.http.request_and_answer import HEAD_END, HEADERS_MAX, LINE_BYTES_MAX, Head
from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s

# Reasons not to read, as bits. BEHIND: many bytes wait for the request in work. BODY: a body comes
# faster than it is read. MEMORY: a body waits for memory. UNREAD: the client does not read its
# answers. LATER: there are bytes to parse in the next round.
BEHIND, BODY, MEMORY, UNREAD, LATER = 1, 2, 4, 8, 16


HALF_END = len(HEAD_END) - 1  # HEAD_END may come in two parts; the first has at most so many bytes
# 256 KiB of the smallest chunks take 30 ms. So the parser gets a chunked body in parts. After this
# time it gets no further part, until the connection's turn comes in a later round (rounds.py).
PART_BYTES_MAX = 2 * 1024
PARSE_S_MAX = 0.0002
# So many bytes of a chunked body may be sizes, line ends and trailers, and as many again as it has
# of its own. Otherwise a few connections with chunks of one byte would use the whole CPU.
OVERHEAD_BYTES_MAX = 16 * 1024
SMALL_CHUNKS = (
    "the chunks of the body are too small: sizes and line ends have more bytes than it has"
)
# In a chunked body with more empty lines than this, nobody looks for the end: with 256 KiB of empty
# lines that would take 0.4 s. The connection ends with this request, and what follows it is lost.
LINES_MAX = 500


class Framer:
    """The request that is arriving on one connection.

    `content` is its body once its head has come, else None. Before that, `half` is not empty if the
    parser has a part of the head. `text` is the head if it came in one piece. `valve` is shut while
    the reader of the body is slower than the client.
    """

    __slots__ = (
        *("_last", "_left", "_lines", "_loop", "_parser", "_read_bytes", "_valve", "_why_broken"),
        *("content", "half", "head", "text"),
    )

    def __init__(self, valve: Valve, loop: AbstractEventLoop, read_bytes: int) -> None:
        self._valve = valve
        self._loop = loop
        self._read_bytes = read_bytes
        self._parser: HttpRequestParser | None = None  # while it is not needed
        self.half = b""  # the last bytes that the parser got, of a head or of a chunked body
        self._last = b""  # all of the last part that the parser got
        # Bytes of the body that have not come; of a chunked one: those that have come, below -1.
        self._left = 0
        self._why_broken = ""  # if it is known
        self._lines = 0  # empty lines in the body, if it is chunked
        self.head: Head | None = None
        self.text = b""
        self.content: StreamReader | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the request has come to its end; then `take` it."""
        return self.content is not None and self.content.is_eof()

    def feed(self, data: bytes, at: int) -> int:
        """Give the parser `data[at:]` up to the end of the request; return where that is.

        It stops after PARSE_S_MAX too. Raises what the parser raises at bytes that are not HTTP.
        """
        until_s = 0.0
        while at < len(data):
            part = self._last = data[at : self._end_of_part(data, at)]
            at += len(part)
            self._feed(part)
            if self.is_complete:
                break
            if self.half and at < len(data):
                now_s = monotonic_s()
                until_s = until_s or now_s + PARSE_S_MAX
                if now_s > until_s:
                    break
        return at

    def _feed(self, part: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = HttpRequestParser(
                cast(Any, self._valve),
                self._loop,
                self._read_bytes,
                max_line_size=LINE_BYTES_MAX,
                max_headers=HEADERS_MAX,
                max_field_size=LINE_BYTES_MAX,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,
            )
        try:
            messages, is_upgraded, _ = parser.feed_data(part)
        except Exception:
            if self.is_complete:
                return  # the fault is in bytes after the request, see LINES_MAX
            raise
        if is_upgraded:  # the parser would take all that follows for another protocol
            parser.set_upgraded(False)
        if not messages or self.content is not None:
            self._left -= len(part)
            self.half = (self.half + part)[-HALF_END:]
            self._require_content()
            return
        message, content = messages[0]
        self.head = Head(message, has_body=not content.is_eof())
        self.text = b"" if self.half else part
        self.content = content
        self._left = self.head.body_bytes
        self._lines = 0
        self.half = b""

    def _require_content(self) -> None:
        """Raise BadHttpMessage if a chunked body consists of little more than its chunks."""
        if self.content is None or self._left >= 0:
            return
        content_bytes = self.content.total_bytes
        if -self._left - content_bytes > OVERHEAD_BYTES_MAX + content_bytes:
            self._why_broken = SMALL_CHUNKS
            raise BadHttpMessage(SMALL_CHUNKS)

    def _end_of_part(self, data: bytes, at: int) -> int:
        """Return where the request may end at the earliest: the parser must not get more."""
        if self.content is None and not self.half:  # the common case
            end = data.find(HEAD_END, at)
            return end + len(HEAD_END) if end >= 0 else len(data)
        if self.content is not None and self._left > 0:
            return at + self._left
        half, part_end = self.half, min(len(data), at + PART_BYTES_MAX)
        if self._lines > LINES_MAX:
            return part_end
        end = at - len(half) + (half + data[at : at + HALF_END]).find(HEAD_END)
        if end < at - len(half):  # no empty line begins in the bytes that came before
            end = data.find(HEAD_END, at, part_end)
            if end < 0:
                return part_end
        if self.head is not None:  # it is chunked
            self._lines += 1
            if self._lines > LINES_MAX:
                self.head.keeps_open = False
        return end + len(HEAD_END)

    def take(self) -> tuple[Head, bytes]:
        """Return the head and the body of the request, which is complete, and forget it."""
        head, content = self.head, self.content
        assert head is not None, "it is complete"
        assert content is not None, "it is complete"
        body = self._last if len(self._last) == head.body_bytes else content.read_nowait()
        self.end()
        return head, body

    def break_body(self) -> None:
        """End the wait for a body with an error: the rest of it never comes."""
        content = self.content
        if content is not None and not content.is_eof() and content.exception() is None:
            broken = web.RequestPayloadError(self._why_broken)
            content.set_exception(broken)
            # A reader that was woken in this round looks for bytes only, and waits again.
            self._loop.call_soon(content.set_exception, broken)

    def end(self) -> None:
        """Forget the request. Whoever has its body may go on reading it."""
        if self.head is not None and self.head.body_bytes < 0:
            # The parser would take the last trailer for a header of the next request.
            self._parser = None
        self.head = self.content = None
        self.half = self._last = self.text = b""

    def close(self) -> None:
        """End the wait for a body; parse nothing more."""
        self.break_body()
        self.head = self.content = self._parser = None


def require_parser() -> None:
    """Raise StartError if the parser is the one in Python.

    That one is slow, and it takes some requests apart in another way than proxies do.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise StartError(
            f"aiohttp {version('aiohttp')} cannot be used: it lacks its parser in C; install a "
            "wheel of it for this platform"
        )


class Valve:
    """Shut while there is a reason. aiohttp's StreamReader calls it as its `protocol`."""

    __slots__ = ("_reasons", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None  # None: the client is gone
        self._reasons = 0

    @property
    def connected(self) -> bool:
        """Whether the client is there."""
        return self.transport is not None

    def is_shut(self, why: int) -> bool:
        """Whether there is this reason."""
        return bool(self._reasons & why)

    def shut(self, why: int) -> None:
        """Read nothing from now on."""
        if not self._reasons and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._reasons |= why

    def open(self, why: int) -> None:
        """Read again, if there is no other reason."""
        if not self._reasons & why:
            return
        self._reasons &= ~why
        if not self._reasons and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def open_for_all(self) -> None:
        """Forget all reasons."""
        self.open(self._reasons)

    def pause_reading(self) -> None:
        """Called by a body: its reader is slower than its client."""
        self.shut(BODY)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called by a body: its reader has taken some bytes, or it is complete."""
        self.open(BODY)
