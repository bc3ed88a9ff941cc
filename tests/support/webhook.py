"""A real target of a forwarder: an aiohttp server that keeps what it takes, and fails as told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from aiohttp import web

from ingest.model.block import Block
from ingest.model.reading import Reading
from ingest.roles.outlet import encode_message
from ingest.system.clock import rfc3339
from tests.support.journals import block_of
from tests.support.tcp_ports import free_port

Item = tuple[str, str, str, float]  # ts, device_id, metric, value


class Came(NamedTuple):
    """A post: the how manieth it was, from 1, and what it had."""

    number: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return self.headers["Idempotency-Key"]


Behave = Callable[[Came], Awaitable[web.StreamResponse | None]]


async def _take(_came: Came) -> None:
    return None


class Webhook:
    """`async with Webhook(behave) as target`. Without an answer of `behave` a post is taken: 204.

    What is taken is kept once by its key.
    """

    def __init__(self, behave: Behave = _take, *, port: int | None = None) -> None:
        self.behave = behave
        self.kept: dict[str, list[Item]] = {}
        self.came: list[Came] = []
        self.again = 0  # posts whose key was kept already
        self._port = port or free_port()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self._port}/hook?token=secret"

    @property
    def items(self) -> list[Item]:
        """All readings that were kept, in order."""
        return [item for items in self.kept.values() for item in items]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, again on the same port."""
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_post("/hook", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()

    async def stop(self) -> None:
        """Close the port and all connections. Repeatable."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        came = Came(len(self.came) + 1, request.headers, body)
        self.came.append(came)
        answer = await self.behave(came)
        if answer is not None:
            return answer
        self.keep(came)
        return web.Response(status=204)

    def keep(self, came: Came) -> None:
        """Keep what a post has, unless its key is kept already."""
        items = [tuple(each.values()) for each in json.loads(came.body)]
        if came.key in self.kept:
            self.again += 1
            assert self.kept[came.key] == items, "the same key has other readings"
        self.kept[came.key] = items


def items_of(those: Iterable[Reading]) -> list[Item]:
    """Return readings as a target gets them."""
    return [(rfc3339(each.ts_us), each.device_id, each.metric, each.value) for each in those]


def message_of(block: Block, sequence: int) -> bytes:
    """Return a block as the message that a gateway publishes."""
    block.sequence = sequence
    block.seal()
    return encode_message(block)


def messages_of(readings: list[Reading], rows: int) -> list[bytes]:
    """Return readings as messages of so many rows."""
    return [
        message_of(block_of(readings[at : at + rows]), 1 + at // rows)
        for at in range(0, len(readings), rows)
    ]
