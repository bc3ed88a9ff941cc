"""The pages of the data port as handlers of aiohttp.web, over a pipeline in the app's own loop.

A request gets the answer that `ingest serve` gives: status, body, headers, counters. It comes as a
web.Response, so the app's middlewares and signals see it. The limits and times for bodies, the
tokens, and what one sender may send hold as there.
Does not: parse HTTP, or defend the connection. aiohttp.web does that, and bounds less: neither the
number of connections nor, for a minute, the time of a head. So a proxy stands before the app. Of a
sender with a limit of connections the requests in work are counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Literal

from aiohttp import web
from aiohttp.http import RawRequestMessage

from ingest.access.tokens import OPEN, TOKEN
from ingest.app.pipeline.pipeline import Pipeline, Waiting
from ingest.formats.mapped.source import IN
from ingest.http.bodies import TAKEN
from ingest.http.clients import Client, Proxies, network_of
from ingest.http.request_and_answer import (
    KNOWN_BYTES_MAX,
    KNOWN_MAX,
    Answer,
    Head,
    Request,
)
from ingest.receiver.pages.json import READINGS
from ingest.receiver.pages.lines import PREFIXES, WRITE_PATHS

# The pages that take posts, as paths of aiohttp.web.
POSTS = (
    READINGS,
    *(prefix + path for prefix in PREFIXES for path in WRITE_PATHS),
    IN + "{source:.+}",
)
_NOBODY_READS_IT = Answer(400, b"", close=True)  # the client is gone


class _Exchange(Waiting):
    """One request of an app. `transport` None: the client is gone."""

    def __init__(
        self, transport: asyncio.Transport | None, *, is_open: bool, proxies: Proxies | None
    ) -> None:
        super().__init__()
        self.transport = transport
        self.is_open = is_open
        self.proxies = proxies

    @property
    def valve(self) -> _Exchange:
        """Itself: what shuts and opens the socket."""
        return self

    def shut(self, _why: int) -> None:
        """Do nothing: aiohttp reads no further while nobody reads the body."""

    def open(self, _why: int) -> None:
        """Do nothing."""


class Front:
    """Answers the requests of one app. `is_open`: nobody needs a token.

    Requests with the same head share it, as on the data port.
    """

    def __init__(self, pipeline: Pipeline, *, is_open: bool) -> None:
        self._pipeline = pipeline
        self._is_open = is_open
        self._heads: dict[Any, Head] = {}

    async def handle(self, page: str, asked: web.Request) -> web.StreamResponse:
        """Answer a request to a page: a path of `routes`, without the prefix."""
        endpoint = self._pipeline.endpoint
        head, content = self._head(page, asked), asked.content
        proxies = endpoint.port.connections.proxies
        exchange = _Exchange(asked.transport, is_open=self._is_open, proxies=proxies)
        address = asked.remote or ""
        request = Request(head, Client(address, network_of(address)), exchange, None, content)
        try:
            if content.at_eof():  # it has no body, or a middleware has read it
                request.body, request.content = await asked.read(), None
            elif head.is_plain and content.is_eof():
                request.body, request.content = content.read_nowait(), None
            if request.body is not None and len(request.body) != content.total_bytes:
                raise RuntimeError(TAKEN)
            if head.is_plain and request.body is not None:
                await endpoint.posts.plain_bodies.loop_share.wait(len(request.body))
                request.in_round = True
            answer = await exchange.answer(endpoint.port.answer(request))
        except ConnectionError:
            answer = _NOBODY_READS_IT
        finally:
            exchange.place.left()
        return _response(answer)

    def _head(self, page: str, asked: web.Request) -> Head:
        key = asked.method, asked.version, asked.raw_path, asked.raw_headers
        head = self._heads.get(key)
        if head is None:
            head = Head(_message(page, asked), has_body=asked.body_exists)
            head_bytes = sum(len(name) + len(value) for name, value in asked.raw_headers)
            if head_bytes + len(asked.raw_path) <= KNOWN_BYTES_MAX:
                if len(self._heads) >= KNOWN_MAX:
                    self._heads.clear()
                self._heads[key] = head
        return head


def _message(page: str, asked: web.Request) -> RawRequestMessage:
    """Return a head as the parser gives it; its path begins where that of the page does."""
    path, url, resource = asked.raw_path, asked.rel_url, asked.match_info.route.resource
    assert resource is not None, "the router has found it"
    # The prefixes of `routes` and of the apps around this one: what stands before the page's path.
    prefix = resource.canonical.rpartition(page.partition("{")[0])[0]
    if not path.startswith(prefix + "/"):  # percent-encoded, or a whole URL
        path = f"{url.path}?{url.raw_query_string}"
    if prefix:
        path = path.removeprefix(prefix)
        url = url.with_path(url.path.removeprefix(prefix))
    return RawRequestMessage(
        asked.method,
        path,
        asked.version,
        asked.headers,
        asked.raw_headers,
        should_close=not asked.keep_alive,
        compression=None,
        upgrade=False,
        chunked="Transfer-Encoding" in asked.headers,
        url=url,
    )


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type.decode()} if answer.body else {}
    for line in answer.headers.decode().splitlines():
        name, _, value = line.partition(": ")
        headers[name] = value
    response = web.Response(status=answer.status, body=answer.body, headers=headers)
    if answer.closes:
        response.force_close()
    return response


async def _expect(_asked: web.Request) -> None:
    """Leave `100 Continue` to the pages: they send it once they want the body."""


def routes(
    pipeline: Pipeline,
    *,
    access: Literal["open", "token"],
    prefix: str = "",
    only: Sequence[str] = POSTS,
) -> list[web.RouteDef]:
    """Return the handlers of a pipeline for the router of an app; see `context`.

    `access`: everybody who reaches the app may post ("open"), or who has a token of the pipeline's
    `tokens_file` ("token"). `only` are the paths, below `prefix`; POSTS are the pages that take
    posts. Others: /livez, /readyz, /openapi.json, the own paths of sources, and what clients of
    InfluxDB ask for (/ping, /health, /query, /settings).
    The server must not decompress bodies: `auto_decompress=False` for AppRunner or run_app. One
    that does gets 500 for compressed bodies, and the answer says why.
    Raises ValueError if `access` is neither, or a page does not begin with a slash.
    """
    if access not in (OPEN, TOKEN):
        raise ValueError(f'access is "open" or "token", not {access!r}')
    if isinstance(only, str) or not all(page.startswith("/") for page in only):
        raise ValueError(f'`only` has pages such as ("/v1/readings",), not {only!r}')
    handle = Front(pipeline, is_open=access == OPEN).handle
    return [
        web.route("*", prefix.rstrip("/") + page, partial(handle, page), expect_handler=_expect)
        for page in only
    ]


def context(pipeline: Pipeline) -> Callable[[web.Application], AsyncIterator[None]]:
    """Return what opens the pipeline before the app listens, for `app.cleanup_ctx`.

    It drains it when the app has ended: no handler is in work any more then. Raises StartError in
    the app's start.
    """

    async def opened(_app: web.Application) -> AsyncIterator[None]:
        async with pipeline:
            yield

    return opened
