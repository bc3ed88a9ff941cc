"""The pictures of the dashboard that the README shows, made from a real service and a real fleet.

`INGEST_TEST_SCREENSHOTS=1 ./run test-long tests/system/test_dashboard_pictures.py` writes them into
docs/ and takes six minutes, so that the curves are long enough. An ordinary run takes seconds,
writes to the temporary folder, and checks that pictures can be made.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from playwright.async_api import Browser, ViewportSize

from ingest.sinks.postgres import schema
from tests.support.faulty_proxy import FaultyProxy
from tests.system.browser import NEEDS_CHROMIUM, Watched, chromium, watched
from tests.system.service import REPOSITORY, Service, environment

FOR_DOCS = os.environ.get("INGEST_TEST_SCREENSHOTS") == "1"
RUN_S = 255 if FOR_DOCS else 2
TROUBLE_S = 20 if FOR_DOCS else 2
FLEET = ("--devices", "600", "--batch", "1x75,10x20,60x5", "--gzip")
ODD = ("--duplicates", "2%", "--poison", "0.02%", "--arrivals", "poisson", "--seed", "7")
SHAPE = ("--shape", "burst:110,260,70,25")
WIDE: ViewportSize = {"width": 1440, "height": 1230}
PHONE: ViewportSize = {"width": 390, "height": 844}
SMALL: Any = {"dlq_bytes_max": "4MiB", "dlq_segment_bytes": 64 * 1024}
PICTURES = ("light", "dark", "device", "phone", "hold", "outage", "dead-letters")

pytestmark = [NEEDS_CHROMIUM, pytest.mark.slow, pytest.mark.timeout(RUN_S + 150)]


class Pictures:
    """Writes pictures of one page into a folder."""

    def __init__(self, seen: Watched, folder: Path) -> None:
        self.seen = seen
        self._folder = folder

    async def take(self, name: str, scheme: str = "light", size: ViewportSize = WIDE) -> None:
        """Write one picture."""
        page = self.seen.page
        await page.set_viewport_size(size)
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        await asyncio.sleep(1.2)  # a frame with the new colours, and an event in the new width
        await page.screenshot(path=self._folder / f"dashboard-{name}.png")


@asynccontextmanager
async def fleet(url: str, *odd: str) -> AsyncIterator[None]:
    """Send what a fleet sends, until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen", "run", "--url", url),
        *("--duration-s", "900", *FLEET, *odd),
        cwd=REPOSITORY,
        env=environment(),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def take_all(pictures: Pictures, line: FaultyProxy, table: asyncpg.Connection) -> None:
    """Take the pictures of one service, from a good day to an outage of the database."""
    seen = pictures.seen
    await pictures.take("light")
    await pictures.take("dark", "dark")
    await pictures.take("phone", "dark", PHONE)
    await seen.page.set_viewport_size(WIDE)
    await seen.page.fill("#find", "room-0348")
    await seen.page.click("#find-form button")
    await seen.page.select_option("#device-metric", "temperature")
    await seen.wait_text("#device-chart h3", "temperature")
    await seen.page.click("[name=device-range][value='900'] + span")
    await seen.wait_text("#device-chart h3", "one point for 3 s")
    await seen.page.evaluate("document.querySelector('#device').scrollIntoView({block: 'end'})")
    await pictures.take("device")
    await seen.page.click("#device-close")
    await seen.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    await table.execute("alter table readings rename value to val")
    await seen.wait_text("#state-word", "Writes are paused")
    await asyncio.sleep(TROUBLE_S)
    await pictures.take("hold")
    await table.execute("alter table readings rename val to value")
    await seen.wait_text("#state-word", "Accepting")
    await asyncio.sleep(TROUBLE_S)
    line.refuse()
    await line.cut()
    await seen.wait_text("#state-word", "The database is away")
    await asyncio.sleep(TROUBLE_S)
    await pictures.take("outage")
    await line.accept()
    await seen.wait_text("#state-word", "Accepting")


async def take_full(
    browser: Browser, folder: Path, state: Path, url: str, table: asyncpg.Connection
) -> None:
    """Take the picture of a service that has no space for rows that the database refuses."""
    odd = "alter table readings add constraint odd check (device_id !~ '0$') not valid"
    await table.execute(odd)
    settings: Any = {"database_url": url, "database_unsafe": True, **SMALL}
    async with Service(state, **settings) as service, fleet(service.url):
        seen = await watched(browser, service.admin_url, opened=service.info.page, viewport=WIDE)
        seen.lost_allowed = True
        await seen.wait_text("#state-text", "The space for dead letters is full", within_s=120)
        await asyncio.sleep(TROUBLE_S)
        await Pictures(seen, folder).take("dead-letters")


async def test_pictures_of_the_dashboard(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Light, dark, a device, a phone, writes paused, the database away, dead letters full.

    No picture is empty, and the page has no error.
    """
    folder = REPOSITORY / "docs" / "pictures" if FOR_DOCS else tmp_path
    await schema.apply(readings_connection, device_index=True)
    query = parse_qs(urlsplit(readings_url).query)
    socket = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
    async with FaultyProxy.to_unix(socket) as line, chromium() as browser:
        url = f"postgresql://postgres@127.0.0.1:{line.port}{urlsplit(readings_url).path}"
        state = tmp_path / "state"
        async with (
            Service(state, database_url=url, database_unsafe=True) as service,
            fleet(service.url, *ODD, *SHAPE),
        ):
            seen = await watched(
                browser, service.admin_url, opened=service.info.page, viewport=WIDE
            )
            seen.page.set_default_timeout(30_000)
            seen.lost_allowed = True  # the browser reports each answer 503 to a question
            await seen.wait_text("#state-text", "Readings arrive and are stored")
            await asyncio.sleep(RUN_S)
            await take_all(Pictures(seen, folder), line, readings_connection)
            seen.check()
        await take_full(browser, folder, tmp_path / "small", url, readings_connection)
    for name in PICTURES:
        assert (folder / f"dashboard-{name}.png").stat().st_size > 20_000, name
