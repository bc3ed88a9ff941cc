"""One HTTP/1.1 connection of the load driver: writes a ready request, reads the answer, calls back.

It needs no future, task, timer or table of headers for a request, so it is cheap. `Answers` is
pure: it reads answers from the pieces that the network delivers. `Connection` is the connection.
Promises: one request in flight; each `send` leads to one `answered` or one `broken`.
Does not: time out, connect or reconnect by itself (the driver does).
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple, Protocol, cast

from loadgen.driver.retry import Flight

ANSWER_BYTES_MAX = 1024 * 1024  # the service's longest answer, with 100 errors, has some 20 kB
HEAD_BYTES_MAX = 16 * 1024
CHUNK_LINE_BYTES_MAX = 256
HEADS_MAX = 256

_START = b"HTTP/1.1 "
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d)(?: [^\r\n]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_CHUNKED = -1


class Answer(NamedTuple):
    """One answer. `retry_after_s` is None without a Retry-After in whole seconds."""

    status: int
    body: bytes
    closes: bool
    retry_after_s: int | None


class BadAnswer(Exception):
    """The bytes are no answer to a post. The text is one of a few sentences, to be counted."""


class Head(NamedTuple):
    """The needed parts of an answer's head. `body_bytes` is negative if the body is chunked."""

    status: int
    body_bytes: int
    closes: bool
    retry_after_s: int | None


class Answers:
    """Reads one answer after another out of bytes.

    `heads` keeps the heads that were read. Heads of one second and length are equal, so most are
    found there and are not read again. Connections may share it.
    """

    __slots__ = ("_body", "_head", "_heads", "_kept")

    def __init__(self, heads: dict[bytes, Head] | None = None) -> None:
        self._heads: dict[bytes, Head] = {} if heads is None else heads
        self._kept = bytearray()  # of a head that is not complete
        self._head: Head | None = None  # of an answer whose body is not complete
        self._body = bytearray()

    @property
    def begun(self) -> bool:
        """Whether a part of an answer has come."""
        return bool(self._kept) or self._head is not None

    def feed(self, data: bytes) -> Answer | None:
        """Take some bytes; return the answer if they complete it.

        Raises BadAnswer; the connection cannot be used after it.
        """
        if self._head is not None:
            return self._feed_body(self._head, data)
        searched_bytes = 0
        if self._kept:
            searched_bytes = max(0, len(self._kept) - 3)
            self._kept += data
            data = bytes(self._kept)
        end = data.find(b"\r\n\r\n", searched_bytes, HEAD_BYTES_MAX)
        if end < 0:
            self._keep_head(data)
            return None
        self._kept.clear()
        head = self._heads.get(data[:end]) or self._learn(data[:end])
        if len(data) == end + 4 + head.body_bytes:  # nearly always
            return Answer(head.status, data[end + 4 :], head.closes, head.retry_after_s)
        self._head = head
        return self._feed_body(head, data[end + 4 :])

    def _keep_head(self, data: bytes) -> None:
        if data[: len(_START)] != _START[: len(data)]:
            raise BadAnswer(_why_not(data))
        if len(data) >= HEAD_BYTES_MAX:
            raise BadAnswer("an answer whose head does not end")
        if not self._kept:
            self._kept += data

    def _learn(self, text: bytes) -> Head:
        head = read_head(text)
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[text] = head
        return head

    def _feed_body(self, head: Head, data: bytes) -> Answer | None:
        self._body += data
        if head.body_bytes == _CHUNKED:
            body = _joined(self._body)
            if body is None:
                return None
        elif len(self._body) > head.body_bytes:
            raise BadAnswer("more bytes than one answer has")
        elif len(self._body) < head.body_bytes:
            return None
        else:
            body = bytes(self._body)
        self._head = None
        self._body.clear()
        return Answer(head.status, body, head.closes, head.retry_after_s)


def _joined(raw: bytearray) -> bytes | None:
    """Return the body that comes in chunks; None if more of them must come. Raises BadAnswer.

    Reads from the first chunk on each time: only a proxy answers in chunks, and its answers are
    short.
    """
    if len(raw) > 2 * ANSWER_BYTES_MAX:
        raise BadAnswer("an answer of more than 1 MiB")
    body = bytearray()
    at, is_last = 0, False
    while True:
        end = raw.find(b"\r\n", at, at + CHUNK_LINE_BYTES_MAX)
        if end < 0 and len(raw) - at < CHUNK_LINE_BYTES_MAX:
            return None
        line, at = bytes(raw[at : max(end, at)]), end + 2
        if is_last and end >= 0:  # fields may follow the last chunk, then an empty line
            if line:
                continue
            if len(raw) > at:
                raise BadAnswer("more bytes than one answer has")
            return bytes(body)
        found = _CHUNK_LINE.fullmatch(line)
        if found is None:
            raise BadAnswer("an answer with chunks that cannot be read")
        length_bytes = int(found[1], 16)
        if len(body) + length_bytes > ANSWER_BYTES_MAX:
            raise BadAnswer("an answer of more than 1 MiB")
        is_last = length_bytes == 0
        if is_last:
            continue
        if len(raw) < at + length_bytes + 2:
            return None
        body += raw[at : at + length_bytes]
        at += length_bytes + 2
        if raw[at - 2 : at] != b"\r\n":
            raise BadAnswer("an answer with chunks that cannot be read")


def read_head(text: bytes) -> Head:
    """Read a head, which comes without the empty line at its end. Raises BadAnswer."""
    status_line, *lines = text.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise BadAnswer(_why_not(status_line))
    status = int(found[1])
    if status < 200:
        raise BadAnswer("an interim answer (1xx), which nobody asked for")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadAnswer("an answer whose head cannot be read")
        fields.setdefault(field[1].lower(), []).append(field[2])
    words = b",".join(fields.get(b"connection", [])).lower().split(b",")
    retry_after = b",".join(fields.get(b"retry-after", []))
    return Head(
        status,
        _body_bytes(status, fields),
        b"close" in (word.strip() for word in words),
        int(retry_after) if retry_after.isdigit() and len(retry_after) < 10 else None,
    )


def _body_bytes(status: int, fields: dict[bytes, list[bytes]]) -> int:
    lengths = set(fields.get(b"content-length", []))
    codings = fields.get(b"transfer-encoding", [])
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadAnswer("an answer whose length cannot be told")
        return _CHUNKED
    if status in {204, 304}:
        return 0
    text = lengths.pop() if len(lengths) == 1 else b""
    if lengths or not text.isdigit() or len(text) > 18:
        raise BadAnswer("an answer whose length cannot be told")
    if int(text) > ANSWER_BYTES_MAX:
        raise BadAnswer("an answer of more than 1 MiB")
    return int(text)


def _why_not(start: bytes) -> str:
    if start.startswith(b"HTTP/1.0"):
        return "an answer in HTTP/1.0"
    return "an answer that is not HTTP/1.1"


class Owner(Protocol):
    """The owner of a connection, which calls it back."""

    def answered(self, connection: Connection, answer: Answer) -> None:
        """Take the answer; `connection.open` says whether the connection can send again."""

    def broken(self, connection: Connection, why: str) -> None:
        """The connection is closed; the written request will get no answer."""

    def closed(self, connection: Connection) -> None:
        """The connection is closed; no request was in flight."""


class Connection(asyncio.Protocol):
    """One connection. `flight` and `sent_s` belong to its owner."""

    __slots__ = ("_answers", "_owner", "_transport", "busy", "flight", "open", "sent_s")

    def __init__(self, owner: Owner, heads: dict[bytes, Head]) -> None:
        self.open = False
        self.busy = False
        self.flight: Flight | None = None
        self.sent_s = 0.0
        self._owner = owner
        self._answers = Answers(heads)
        self._transport: asyncio.Transport  # while `open`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (called by the loop)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is no subclass of it
        self.open = True

    def send(self, request: bytes) -> None:
        """Write one whole request. Only if `open` and not `busy`."""
        self.busy = True
        self._transport.write(request)

    def drop(self, why: str) -> None:
        """Close at once, also with a request in flight; the owner is called before this returns."""
        if not self.open:
            return
        self.open = False
        self._transport.abort()
        self._tell(why)

    def data_received(self, data: bytes) -> None:
        """Take bytes that came (called by the loop)."""
        if not self.busy:
            self.drop("")  # an answer without a request, such as a 408
            return
        try:
            answer = self._answers.feed(data)
        except BadAnswer as bad:
            self.drop(str(bad))
            return
        if answer is None:
            return
        self.busy = False
        if answer.closes:
            self.open = False
            self._transport.abort()
        self._owner.answered(self, answer)

    def connection_lost(self, error: Exception | None) -> None:
        """End (called by the loop)."""
        if not self.open:
            return
        self.open = False
        if self._answers.begun:
            self._tell("the answer was cut off")
        elif error is None:
            self._tell("the connection was closed without an answer")
        else:
            self._tell("the connection was reset")

    def _tell(self, why: str) -> None:
        if self.busy:
            self.busy = False
            self._owner.broken(self, why)
        else:
            self._owner.closed(self)
