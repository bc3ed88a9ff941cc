"""HTTP answers as bytes: the head and body of every answer, and problem documents (RFC 9457).

Promises: one write for each answer. Text from a request, a driver or a parser is escaped. Every 503
has a random Retry-After of whole seconds, at least 1.
Does not: decide which answer a request gets.
"""

from __future__ import annotations

import math
import random
from collections.abc import Coroutine
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson

from ingest.model.codes import PROBLEMS
from ingest.model.errors import Refused
from ingest.system.clock import unix_s

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
