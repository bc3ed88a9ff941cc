"""The admin port: probes, metrics, `hold`, `refused`, `senders`, and the dashboard's pages.

Promises: probes and /metrics need no token, and there is room for them whatever else is asked for.
`hold/release` and `refused` (the last refused posts) need the admin token, or must come from our
own page. `hold` may quote a reading, so only those who may see the dashboard get it. No page can
starve the data port, however often it is asked for: few requests are in work at once, and a page
that takes long is made once for all who wait for it.
Does not: take readings, or know the pages of the dashboard.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

from ingest.admin.exposition import Exposition
from ingest.admin.guard import CSRF_HEADER, Guard
from ingest.http.bodies import Bodies
from ingest.http.request_and_answer import Answer, Request, accepts_gzip
from ingest.http.routes import POST, READ, Port, Route, answered, probes
from ingest.model.errors import Refused
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger

METRICS_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
# Limits of this port. Settings for the data port do not change them.
CONNECTIONS_MAX, HEADER_S_MAX, KEEPALIVE_S_MAX = 256, 10.0, 75.0
# Requests in work at once. Their sum is less than CONNECTIONS_MAX: the rest is for probes.
PAGES_MAX, ACTIONS_MAX, SCRAPES_MAX, LOG_INS_MAX = 112, 16, 32, 32
# Pages that take a millisecond or more and change nothing.
SHARED = (
    *("/history", "/devices", "/devices/list", "/devices/newest"),
    *("/dead-letters", "/dead-letters/count", "/runbook.md"),
)
# Of a page that is made for all who wait for it.
SHARE = 20
PAUSE_S_MAX = 1.0
KEPT = 4  # answers to different queries
WAITING_MAX = 16  # different queries of a page at once
GZIP_LEVEL = 6

See = Callable[[Request], Hashable]


class Admin:
    """The admin port: probes, /metrics, and what `actions` add, if there are any.

    `health` returns status and body of /readyz. `ledger` counts requests.
    """

    def __init__(
        self,
        exposition: Exposition,
        health: Callable[[], tuple[int, bytes]],
        *,
        ledger: Ledger | None = None,
        actions: Actions | None = None,
    ) -> None:
        self._exposition = exposition
        metrics = shared(Route(READ, self._metrics), lambda _request: None, compress=False)
        self._port = Port(
            {
                **(actions.routes if actions is not None else {}),
                "/metrics": Few(SCRAPES_MAX).bounded(metrics),
                **probes(health),
            },
            Ledger() if ledger is None else ledger,
            flag="--admin-listen",
            tokens="for page and actions, not for probes and /metrics",
            connections_max=CONNECTIONS_MAX,
            header_s_max=HEADER_S_MAX,
            keepalive_s_max=KEEPALIVE_S_MAX,
        )

    async def start(self, host: str, port: int, given: Sequence[socket.socket] = ()) -> str:
        """Listen, or serve at the sockets that are `given`; return the real HOST:PORT.

        Raises StartError that names --admin-listen.
        """
        return await self._port.start(host, port, given)

    async def close(self) -> None:
        """Close the port. Repeatable."""
        await self._port.connections.close()

    async def _metrics(self, _request: Request, _query: str, _at_s: float) -> Answer:
        return Answer(200, self._exposition.text(), METRICS_TEXT)


class Actions:
    """What needs a token, or must come from our own page. `bodies` are those of `hold/release`.

    `release_hold(dead_letter)` makes writers that wait try at once, and returns whether they
    waited. `message` returns the last message of the database while they wait. `pages` are further
    routes, which check access themselves. `refused_posts` lists the last refused posts,
    `senders` what each has sent.
    """

    def __init__(
        self,
        guard: Guard,
        bodies: Bodies,
        *,
        message: Callable[[], str],
        release_hold: Callable[[bool], bool],
        refused_posts: Callable[[], list[dict[str, Any]]],
        senders: Callable[[], list[dict[str, Any]]],
        pages: Mapping[str, Route],
    ) -> None:
        self._message = message
        self._guard = guard
        self._release_hold = release_hold
        self._refused_posts = refused_posts
        self._senders = senders
        self._bodies = bodies
        self.routes = self._bounded(pages)
        self._log = get_logger("admin")

    def _bounded(self, pages: Mapping[str, Route]) -> dict[str, Route]:
        few, few_log_ins, few_own = Few(PAGES_MAX), Few(LOG_INS_MAX), Few(ACTIONS_MAX)
        own = {
            "/hold": self._told("said", self._message, self._guard.check_look, headers=b""),
            "/hold/release": Route(POST, self._release),
            "/refused": self._told("posts", self._refused_posts, self._check_act),
            "/senders": self._told("senders", self._senders, self._guard.check_look),
        }
        bounded = {
            path: (few_log_ins if path.startswith("/login") else few).bounded(
                shared(page, self._see) if path in SHARED else page
            )
            for path, page in pages.items()
        }
        # However many pages are open, an operator can still act with a command.
        return {**bounded, **{path: few_own.bounded(page) for path, page in own.items()}}

    def _see(self, request: Request) -> bool:
        self._guard.check_look(request.headers)
        return self._guard.knows(request.headers)

    def _told(
        self,
        name: str,
        tell: Callable[[], Any],
        check: Callable[[Mapping[str, str]], None],
        *,
        headers: bytes = b"Cache-Control: no-store\r\n",
    ) -> Route:
        """Return a page that tells one thing to those whom `check` does not refuse."""

        async def answer(request: Request, _query: str, _at_s: float) -> Answer:
            check(request.headers)
            return Answer(200, orjson.dumps({name: tell()}), headers=headers)

        return Route(READ, answer)

    def _check_act(self, headers: Mapping[str, str]) -> None:
        if CSRF_HEADER in headers:
            self._guard.check_act(headers)
        elif not self._guard.knows({"Authorization": headers.get("Authorization", "")}):
            raise Refused(
                "unauthorized",
                "the token is INGEST_ADMIN_TOKEN, or in the state folder's service file",
            )

    async def _release(self, request: Request, _query: str, _at_s: float) -> Answer:
        self._check_act(request.headers)
        async with self._bodies.received(request) as body:
            dead_letter = _dead_letter_asked(body)
        released = self._release_hold(dead_letter)
        if released:
            self._log.warning("hold_released", dead_letter=dead_letter)
        return Answer(200, orjson.dumps({"released": released}))


def _dead_letter_asked(body: bytes) -> bool:
    """Read `{"dead_letter": bool}`; without a body or a member it is false. Raises Refused."""
    try:
        asked: Any = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise Refused("not_json", "the body is not JSON") from error
    dead_letter = asked.get("dead_letter", False) if isinstance(asked, dict) else None
    if not isinstance(dead_letter, bool):
        raise Refused("bad_request", 'the body is {"dead_letter": true or false}')
    return dead_letter


class Few:
    """Lets few requests of some pages be in work at once; refuses more with 503 `busy`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    def bounded(self, page: Route) -> Route:
        """Return the page with the bound."""

        async def answer(request: Request, query: str, received_s: float) -> Answer:
            if self._inside >= self._most:
                raise Refused("busy", f"{self._most} requests are in work", retry_after_s=2)
            self._inside += 1
            try:
                return await answered(page, request, query, received_s)
            finally:
                self._inside -= 1

        return Route(page.methods, answer)


class _Shared:
    """A page that is made for all who wait for it at that moment, one at a time.

    It is made anew after SHARE times as long as it took, at most after a second, so it takes a
    twentieth of the time at most; it is compressed in a thread. An answer is never older than its
    request. `see` refuses who may not see it, and returns what the page shows depends on.
    """

    def __init__(self, page: Route, see: See, *, compress: bool) -> None:
        self._page = page
        self._see = see
        self._compress = compress
        self._waiting: dict[Hashable, int] = {}  # how many requests, by what they ask for
        self._made: dict[Hashable, tuple[float, Answer]] = {}
        self._making = asyncio.Lock()
        self._next_s = 0.0

    async def answer(self, request: Request, query: str, received_s: float) -> Answer:
        small = self._compress and accepts_gzip(request.headers)
        key = (query, small, self._see(request))
        if key not in self._waiting and len(self._waiting) >= WAITING_MAX:
            raise Refused("busy", "other queries of this page are waited for", retry_after_s=2)
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            async with self._making:
                began_s, answer = self._made.get(key, (0.0, None))
                if answer is None or began_s < received_s:
                    answer = await self._make(key, request, query, small=small)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        return answer

    async def _make(self, key: Hashable, request: Request, query: str, *, small: bool) -> Answer:
        await asyncio.sleep(max(0.0, self._next_s - monotonic_s()))
        began_s = monotonic_s()
        try:
            answer = await answered(
                self._page, request.without(("accept-encoding",)), query, began_s
            )
            if small and answer.status == HTTPStatus.OK:
                answer.body = await asyncio.to_thread(gzip.compress, answer.body, GZIP_LEVEL)
                answer.headers += b"Content-Encoding: gzip\r\n"
        finally:
            ended_s = monotonic_s()
            self._next_s = ended_s + min(PAUSE_S_MAX, SHARE * (ended_s - began_s))
        self._made[key] = (began_s, answer)
        while len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return answer


def shared(page: Route, see: See, *, compress: bool = True) -> Route:
    """Return a page that is made for many requests at once, and compressed for who accepts it."""
    return Route(page.methods, _Shared(page, see, compress=compress).answer)
