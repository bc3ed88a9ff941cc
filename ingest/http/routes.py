"""One port and its routes: finds the page of a request, and counts every answer.

Promises: every request gets an answer. A refusal is answered with a problem document. A fault of
the service is answered with 500 `internal` and logged now and then; the client sees nothing of the
exception.
Does not: know the content of the pages.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

from ingest.http.clients import Proxies
from ingest.http.connection import HALF_HEAD_BYTES_MAX
from ingest.http.connections import Connections
from ingest.http.request_and_answer import (
    HEADERS_MAX,
    LINE_BYTES_MAX,
    TEXT,
    Answer,
    Head,
    Reply,
    Request,
    problem,
)
from ingest.http.rounds import PlainBodies
from ingest.http.tls import Certificate
from ingest.model.errors import Refused
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

PATTERNS_SHOWN_MAX = 20  # in the answer to a wrong path
OTHER = "other"  # the label of all requests for which there is no page

# The texts for faults that no page has found.
_MALFORMED = {
    "bad_request": "the request is not valid HTTP",
    "headers_too_large": (
        f"the head of a request may have {HEADERS_MAX} headers, {LINE_BYTES_MAX // 1024} KiB in a "
        f"line, and {HALF_HEAD_BYTES_MAX // 1024} KiB before its end has come"
    ),
    "needs_tls": "this port speaks TLS: the address begins with https://",
    "internal": "the service has a fault; its log has the details",
}
_LAST = ("draining", "too_many_connections")  # after these the connection ends
READ = ("GET", "HEAD")
POST = ("POST",)

OnRefused = Callable[[Request | None, Refused], None]


# From a refused request, further headers, and whether the connection ends, to its answer.
MakeProblem = Callable[[Request, Refused, bytes, bool], Answer]


def _usual_problem(_request: Request, refused: Refused, headers: bytes, close: bool) -> Answer:
    return problem(refused, headers=headers, close=close)


class Route(NamedTuple):
    """A page: its methods, and `answer(request, query string, monotonic time of receipt)`.

    `answer` returns an answer, or a coroutine that returns it. Or it returns None; then the page
    calls `request.sender.reply` later, and counts the request itself. `answer` may raise Refused,
    or ConnectionError if the client is gone. `problem` makes the answer of a refusal.
    """

    methods: tuple[str, ...]
    answer: Callable[[Request, str, float], Reply]
    problem: MakeProblem = _usual_problem


class Pattern(NamedTuple):
    """A page for many paths: those that match. `label` is their name in metrics.

    With the label OTHER it only says in its own form that there is no such page.
    """

    label: str
    path: re.Pattern[str]
    route: Route


class _Found(NamedTuple):
    path: str
    page: Route | None
    query: str


class Port:
    """A port with pages by path. Make it in the running event loop.

    `tokens` says which of the pages need a token; a warning shows it.
    `patterns` are for paths without a page of their own, the first that matches counts; they match
    the path as it was sent. `on_refused` is called for each refused request; without a request, if
    its bytes were not HTTP. It must be quick and must not fail.
    """

    def __init__(
        self,
        pages: Mapping[str, Route],
        ledger: Ledger,
        *,
        flag: str,
        tokens: str = "needed for all posts, unless access is open",
        connections_max: int,
        header_s_max: float,
        keepalive_s_max: float,
        connection_s_max: float = math.inf,
        certificate: Certificate | None = None,
        proxies: Proxies | None = None,
        plain_bodies: PlainBodies | None = None,
        patterns: Sequence[Pattern] = (),
        on_refused: OnRefused = lambda _request, _refused: None,
    ) -> None:
        self._patterns = patterns
        self._on_refused = on_refused
        self._pages = pages
        self._ledger = ledger
        self._flag = flag
        self._tokens = tokens
        self.connections = Connections(
            self.answer,
            self._malformed,
            closed=ledger.connection_closed,
            plain_bodies=plain_bodies,
            connections_max=connections_max,
            header_s_max=header_s_max,
            keepalive_s_max=keepalive_s_max,
            connection_s_max=connection_s_max,
            certificate=certificate,
            proxies=proxies,
        )
        self._log = get_logger("port")
        self._occasionally = Occasionally(10.0)

    async def start(
        self,
        host: str,
        port: int,
        given: Sequence[socket.socket] = (),
        accepts: Callable[[], bool] = lambda: True,
    ) -> str:
        """Listen, or serve at the sockets that are `given`; return the real HOST:PORT.

        These listen already; it accepts from them once `accepts` says so. Raises StartError that
        names the flag.
        """
        return await self.connections.listen(
            host, port, self._flag, tokens=self._tokens, given=given, accepts=accepts
        )

    def answer(self, request: Request) -> Reply:
        """Answer a request, of a connection of this port or of a server of others; see Route."""
        received_s = monotonic_s()
        head = request.head
        found: _Found | None = head.route
        if found is None:
            found = head.route = self._find(head)
        path, page, query = found
        answer: Reply
        try:
            if page is None or head.method not in page.methods:
                raise self._no_page(path, page)
            if not head.is_plain:
                head.require_meant()
            answer = page.answer(request, query, received_s)
        except ConnectionError:
            raise  # the client is gone: nothing was kept, nothing to answer or to log
        except Exception as error:
            answer = self._failed(request, found, error)
        if isinstance(answer, Answer):
            self._count(path if page is not None else OTHER, answer, received_s)
        elif answer is not None:
            return self._finish(request, found, answer, received_s)
        return answer

    async def _finish(
        self,
        request: Request,
        found: _Found,
        coming: Coroutine[Any, Any, Answer],
        received_s: float,
    ) -> Answer:
        try:
            answer = await coming
        except ConnectionError:
            raise
        except Exception as error:
            answer = self._failed(request, found, error)
        self._count(found.path, answer, received_s)
        return answer

    def _count(self, route: str, answer: Answer, received_s: float) -> None:
        answered_s = answer.began_s or monotonic_s()
        self._ledger.request_answered(route, answer.status, answered_s - received_s)

    def _find(self, head: Head) -> _Found:
        path, _, query = head.raw_path.partition("?")
        page = self._pages.get(path)
        if page is None:
            path = head.message.url.path  # perhaps percent-encoded, or a whole URL
            page = self._pages.get(path)
        if page is None:
            sent = sent_path(head)
            for each in self._patterns:
                if each.path.fullmatch(sent):
                    return _Found(each.label, each.route, query)
        return _Found(path, page, query)

    def _no_page(self, path: str, page: Route | None) -> Refused:
        if page is None:
            labels = [each.label for each in self._patterns if each.label != OTHER]
            known = [*self._pages, *labels[:PATTERNS_SHOWN_MAX]]
            known.sort(key=lambda each: len(commonprefix((each, path))), reverse=True)  # noqa: RUF071  letters count
            text = f"did you mean {known[0]}? There are also {', '.join(known[1:])}"
            return Refused("not_found", text)
        return Refused("method_not_allowed", f"{path} allows {' and '.join(page.methods)}")

    def _failed(self, request: Request, found: _Found, error: Exception) -> Answer:
        """Return the answer for what a page has raised."""
        if isinstance(error, Refused):
            _drop_frames(error)
            answer = _refusal(request, found.page, error)
            self._on_refused(request, error)
            return answer
        kept_back = self._occasionally.due(found.path)
        if kept_back is not None:
            self._log.error("request_failed", exc_info=error, similar_suppressed=kept_back)
        return problem(Refused("internal", _MALFORMED["internal"]), close=True)

    def _malformed(self, code: str) -> Answer:
        """Answer bytes that the parser did not take."""
        refused = Refused(code, _MALFORMED[code])
        answer = problem(refused, close=True)
        self._on_refused(None, refused)
        self._ledger.request_answered(OTHER, answer.status, 0.0)
        return answer


def _refusal(request: Request, page: Route | None, refused: Refused) -> Answer:
    headers = b""
    if refused.code == "method_not_allowed" and page is not None:
        headers = b"Allow: %b\r\n" % ", ".join(page.methods).encode()
    elif refused.code == "unauthorized":
        headers = b"WWW-Authenticate: Bearer\r\n"
    # If the body has not arrived, the connection is closed: the service does not wait for it.
    # After a CONNECT too: the parser takes what follows for another protocol.
    unread = request.method == "CONNECT" or not request.is_whole
    close = refused.code in _LAST or unread
    if page is None:
        return problem(refused, headers=headers, close=close)
    return page.problem(request, refused, headers, close)


def _drop_frames(error: BaseException | None) -> None:
    """Free what the frames of an exception hold: the body, and all that was decoded of it.

    Such a frame may also hold a future, and the future holds the exception. So the frames would
    live until the garbage collector runs, and a flood of refused posts would fill hundreds of
    megabytes.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


async def answered(page: Route, request: Request, query: str, received_s: float) -> Answer:
    """Wait for the answer of a page. The page must not be one that replies later."""
    answer = page.answer(request, query, received_s)
    if isinstance(answer, Answer):
        return answer
    assert answer is not None, "the page replies by itself"
    return await answer


def sent_path(head: Head) -> str:
    """Return the path of a request as it was sent, percent-encoded."""
    path = head.raw_path.partition("?")[0]
    return path if path.startswith("/") else head.message.url.raw_path


def probes(health: Callable[[], tuple[int, bytes]]) -> dict[str, Route]:
    """Return the pages /livez and /readyz."""

    def livez(_request: Request, _query: str, _received_s: float) -> Answer:
        return Answer(200, b"ok\n", TEXT)

    def readyz(_request: Request, _query: str, _received_s: float) -> Answer:
        return Answer(*health())

    return {"/livez": Route(READ, livez), "/readyz": Route(READ, readyz)}
