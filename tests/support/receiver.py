"""A real receiver on a real socket, over fakes, and a raw client that can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Self

from ingest.access.token_lines import Entries, TokenEntry, digest_of, end_line, entry_line
from ingest.access.tokens import Tokens
from ingest.app.receiving import make_endpoint
from ingest.config.settings import Settings
from ingest.http.connections import Connections
from ingest.model.block import Block
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.ports import BufferStats, Inlet
from ingest.receiver.senders import RefusedPosts
from tests.support import constants
from tests.support.fakes import FakeAdmission, FakeDatabase, FakeDeadLetters, FakeInlet

GOOD = b'{"device_id":"d1","metric":"temperature","ts":1750000000000,"value":21.5}'
BAD = b'{"device_id":"d1","metric":"temperature","ts":1750000000000,"value":"warm"}'
JSON = {"Content-Type": "application/json"}


class Reply(NamedTuple):
    """One HTTP answer as it came over the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        document = self.document
        assert document["status"] == self.status
        return str(document["code"])


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, address: str, context: ssl.SSLContext | None = None) -> Self:
        """Connect to HOST:PORT, with TLS if there is a context."""
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port), ssl=context))

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, timeout_s: float = 5.0, *, head_only: bool = False) -> Reply:
        """Read one answer; `head_only` for answers to HEAD."""
        async with asyncio.timeout(timeout_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines if line)
            }
            size = 0 if head_only else int(headers.get("content-length", "0"))
            body = await self.reader.readexactly(size)
        return Reply(int(status_line.split()[1]), headers, body)

    async def closed(self, timeout_s: float = 5.0) -> bool:
        """Whether the server closes the connection within `timeout_s` and sends nothing more."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.reader.read(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with contextlib.suppress(OSError):  # reset by the server: closed as well
            await self.writer.wait_closed()


def head(
    method: str = "POST",
    target: str = "/v1/readings",
    headers: dict[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} HTTP/{version}", "Host: door"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(body: bytes, query: str = "", headers: dict[str, str] | None = None) -> bytes:
    """Return a whole post of readings."""
    sized = {**JSON, "Content-Length": str(len(body)), **(headers or {})}
    return head("POST", "/v1/readings" + query, sized) + body


class OverFakes:
    """A data port whose posts go into an inlet; its other partners are fakes."""

    def __init__(
        self,
        inlet: Inlet,
        ledger: Ledger | None = None,
        *,
        settings: Settings | None = None,
        levels: tuple[str, ...] = ("buffered",),
        tokens: Tokens | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.dead_letters = FakeDeadLetters()
        self.admission = FakeAdmission()
        self.database = FakeDatabase()
        self.ledger = ledger or Ledger()
        self.refused_posts = RefusedPosts(self.ledger)
        self.endpoint = make_endpoint(
            self.settings,
            gateways=self.settings.gateways,
            inlet=inlet,
            dead_letters=self.dead_letters,
            ledger=self.ledger,
            admission=self.admission,
            database=self.database,
            levels=levels,
            health=lambda: (503, b'{"state":"full"}'),
            on_refused=self.refused_posts.refused,
            tokens=tokens,
        )
        self.address = ""

    @property
    def connections(self) -> Connections:
        """The open connections of the port."""
        return self.endpoint.port.connections

    def gauge(self, stats: Callable[[], BufferStats]) -> None:
        """Let the ledger know what the buffer holds."""
        self.ledger.gauges = Gauges(
            buffer=stats,
            dead_letters=DeadLetterStats,
            database_up=lambda: True,
            hold_reason=lambda: None,
        )


class Receiver(OverFakes):
    """The running receiver and its fakes."""

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens | None = None,
        *,
        inlet: FakeInlet | None = None,
        levels: tuple[str, ...] = ("buffered",),
    ) -> None:
        self.inlet = inlet or FakeInlet()
        super().__init__(self.inlet, settings=settings, levels=levels, tokens=tokens)
        self.gauge(self.stats)
        self._clients: list[Client] = []

    def stats(self) -> BufferStats:
        """Return what the fake buffer holds."""
        rows = sum(block.rows for block in self.inlet.blocks)
        return BufferStats(rows, 10**6, 0, 10**9, rows, len(self.inlet.blocks), 0, None)

    async def connect(self, said: bytes = b"") -> Client:
        """Open a connection that is closed together with the receiver; send this on it."""
        client = await Client.connect(self.address)
        self._clients.append(client)
        if said:
            await client.send(said)
        return client

    async def crowd(self, count: int, said: bytes = b"") -> list[Client]:
        """Open so many connections; then send this on each."""
        clients = [await self.connect() for _ in range(count)]
        for client in clients:
            await client.send(said)
        return clients

    async def waits(self, said: bytes) -> Client:
        """Send a post that waits for room until `inlet.open` is set."""
        self.inlet.open.clear()
        client = await self.connect(said)
        await until(lambda: self.inlet.waiting)
        return client

    async def send(self, data: bytes) -> Reply:
        """Send raw bytes on a connection of their own; return the first answer."""
        return await (await self.connect(data)).reply()

    async def post(
        self, body: bytes, query: str = "", headers: dict[str, str] | None = None
    ) -> Reply:
        """Post readings on a connection of their own."""
        return await self.send(post(body, query, headers))

    async def blocks(self, count: int) -> list[Block]:
        """Wait until `count` blocks have been put; return all."""
        await until(lambda: len(self.inlet.blocks) >= count)
        return self.inlet.blocks

    async def close(self) -> None:
        """Close all."""
        for client in self._clients:
            await client.close()
        await self.endpoint.close()


def answering() -> asyncio.Task[Any]:
    """Return the task that answers the one request in work that has to wait."""
    (task,) = [
        each
        for each in asyncio.all_tasks()
        if getattr(each.get_coro(), "__qualname__", "") == "Port._finish"
    ]
    return task


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  any condition, of any part
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running_receiver(
    tokens: Tokens | None = None, **settings: Any
) -> AsyncIterator[Receiver]:
    """Run a receiver with these settings. At its end the balance is 0 and nothing is held."""
    settings, smaller = constants.split(settings)
    with constants.constants(**smaller):
        receiver = Receiver(Settings(**settings), tokens)
    receiver.address = await receiver.endpoint.start("127.0.0.1", 0)
    try:
        yield receiver
    finally:
        await receiver.close()
    assert receiver.ledger.at_receiver == 0
    assert receiver.ledger.imbalance == 0
    assert receiver.inlet.reserved == 0


SECRET = "iot_" + "s" * 43
OTHER = "iot_" + "o" * 43


def line(token: str = SECRET, name: str = "garden", **scope: Any) -> bytes:
    """Return the line of a token."""
    return entry_line(TokenEntry(name, digest_of(token), **scope))


def end(token: str = SECRET, at_us: int = 0) -> bytes:
    """Return the line that ends a token."""
    return end_line(TokenEntry("garden", digest_of(token)), at_us)


def entries_of(*lines: bytes) -> Entries:
    """Return what these lines say."""
    entries = Entries()
    for _ in entries.read(b"".join(lines)):
        pass
    return entries


def in_force(*lines: bytes) -> Tokens:
    """Return tokens with these lines in force."""
    tokens = Tokens()
    put(tokens, *lines)
    return tokens


def put(tokens: Tokens, *lines: bytes) -> None:
    """Put these lines in force instead of those before."""
    for _ in tokens.change(entries_of(*lines)):
        pass
