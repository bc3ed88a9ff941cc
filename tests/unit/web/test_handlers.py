"""The pages in an app of aiohttp: a real app on a real socket, over fakes behind the receiver."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiohttp import web

from ingest.access.tokens import Tokens
from ingest.config.settings import Settings
from ingest.http.request_and_answer import KNOWN_MAX
from ingest.http.rounds import POST_BYTES, ROUND_BYTES
from ingest.model.errors import BufferFull
from ingest.web import POSTS, context, routes
from tests.support import constants
from tests.support.receiver import (
    BAD,
    GOOD,
    JSON,
    SECRET,
    Receiver,
    Reply,
    head,
    in_force,
    line,
    post,
    until,
)

ALL = ("/{path:.*}",)  # all pages of the data port
SMALL: dict[str, Any] = {"body_bytes_max": 2_000, "body_s_max": 0.3, "post_rows_max": 5}
TOKEN = {"Authorization": f"Bearer {SECRET}"}


class App(Receiver):
    """An app with the pages. Its pipeline has an endpoint, and nothing else."""

    def __init__(self, tokens: Tokens | None, **settings: Any) -> None:
        super().__init__(Settings(**settings), tokens, levels=("durable", "buffered"))
        self.pipeline: Any = SimpleNamespace(endpoint=self.endpoint)
        self.runners: list[web.AppRunner] = []

    async def listen(self, app: web.Application, **options: Any) -> str:
        """Serve an app; return its HOST:PORT. `options` are those of its server."""
        runner = web.AppRunner(app, access_log=None, **{"auto_decompress": False, **options})
        await runner.setup()
        self.runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        return f"{host}:{port}"

    async def close(self) -> None:
        """End clients, apps and endpoint, in this order."""
        for client in self._clients:
            await client.close()
        for runner in self.runners:
            await runner.cleanup()
        await self.endpoint.close()


@contextlib.asynccontextmanager
async def mounted(
    access: Any = "open",
    *,
    prefix: str = "",
    only: Sequence[str] = POSTS,
    tokens: Tokens | None = None,
    middlewares: Sequence[Any] = (),
    server: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[App]:
    """Run an app with the pages. At its end the balance is 0 and nothing is held."""
    settings, smaller = constants.split(settings)
    with constants.constants(**smaller):
        app = App(tokens, **settings)
    served = web.Application(middlewares=middlewares)
    served.add_routes(routes(app.pipeline, access=access, prefix=prefix, only=only))
    app.address = await app.listen(served, **(server or {}))
    try:
        yield app
    finally:
        await app.close()
    assert app.endpoint._keeping.in_work == 0
    assert app.ledger.at_receiver == 0
    assert app.ledger.imbalance == 0
    assert app.inlet.reserved == 0
    assert app.endpoint.senders._connections == {}


async def test_posts_on_one_connection_are_answered_and_counted() -> None:
    """Also those that are pipelined; a durable one when it is on the disk."""
    async with mounted() as app:
        said = (
            post(GOOD, "?ack=durable"),
            post(GOOD, "?ack=buffered"),
            post(b"[%b,%b]" % (GOOD, BAD)),
        )
        client = await app.connect(b"".join(said))
        replies = [await client.reply() for _ in said]
        assert [reply.status for reply in replies] == [202, 202, 202]
        assert [reply.document["ack"] for reply in replies] == ["durable", "buffered", "durable"]
        assert (app.ledger.accepted, app.inlet.durable) == (3, [True, False, True])
        assert app.ledger.requests["/v1/readings", 202] == 3


PACKED = gzip.compress(GOOD)
LINES = b"climate,host=a t=1 1750000000000000000"


def _lines(body: bytes, target: str = "/write") -> bytes:
    return head("POST", target, {"Content-Length": str(len(body))}) + body


def _packed(body: bytes, encoding: str = "gzip") -> bytes:
    return post(body, "", {"Content-Encoding": encoding})


def _chunks(*chunks: bytes) -> bytes:
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return head("POST", "/v1/readings", {**JSON, "Transfer-Encoding": "chunked"}) + b"".join(parts)


SAID = {
    "reading": post(GOOD),
    "invalid": post(BAD),
    "not json": post(b"{"),
    "empty": post(b""),
    "too many readings": post(b"[" + b",".join([GOOD] * 6) + b"]"),
    "unknown parameter": post(GOOD, "?a=b"),
    "unknown ack": post(GOOD, "?ack=now"),
    "media type": post(GOOD, "", {"Content-Type": "text/html"}),
    "too large, not sent": head("POST", "/v1/readings", {**JSON, "Content-Length": "2001"}),
    "too large in chunks": _chunks(b" " * 1_500, b" " * 1_500),
    "chunks": _chunks(GOOD[:10], GOOD[10:]),
    "gzip": _packed(PACKED),
    "gzip that is cut off": _packed(PACKED[:-1]),
    "gzip that is none": _packed(GOOD),
    "br": _packed(GOOD, "br"),
    "two encodings": post(GOOD).replace(
        b"\r\n\r\n", 2 * b"\r\nContent-Encoding: gzip" + b"\r\n\r\n"
    ),
    "slow body": head("POST", "/v1/readings", {**JSON, "Content-Length": "50"}) + b"{",
    "method": head("PUT"),
    "HEAD": head("HEAD", "/v1/readings"),
    "OPTIONS": head("OPTIONS", "/v1/readings"),
    "unknown path": head("GET", "/nothing?a=b"),
    "encoded path": post(GOOD).replace(b"readings", b"%72eadings"),
    "whole url": post(GOOD).replace(b"/v1", b"http://door/v1"),
    "http 1.0": post(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "foreign page": post(GOOD, "", {"Sec-Fetch-Site": "cross-site"}),
    "expect": post(GOOD, "", {"Expect": "a miracle"}),
    "lines": _lines(LINES),
    "lines with a fault": _lines(LINES + b"\nx"),
    "lines in vain": _lines(b"x"),
    "lines below": _lines(LINES, "/influx/api/v2/write"),
    "source": _lines(b"{}", "/v1/in/nobody"),
    "ping": head("GET", "/ping"),
    "ready": head("GET", "/readyz"),
    "openapi": head("GET", "/openapi.json"),
    "set-up": head("GET", "/api/v2/buckets"),
    "token": post(GOOD, "", TOKEN),
    "wrong token": post(GOOD, "", {"Authorization": "Bearer x"}),
    "no token": post(GOOD, "?p="),
}


def _comparable(reply: Reply) -> Any:
    """Leave out what aiohttp says of itself, and what varies."""
    varies = {"date", "server", "connection", "retry-after", "content-length"}
    headers = {name: value for name, value in reply.headers.items() if name not in varies}
    return reply.status, headers, "retry-after" in reply.headers, reply.body


@pytest.mark.parametrize("access", ["open", "token"])
@pytest.mark.parametrize("name", SAID)
async def test_answer_is_that_of_the_data_port(name: str, access: str) -> None:
    """Status, headers, body, counters, what is kept, and who counts as refused."""
    said, found = SAID[name], []
    tokens = in_force(line())
    async with mounted(access, only=ALL, tokens=tokens, **SMALL) as app:
        app.database.hold("x")
        own = App(tokens, access=access, **SMALL)
        own.address = await own.endpoint.start("127.0.0.1", 0)
        for each in (app, own):
            client = await each.connect(said)
            reply = await client.reply(head_only=name == "HEAD")
            requests = dict(each.ledger.requests)
            refused = [at[1:4] for at in each.refused_posts._posts]
            found.append((_comparable(reply), requests, each.inlet.readings, refused))
            assert each.ledger.imbalance == 0
        await own.close()
    assert found[0] == found[1]


async def test_body_that_comes_late_is_awaited_and_one_that_is_cut_off_is_not_kept() -> None:
    """The client that leaves costs no line in the log."""
    async with mounted() as app:
        said = post(GOOD)
        client = await app.connect(said[:-20])
        await asyncio.sleep(0.01)
        await client.send(said[-20:])
        assert (await client.reply()).status == 202
        with structlog.testing.capture_logs() as logs:
            gone = await app.connect(said[:-20])
            await until(lambda: app.endpoint._keeping.in_work == 1)
            gone.writer.transport.abort()
            await until(lambda: app.endpoint._keeping.in_work == 0)
        assert logs == []
        assert len(app.inlet.blocks) == 1


async def test_client_that_leaves_before_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Its reading is kept; also if the server cancels such handlers, nothing stays behind."""
    for cancels in (False, True):
        async with mounted(server={"handler_cancellation": cancels}) as app:
            client = await app.waits(post(GOOD))
            client.writer.transport.abort()
            await asyncio.sleep(0.05)
            app.inlet.open.set()
            await until(lambda: app.endpoint._keeping.in_work == 0)
            assert len(app.inlet.blocks) == (0 if cancels else 1)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_continue_is_said_when_the_body_is_wanted() -> None:
    """Who may not post gets its refusal instead, and sends no body."""
    async with mounted("token", tokens=in_force(line())) as app:
        asks = {**JSON, "Content-Length": str(len(GOOD)), "Expect": "100-continue"}
        client = await app.connect(head(headers=asks | TOKEN))
        assert (await client.reply()).status == 100
        await client.send(GOOD)
        assert (await client.reply()).status == 202
        assert (await app.send(head(headers=asks))).status == 401


async def test_server_that_decompresses_is_told_what_to_set() -> None:
    """Nothing of such a body is kept: it might have been cut off. Plain bodies are taken."""
    async with mounted(server={"auto_decompress": True}) as app:
        for said in (_packed(PACKED), _packed(PACKED[:-1])):
            reply = await app.send(said)
            assert (reply.status, reply.code) == (500, "internal")
            assert "auto_decompress=False" in reply.document["detail"]
        assert app.inlet.blocks == []
        assert (await app.post(GOOD)).status == 202


@web.middleware
async def reading(request: web.Request, handler: Any) -> web.StreamResponse:
    """Read the body before the handler does, and add to its answer."""
    body = await request.read()
    if b"forbidden" in body:
        raise web.HTTPForbidden
    response: web.StreamResponse = await handler(request)
    response.headers["X-Read"] = str(len(body))
    return response


async def test_middlewares_see_request_and_answer() -> None:
    """One has read the body, and all the same it is kept; also one that is compressed."""
    async with mounted(middlewares=[reading]) as app:
        for said, size in ((post(GOOD), len(GOOD)), (_packed(PACKED), len(PACKED))):
            reply = await app.send(said)
            assert (reply.status, reply.headers["x-read"]) == (202, str(size))
        assert (await app.post(GOOD.replace(b"d1", b"forbidden"))).status == 403
        assert len(app.inlet.blocks) == 2


@web.middleware
async def taking(request: web.Request, handler: Any) -> web.StreamResponse:
    """Take what has come of the body, and keep it to itself."""
    await request.content.readany()
    answer: web.StreamResponse = await handler(request)
    return answer


async def test_what_a_middleware_has_taken_is_missed() -> None:
    """Else the rest of the lines would be acknowledged as if it was all."""
    async with mounted(middlewares=[taking]) as app:
        said = _lines(LINES + b"\n" + LINES)
        assert (await app.send(said)).status == 500
        client = await app.connect(said[: 1 - len(LINES)])
        await asyncio.sleep(0.05)
        await client.send(said[1 - len(LINES) :])
        assert b"a middleware has taken a part" in (await client.reply()).body
        assert app.inlet.blocks == []


@pytest.mark.parametrize("prefix", ["/sensors", "/sensors/"])
async def test_pages_are_below_a_prefix(prefix: str) -> None:
    """Also if a client encodes it; all other paths are the app's."""
    async with mounted(prefix=prefix, only=(*POSTS, "/readyz")) as app:
        for start in ("/sensors", "/%73ensors", "http://door/sensors"):
            reply = await app.send(
                post(GOOD, "?ack=buffered").replace(b"/v1", start.encode() + b"/v1")
            )
            assert (reply.status, reply.document["ack"]) == (202, "buffered")
        assert (await app.send(head("GET", "/sensors/readyz"))).body == b'{"state":"full"}'
        for path in ("/readyz", "/sensors", "/sensors/livez"):
            assert b"404: Not Found" in (await app.send(head("GET", path))).body
        around = post(GOOD).replace(b"/v1", b"/sensors/v1/in/%2e%2e")
        assert (await app.send(around)).code == "not_found"  # and not the page of readings
        within, whole = web.Application(), web.Application()
        within.add_routes(routes(app.pipeline, access="open", prefix=prefix, only=ALL))
        whole.add_subapp("/plant", within)
        app.address = await app.listen(whole)
        for start in ("/plant/sensors", "/%70lant/sensors", "http://door/plant/%73ensors"):
            reply = await app.send(post(GOOD).replace(b"/v1", start.encode() + b"/v1"))
            assert reply.status == 202
        reply = await app.send(head("GET", "/plant/sensors/nothing"))
        assert (reply.status, reply.code) == (404, "not_found")


async def test_access_is_that_of_each_app() -> None:
    """Of two apps on one pipeline one is open. Who mounts the pages says which."""
    async with mounted("token", tokens=in_force(line())) as app:
        inside = web.Application()
        inside.add_routes(routes(app.pipeline, access="open"))
        outside, app.address = app.address, await app.listen(inside)
        assert (await app.post(GOOD)).status == 202
        app.address = outside
        assert (await app.post(GOOD)).status == 401
        assert (await app.post(GOOD, "", TOKEN)).status == 202
        assert app.ledger.senders.keys() == {"127.0.0.1", "token garden"}
        for wrong in ("", "auto", None):
            for only in ("/v1/readings", ("v1/readings",)):
                with pytest.raises(ValueError, match="`only` has pages"):
                    routes(app.pipeline, access="open", only=only)
            with pytest.raises(ValueError, match="access"):
                routes(app.pipeline, access=wrong)  # type: ignore[arg-type]


@web.middleware
async def behind_proxy(request: web.Request, handler: Any) -> web.StreamResponse:
    """Take the client from a header, as a middleware for proxies does."""
    client = request.headers.get("X-Real-Ip")
    answer: web.StreamResponse = await handler(request.clone(remote=client) if client else request)
    return answer


async def test_sender_is_the_peer_or_whom_somebody_trusted_names() -> None:
    """The header of a proxy counts only if the proxy is trusted, by a setting or by the app."""
    forwarded = {"X-Forwarded-For": "10.1.1.1"}
    for trusted, sender in (("", "127.0.0.1"), ("127.0.0.0/8", "10.1.1.1")):
        async with mounted(trusted_proxies=trusted) as app:
            assert (await app.post(GOOD, "", forwarded)).status == 202
            assert app.ledger.senders.keys() == {sender}
    async with mounted(middlewares=[behind_proxy], sender_posts_per_s_max=0.01) as app:
        for number in (1, 2):
            by = {"X-Real-Ip": f"10.1.1.{number}"}
            assert [(await app.post(GOOD, "", by)).status for _ in range(2)] == [202, 429]
        assert app.ledger.senders.keys() == {"10.1.1.1", "10.1.1.2"}


async def test_sender_may_have_so_many_requests_in_work() -> None:
    """Its places are given back with its answers, whatever these are."""
    async with mounted(sender_connections_max=2) as app:
        waiting = [await app.waits(post(GOOD)) for _ in range(2)]
        reply = await app.post(GOOD)
        assert (reply.status, reply.code) == (429, "too_many_connections")
        app.inlet.error = BufferFull(1.0)
        app.inlet.open.set()
        assert [(await each.reply()).status for each in waiting] == [503, 503]
        app.inlet.error = None
        assert (await app.post(GOOD)).status == 202


async def test_heads_that_never_come_again_do_not_fill_the_memory() -> None:
    """Nor do large ones; the next usual one is answered as before."""
    async with mounted() as app:
        found: list[Any] = [each.handler for each in app.runners[0].app.router.routes()]
        (front,) = {each.func.__self__ for each in found}
        client = await app.connect()
        for number in range(KNOWN_MAX + 10):
            await client.send(post(GOOD, "", {"X-Number": str(number)}))
            assert (await client.reply()).status == 202
        assert len(front._heads) == 10
        await client.send(post(GOOD, "", {"X-Large": "x" * 3_000}))
        assert (await client.reply()).status == 202
        assert len(front._heads) == 10


async def test_slow_head_ends_as_an_idle_connection_does() -> None:
    """Not before: docs/use/library.md says so, and that a proxy belongs before the app."""
    async with mounted(server={"keepalive_timeout": 0.2}) as app:
        client = await app.connect(post(GOOD)[:20])
        assert not await client.closed(0.05)
        assert await client.closed()


async def test_posts_wait_for_a_round_with_a_share_left() -> None:
    """So they leave time to the handlers of the app, however many come."""
    async with mounted() as app:
        share = app.endpoint.posts.plain_bodies.loop_share
        share._bytes_left = 1
        assert (await app.post(GOOD)).status == 202
        assert share._bytes_left == 1 - len(GOOD) - POST_BYTES
        assert (await app.post(GOOD)).status == 202
        assert share._bytes_left == ROUND_BYTES


async def test_pipeline_that_stops_takes_no_post() -> None:
    """503 as of serve, and the connection ends; so also after its end."""
    async with mounted() as app:
        app.admission.code = "draining"
        client = await app.connect(post(GOOD))
        reply = await client.reply()
        assert (reply.status, reply.code) == (503, "draining")
        assert await client.closed()


async def test_app_that_ends_answers_what_is_in_work() -> None:
    """And after that the pipeline closes. It opens before the app listens."""
    steps: list[str] = []
    app = App(None)

    class Pipeline:
        endpoint = app.endpoint

        async def __aenter__(self) -> None:
            steps.append("opened")

        async def __aexit__(self, *_: object) -> None:
            steps.append(f"closed, {app.endpoint._keeping.in_work} in work")

    pipeline: Any = Pipeline()
    served = web.Application()
    served.add_routes(routes(pipeline, access="open"))
    served.cleanup_ctx.append(context(pipeline))
    app.address = await app.listen(served)
    assert steps == ["opened"]
    client = await app.waits(post(GOOD))
    ending = asyncio.create_task(app.runners[0].cleanup())
    await asyncio.sleep(0.02)
    app.inlet.open.set()
    reply = await client.reply()
    assert reply.status == 202
    await ending
    assert await client.closed()
    assert steps == ["opened", "closed, 0 in work"]
    await app.close()
