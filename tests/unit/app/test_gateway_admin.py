"""The admin port of a gateway alone: probes, metrics, and one page with a link."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ingest.app.gateway_admin import GatewayAdmin
from ingest.config.loading import load
from ingest.config.settings import Settings
from ingest.model.errors import ConfigError
from tests.support.health import make_health
from tests.support.receiver import Client, Reply
from tests.support.up_admin import TOKEN
from tests.unit.admin.test_exposition import busy


@asynccontextmanager
async def running(url: str) -> AsyncIterator[str]:
    """Run the port; give its address."""
    admin = GatewayAdmin(
        Settings(admin_listen="127.0.0.1:0", dashboard_url=url),
        ledger=busy(),
        readyz=make_health().readyz,
        token=TOKEN,
        refused_posts=lambda: [{"code": "not_json"}],
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


@pytest.mark.parametrize("url", ["", "https://ingest.example/dash?a=1&b=2"])
async def test_page_links_to_the_dashboard_if_it_is_known(url: str) -> None:
    """And says else how to tell it. All that it needs is there; nothing of a dashboard is."""
    async with running(url) as address:
        reply = await ask(address, "/")
        text = reply.body.decode()
        assert reply.status == 200
        assert "{{" not in text
        assert "takes posts at 10.0.0.1:8080" in text
        assert ("<span hidden data-known>" in text) == (not url)
        assert ("<span hidden data-unknown>" in text) == bool(url)
        assert ('href="https://ingest.example/dash?a=1&amp;b=2"' in text) == bool(url)
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert (await ask(address, "/page/style.css")).status == 200
        assert (await ask(address, "/history")).status == 404


async def test_probes_and_metrics_have_no_label_of_an_instance() -> None:
    """As those of `serve`: each gateway is scraped on its own."""
    async with running("") as address:
        assert (await ask(address, "/readyz")).status == 503
        assert (await ask(address, "/livez")).status == 200
        metrics = (await ask(address, "/metrics")).body.decode()
        assert "\ningest_readings_received_total 100.0\n" in metrics
        assert "instance=" not in metrics


async def test_refused_posts_need_the_token_and_another_host_is_refused() -> None:
    """They may quote a reading; a name that points to the loopback is not ours."""
    async with running("") as address:
        assert (await ask(address, "/refused")).status == 401
        reply = await ask(address, "/refused", f"Authorization: Bearer {TOKEN}")
        assert json.loads(reply.body)["posts"] == [{"code": "not_json"}]
        assert (await ask(address.replace("127.0.0.1", "localhost"), "/")).status == 200
        client = await Client.connect(address)
        await client.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert (await client.reply()).status == 421
        await client.close()


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "ingest:8081", "http://", 'http://a/"><b>', "http://a b/"]
)
def test_address_that_is_none_of_a_page_is_an_error(url: str) -> None:
    """A browser follows it."""
    with pytest.raises(ConfigError, match=r"dashboard_url \(--dashboard-url\): is not http"):
        load(environ={}, flags={"dashboard_url": url})
    assert load(environ={}, flags={"dashboard_url": "http://ingest:8081"}).settings.dashboard_url
