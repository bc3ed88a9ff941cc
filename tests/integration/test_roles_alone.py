"""Gateways and a writer that nobody leads: each tells the others its state, by the real broker."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession

from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import streams
from tests.support.brokers import LETTERS, embedded, joined
from tests.support.documents import REPOSITORY
from tests.support.processes import killed_after
from tests.system.service import environment

pytestmark = pytest.mark.timeout(90)

_URL = re.compile(r"http://[\d.]+:\d+")
READING = {"device_id": "d1", "metric": "m", "value": 1.5}


class Role:
    """One process. `url` is that of its data port, `admin` of its admin port."""

    def __init__(self, process: asyncio.subprocess.Process, urls: list[str]) -> None:
        self.process = process
        self.url, self.admin = urls[0], urls[-1]

    async def get(self, path: str) -> str:
        """Return a page of the admin port."""
        async with ClientSession() as session, session.get(self.admin + path) as reply:
            return await reply.text()

    async def post(self, *readings: dict[str, Any]) -> int:
        """Post readings; return the status."""
        url = f"{self.url}/v1/readings"
        async with ClientSession() as session, session.post(url, json=readings) as reply:
            return reply.status

    async def committed(self) -> str:
        """Post a reading with ack=committed; return the code of the refusal."""
        url = f"{self.url}/v1/readings?ack=committed"
        async with ClientSession() as session, session.post(url, json=READING) as reply:
            return str((await reply.json(content_type=None)).get("code"))

    async def event(self) -> dict[str, Any]:
        """Return the next event of the page's feed."""
        host, _, port = self.admin.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"GET /feed HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            async with asyncio.timeout(5):
                while not (line := await reader.readline()).startswith(b"data: "):
                    assert line
            event: dict[str, Any] = json.loads(line[6:])
            return event
        finally:
            writer.close()


@asynccontextmanager
async def role(broker: EmbeddedBroker, name: str, **settings: str) -> AsyncIterator[Role]:
    """Run a role with the login that the broker has for it."""
    address = broker.published.address(name)
    server = address.servers[0].removeprefix("nats://")
    given = {
        "broker_url": f"nats://{address.user}:{address.password}@{server}",
        "broker_monitor_url": broker.published.endpoints.monitor_url,
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "stream_bytes_max": "64MiB",
        "dlq_bytes_max": "64MiB",
        "state_dir": str(broker.folder.parent),  # it keeps the mark
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ingest", name),
        cwd=REPOSITORY,
        env=environment({f"INGEST_{key.upper()}": value for key, value in given.items()}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    async with killed_after(process):
        async with asyncio.timeout(30):
            while not (found := _URL.findall((line := await process.stdout.readline()).decode())):
                assert line, "it did not start"
        yield Role(process, found)


async def test_page_of_a_writer_shows_all_that_run_alone(tmp_path: Path, readings_url: str) -> None:
    """Two gateways and the writer itself; the sums of all; one gateway ends; then the broker."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(embedded(tmp_path / "broker"))
        async with joined(broker, "admin") as admin:
            await streams.apply(admin, LETTERS)
        roles = [
            stack.enter_async_context(role(broker, "gateway", ack_wait_s_max="1")),
            stack.enter_async_context(role(broker, "gateway")),
            stack.enter_async_context(
                role(
                    broker,
                    "writer",
                    database_url=readings_url,
                    database_unsafe="true",
                    ack_wait_s_max="1",
                )
            ),
        ]
        one, other, writer = await asyncio.gather(*roles)
        await _holds(lambda: _names(writer), ["gateway", "gateway", "writer"])
        assert (
            await one.post(READING | {"ts": 1_760_000_000_001}, READING | {"ts": 1_760_000_000_002})
            == 202
        )
        assert await other.post(READING | {"ts": 1_760_000_000_003}) == 202
        await _holds(lambda: _sums(writer), {"received": 3, "committed": 3, "delivered": 3})
        event = await writer.event()
        assert event["ready"]["state"] == "accepting"
        assert event["sum"]["broker"]["stream_messages"] >= 0
        metrics = await writer.get("/metrics")
        assert "\ningest_readings_committed_total 3.0\n" in metrics
        assert "instance=" not in metrics
        assert "dashboard" in await one.get("/")

        other.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await other.process.wait()
        await _holds(lambda: _names(writer), ["gateway", "writer"])
        assert (await _sums(writer))["received"] == 3

        locking = await asyncpg.connect(readings_url)
        async with locking.transaction():  # each retry would be one more message behind the lock
            await locking.execute("lock table readings")
            async with asyncio.timeout(30):
                assert await one.committed() == "outcome_unknown"
                while await one.committed() != "database_away":
                    pass
                before = await _sums(writer)
                assert await one.committed() == "database_away"
                assert await _sums(writer) == before
        await locking.close()
        await broker.stop()
        await _holds(lambda: _told(writer), [("broker_away", True)] * 2)


async def _names(writer: Role) -> list[str]:
    instances = (await writer.event())["ready"]["instances"]
    return [each["role"] for each in instances if each["runs"]]


async def _told(writer: Role) -> list[tuple[str, bool]]:
    """Return the state on the page and on its /readyz, and whether they say the same."""
    page, own = (await writer.event())["ready"], json.loads(await writer.get("/readyz"))
    same = all(page[each] == own[each] for each in ("cause", "reason", "next", "runbook"))
    return [(page["state"], same), (own["state"], same)]


async def _sums(writer: Role) -> dict[str, int]:
    found = (await writer.event())["sum"]
    return {name: found.get(name, 0) for name in ("received", "committed", "delivered")}


async def _holds(ask: Any, expected: Any) -> None:
    """Wait until the page says it."""
    async with asyncio.timeout(15):
        while (found := await ask()) != expected:  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.2)
    assert found == expected
