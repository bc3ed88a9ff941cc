"""The admin port of a gateway alone: probes, metrics, and one page with a link."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest.admin.dashboard.tail import Observed, Tail
from ingest.config.settings import Settings
from ingest.roles.gateway import GatewayAdmin
from tests.support.health import make_health
from tests.support.receiver import Client, Reply
from tests.support.up_admin import TOKEN
from tests.unit.admin.test_exposition import busy


@asynccontextmanager
async def running() -> AsyncIterator[str]:
    """Run the port; give its address."""
    admin = GatewayAdmin(
        Settings(admin_listen="127.0.0.1:0"),
        Observed(
            busy(), make_health().readyz, Tail(), refused_posts=lambda: [{"code": "not_json"}]
        ),
        token=TOKEN,
    )
    address = await admin.start("10.0.0.1:8080")
    try:
        yield address
    finally:
        await admin.close()


async def ask(address: str, target: str, *lines: str) -> Reply:
    """Send one request."""
    client = await Client.connect(address)
    try:
        head = "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {address}", *lines])
        await client.send(f"{head}\r\n\r\n".encode())
        return await client.reply()
    finally:
        await client.close()


async def test_page_says_where_the_dashboard_is() -> None:
    """All that it needs is there; nothing of a dashboard is."""
    async with running() as address:
        reply = await ask(address, "/")
        text = reply.body.decode()
        assert reply.status == 200
        assert "{{" not in text
        assert "takes posts at 10.0.0.1:8080" in text
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert (await ask(address, "/page/style.css")).status == 200
        assert (await ask(address, "/history")).status == 404


async def test_probes_and_metrics_have_no_label_of_an_instance() -> None:
    """As those of `serve`: each gateway is scraped on its own."""
    async with running() as address:
        assert (await ask(address, "/readyz")).status == 503
        assert (await ask(address, "/livez")).status == 200
        metrics = (await ask(address, "/metrics")).body.decode()
        assert "\ningest_readings_received_total 100.0\n" in metrics
        assert "instance=" not in metrics


async def test_refused_posts_need_the_token_and_another_host_is_refused() -> None:
    """They may quote a reading; a name that points to the loopback is not ours."""
    async with running() as address:
        assert (await ask(address, "/refused")).status == 401
        reply = await ask(address, "/refused", f"Authorization: Bearer {TOKEN}")
        assert json.loads(reply.body)["posts"] == [{"code": "not_json"}]
        assert (await ask(address.replace("127.0.0.1", "localhost"), "/")).status == 200
        client = await Client.connect(address)
        await client.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert (await client.reply()).status == 421
        await client.close()
