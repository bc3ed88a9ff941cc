"""A run sends the posts of its plan at its moments, and reads the service's own counters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from loadgen.measure import scrape
from loadgen.measure.scrape import Scraper
from loadgen.measure.timeline import Timeline


class Server:
    """Accepts every post and keeps it; the test sets its counter of commits."""

    def __init__(self) -> None:
        self.url = ""
        self.posts: list[tuple[str, bytes]] = []
        self.posted = asyncio.Event()
        self.let_go = asyncio.Event()  # answers wait until it is set
        self.let_go.set()
        self.exposition = ""

    async def post(self, request: web.Request) -> web.Response:
        """Keep the query and the body."""
        self.posts.append((request.query_string, await request.read()))
        self.posted.set()
        await self.let_go.wait()
        return web.json_response({"accepted": 1, "dead_lettered": 0}, status=202)

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the counts of the test; without them with an error."""
        return web.Response(text=self.exposition, status=200 if self.exposition else 503)

    def count(self, committed: int, held: int = 0) -> None:
        """Expose these counts."""
        self.exposition = (
            "# HELP ingest_readings_committed_total x\n"
            f"ingest_readings_committed_total {committed}.0\n"
            f'ingest_readings_held {held}.0\ningest_hold{{reason="x"}} 1.0\n'
        )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Run it on a free port."""
    found = Server()
    app = web.Application()
    app.router.add_post("/v1/readings", found.post)
    app.router.add_get("/metrics", found.metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


async def test_scraper_counts_each_process_of_a_service_by_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is replaced begins at 0; the sum of all does not show that."""
    monkeypatch.setattr(scrape, "SETTLE_POLL_S", 0.01)
    scraper = Scraper([f"{server.url}/metrics"], Timeline(), lambda: 1.0)

    def count(first: int, second: int, *, pending: int = 0, imbalance: int = 0) -> None:
        name = "ingest_readings_committed_total"
        server.exposition = (
            f'{name}{{instance="writer-1"}} {first}.0\n{name}{{instance="writer-2"}} {second}.0\n'
            f'ingest_consumer_pending{{consumer="writer",instance="writer-1"}} {pending}.0\n'
            f'ingest_ledger_imbalance_rows{{instance="writer-1"}} {imbalance}.0\n'
            f'ingest_ledger_imbalance_rows{{instance="writer-2"}} -{imbalance}.0\n'
        )

    count(1000, 1000)
    await scraper.begin()
    count(1100, 50, imbalance=3)
    await scraper.settle(10)
    assert (scraper.committed, scraper.imbalance) == (150, 6)
    count(1100, 60, pending=1)
    settling = asyncio.create_task(scraper.settle(10))
    await asyncio.sleep(0.05)
    assert not settling.done(), "it waits until no message of the stream waits"
    count(1110, 60)
    await settling
    assert scraper.committed == 170
