"""Pages in a real browser that try to post: of another site, of a rebound name, of the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import async_playwright

from tests.support.receiver import running_receiver
from tests.system.browser import CHROMIUM, FLAGS, NEEDS_CHROMIUM

pytestmark = [NEEDS_CHROMIUM, pytest.mark.slow, pytest.mark.timeout(90)]

NAMES = "--host-resolver-rules=MAP *.example 127.0.0.1"
READING = '{"device_id":"d","metric":"m","value":1}'
# What a page can send without asking first: no media type, a plain one, a form, an image.
TRIES = f"""async (url) => {{
  const body = '{READING}', found = [];
  const one = async (options) => {{
    try {{ found.push((await fetch(url, {{method: 'POST', ...options}})).status); }}
    catch {{ found.push('failed'); }}
  }};
  await one({{mode: 'no-cors', body: new Blob([body])}});
  await one({{mode: 'no-cors', body}});
  await one({{body, headers: {{'content-type': 'application/json'}}}});
  navigator.sendBeacon(url, new Blob([body]));
  new Image().src = url + '?p=x';
  return found;
}}"""


@asynccontextmanager
async def site() -> AsyncIterator[int]:
    """Serve an empty page at any name; yield its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = b"<title>evil</title>"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(page), page))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_no_page_of_another_site_gets_a_reading_in() -> None:
    """On the loopback nobody needs a token, so a browser of this machine must not be a way in."""
    async with (
        running_receiver() as receiver,
        site() as port,
        async_playwright() as playwright,
    ):
        own = receiver.address.rpartition(":")[2]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, NAMES])
        try:
            page = await browser.new_page()
            for foreign in (f"http://evil.example:{port}/", f"http://localhost:{port}/"):
                await page.goto(foreign)
                for host in ("127.0.0.1", "localhost", "evil.example"):
                    url = f"http://{host}:{own}/v1/readings"
                    found = await page.evaluate(TRIES, url)
                    assert 202 not in found, (foreign, url)
            assert not receiver.inlet.blocks
            refused = dict(receiver.ledger.posts_refused)
            assert refused["foreign_site"] >= 10, refused
            # A name that points to this port: for the browser its page is of the same site.
            await page.goto(f"http://evil.example:{own}/livez")
            found = await page.evaluate(TRIES, "/v1/readings")
            assert found == [421] * 3
            assert not receiver.inlet.blocks
            # The port's own name: nobody else can make a page of it.
            await page.goto(f"http://localhost:{own}/livez")
            assert await page.evaluate(TRIES, "/v1/readings") == [202, 415, 202]
            assert receiver.inlet.blocks
        finally:
            await browser.close()
