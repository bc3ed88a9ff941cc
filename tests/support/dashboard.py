"""A real admin port with the dashboard, over a real dead-letter folder, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ingest.admin.dashboard.tail import Observed, Tail
from ingest.app.admin import AdminSide
from ingest.config.settings import Settings
from ingest.model.ledger import Gauges, Ledger
from ingest.model.ports import BufferStats, JournalStats
from ingest.sinks.postgres.checked_connection import KnownServer
from tests.support.letters import folder_queue
from tests.support.receiver import Client, Reply, until

TOKEN = "s3cret-token-of-the-test"
READY = b'{"state":"accepting","reason":"","since":"2026-01-01T00:00:00Z"}'


class Rig:
    """The running port. `ask` is one request on a connection of its own."""

    def __init__(
        self, folder: Path, database_url: str | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.ledger = Ledger()
        self.released: list[bool] = []
        self.journal = JournalStats()
        self.dead_letters = folder_queue(folder, bytes_max=10**8, segment_bytes=10**7, keep_days=1)
        empty = BufferStats(0, 100, 0, 1000, 0, 0, 0, None)
        self.ledger.gauges = Gauges(
            buffer=lambda: empty,
            dead_letters=self.dead_letters.stats,
            database_up=lambda: True,
            hold_reason=lambda: None,
            journal=lambda: self.journal,
        )
        self.admin_side = AdminSide(
            # The tests' server does not fsync.
            Settings(database_unsafe=True, admin_listen=f"{host}:0"),
            Observed(
                self.ledger,
                lambda: (200, READY),
                Tail(),
                refused_posts=lambda: [{"peer": "10.0.0.7"}],
            ),
            dead_letters=self.dead_letters,
            token=TOKEN,
            release_hold=self._release_hold,
        )
        if database_url is not None:
            self.admin_side.database(lambda: database_url, KnownServer())
        self.dashboard = self.admin_side.dashboard
        self.admin = self.admin_side.admin
        self.address = ""

    def _release_hold(self, dead_letter: bool) -> bool:
        self.released.append(dead_letter)
        return True

    @property
    def cookie(self) -> str:
        """The cookie that a log-in sets."""
        return self.admin_side.guard.cookie_line().decode().split(": ")[1].split(";")[0]

    def head(self, method: str, target: str, headers: dict[str, str] | None = None) -> bytes:
        """Return the head of a request, with the Host of a browser on this machine."""
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{k}: {v}" for k, v in {"Host": self.address, **(headers or {})}.items() if v]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def ask(
        self, target: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> Reply:
        """Send a request without a body."""
        async with self.connected() as client:
            await client.send(self.head(method, target, headers))
            return await client.reply(head_only=method == "HEAD")

    async def send(self, target: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        """Post JSON (or bytes as they are), as our page does after a log-in; see `headers`."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "X-CSRF-Token": self.admin_side.guard.csrf,
            "Cookie": self.cookie,
            "Content-Length": str(len(data)),
        }
        async with self.connected() as client:
            await client.send(self.head("POST", target, {**sent, **(headers or {})}) + data)
            return await client.reply()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Give a raw connection to the port."""
        client = await Client.connect(self.address)
        try:
            yield client
        finally:
            await client.close()

    @contextlib.asynccontextmanager
    async def feed(self, query: str = "") -> AsyncIterator[Client]:
        """Open a page's stream of events."""
        before = self.dashboard.feed.clients
        async with self.connected() as client:
            await client.send(self.head("GET", f"/feed{query}"))
            await client.reply()
            await until(lambda: self.dashboard.feed.clients > before)
            yield client

    async def event(self, client: Client, name: str = "") -> Any:
        """Return the data of the next event of this name on a stream."""
        async with asyncio.timeout(5):
            while True:
                event = (await client.reader.readuntil(b"\n\n")).decode()
                lines = dict(line.split(": ", 1) for line in event.strip().split("\n"))
                if lines.get("event", "") == name and "data" in lines:
                    return json.loads(lines["data"])


@contextlib.asynccontextmanager
async def running(
    folder: Path, database_url: str | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Rig]:
    """Run the port on a free port of `host`."""
    rig = Rig(folder, database_url, host)
    await rig.dead_letters.open()
    address = await rig.admin_side.start("127.0.0.1:1")
    rig.address = address.replace("0.0.0.0", "127.0.0.1")
    try:
        yield rig
    finally:
        await rig.admin_side.close()
        await rig.dead_letters.close()
