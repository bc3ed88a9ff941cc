"""The pictures of the dashboard, made from a real service and a real fleet, by one command.

`INGEST_TEST_SCREENSHOTS=FOLDER ./run test-long tests/system/test_dashboard_pictures.py` takes some
six minutes, so that the curves are long enough. It writes every state in three widths, light and
dark, into FOLDER, and the few that texts show into docs/pictures/ (small, if there is ImageMagick).
An ordinary run takes seconds, writes to the temporary folder, and checks what no picture may show:
a text that leaves its place or wraps, a chart alone, red at a start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from playwright.async_api import Browser

from ingest.sinks.postgres import schema
from tests.support.faulty_proxy import FaultyProxy
from tests.support.processes import killed_after
from tests.system.browser import NEEDS_CHROMIUM, TOO_WIDE, WRAPPED, Watched, chromium, watched
from tests.system.service import REPOSITORY, Service, environment

FOR_DOCS = os.environ.get("INGEST_TEST_SCREENSHOTS", "")
PICTURES = REPOSITORY / "docs" / "pictures"
RUN_S = 180 if FOR_DOCS else 2
TROUBLE_S = 15 if FOR_DOCS else 1
FLEET = ("--devices", "600", "--batch", "1x75,10x20,60x5", "--gzip")
ODD = ("--duplicates", "2%", "--poison", "0.02%", "--arrivals", "poisson", "--seed", "7")
SHAPE = ("--shape", "burst:110,260,70,25")
HEIGHTS = {1280: 860, 1920: 1080, 390: 844}  # by width
SMALL: Any = {"dlq_bytes_max": "4MiB", "dlq_segment_bytes": 64 * 1024}
SHOWN = ("light", "dark", "device", "phone", "hold", "outage", "dead-letters")  # in texts
BYTES_MAX = 150_000
METRICS = {"temperature": 21.4, "humidity": 48.0, "pressure": 1013.2, "battery": 3.71}
RED = "document.querySelectorAll('[data-level=bad], [data-tone=bad]').length"
LETTERS = "section:has(#letters-title)"
OLD = "document.querySelectorAll('#device-list span.old').length > 5"  # values of before are kept
# Charts that do not fill their row of twelve columns together with their neighbours.
LOOSE = """['#curves', '#device-charts'].flatMap((id) => {
    const rows = new Map();
    for (const each of document.querySelectorAll(`${id} > .chart:not([hidden])`)) {
        if (!each.checkVisibility()) continue;
        const top = Math.round(each.getBoundingClientRect().top);
        rows.set(top, (rows.get(top) ?? 0) + each.getBoundingClientRect().width);
    }
    const width = document.querySelector(id).clientWidth;
    return [...rows.values()].filter((sum) => sum < width * 0.9).map((sum) => `${id} ${sum}`);
})"""

pytestmark = [NEEDS_CHROMIUM, pytest.mark.slow, pytest.mark.timeout(3 * RUN_S + 240)]


class Pictures:
    """Writes pictures of one page into a folder, and checks what they show."""

    def __init__(self, seen: Watched, folder: Path) -> None:
        self.seen = seen
        self._folder = folder

    async def take(self, state: str, at: str = "header", **shown: tuple[int, str]) -> None:
        """Take a state in all widths and colours.

        `shown`: the names of those that texts show; the part `at` is at their top.
        """
        page = self.seen.page
        for width, height in HEIGHTS.items():
            await page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                await page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                await asyncio.sleep(1.2)  # a frame with the new colours, an event in the new width
                name = f"{state}-{width}-{scheme}"
                await page.screenshot(path=self._folder / f"{name}.png", full_page=True)
                for text in (each for each, where in shown.items() if where == (width, scheme)):
                    file = self._folder / f"dashboard-{text.replace('_', '-')}.png"
                    await page.evaluate("(at) => document.querySelector(at).scrollIntoView()", at)
                    await page.screenshot(path=file)
            for fault in (TOO_WIDE, WRAPPED, LOOSE):
                assert await page.evaluate(fault) == [], (state, width)
            assert await page.evaluate("document.body.scrollWidth") <= width


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
    async with killed_after(process):
        yield


@asynccontextmanager
async def greenhouse(service: Service) -> AsyncIterator[None]:
    """Send four metrics of one device each second, until the end of the block."""

    async def post() -> None:
        for second in range(10_000):
            bent = 1 + 0.02 * ((second % 97) / 97 - 0.5) ** 2
            items = [
                {"device_id": "greenhouse-1", "metric": metric, "value": round(value * bent, 3)}
                for metric, value in METRICS.items()
            ]
            with contextlib.suppress(OSError, AssertionError):
                await service.post(items)
            await asyncio.sleep(1)

    posting = asyncio.create_task(post())
    try:
        yield
    finally:
        posting.cancel()


async def take_start(browser: Browser, folder: Path, url: str, state: Path) -> None:
    """Take the page of a service without a reading, and with its first device."""
    settings: Any = {"database_url": url, "database_unsafe": True}
    async with Service(state, **settings) as service:
        seen = await watched(browser, service.admin_url, opened=service.info.page)
        await seen.wait_text("#state-text", "No reading has come yet")
        assert await seen.page.evaluate(RED) == 0
        await Pictures(seen, folder).take("start")
        async with greenhouse(service):
            await seen.wait_text("#device-charts", "temperature", within_s=30)
            await asyncio.sleep(TROUBLE_S)
            await Pictures(seen, folder).take("first-device")
        seen.check()
        await seen.page.close()


async def take_all(pictures: Pictures, line: FaultyProxy, table: asyncpg.Connection) -> None:
    """Take the pictures of one service, from a good day to an outage of the database."""
    seen = pictures.seen
    await pictures.take("load", light=(1280, "light"), dark=(1280, "dark"), phone=(390, "dark"))
    await seen.page.set_viewport_size({"width": 1280, "height": 860})
    await seen.page.fill("#find", "greenhouse-1")
    await seen.page.click("#find-form button")
    await seen.wait_text("#device-charts", "temperature")
    await seen.page.fill("#find", "")
    await pictures.take("device", device=(1280, "light"))
    await table.execute("alter table readings rename value to val")
    await seen.wait_text("#state-word", "Writes are paused")
    await seen.wait_text("#device-note", "Not available: the table", within_s=20)
    await asyncio.sleep(TROUBLE_S)
    await pictures.take("hold", hold=(1280, "light"))
    await table.execute("alter table readings rename val to value")
    await seen.wait_text("#state-word", "Accepting")
    async with table.transaction():
        await table.execute("lock table readings")
        await seen.wait_text("#state[data-level=warn]", "No write goes through", within_s=40)
        await asyncio.sleep(TROUBLE_S)
        await pictures.take("locked")
    await seen.wait_text("#state-word", "Accepting", within_s=60)
    await asyncio.sleep(TROUBLE_S)
    line.refuse()
    await line.cut()
    await seen.wait_text("#state-word", "The database is away")
    await seen.wait_true(OLD, within_s=20)
    await asyncio.sleep(TROUBLE_S)
    await pictures.take("outage", outage=(1280, "light"))
    await line.accept()
    await seen.wait_text("#state-word", "Accepting", within_s=60)


async def take_full(
    browser: Browser, folder: Path, url: str, table: asyncpg.Connection, state: Path
) -> None:
    """Take the picture of a service that has no space for rows that the database refuses."""
    odd = "alter table readings add constraint odd check (device_id !~ '0$') not valid"
    await table.execute(odd)
    settings: Any = {"database_url": url, "database_unsafe": True, **SMALL}
    async with Service(state, **settings) as service, fleet(service.url):
        seen = await watched(browser, service.admin_url, opened=service.info.page)
        seen.lost_allowed = True
        await seen.wait_text("#state-text", "The space for dead letters is full", within_s=120)
        await asyncio.sleep(TROUBLE_S)
        await Pictures(seen, folder).take("full", LETTERS, dead_letters=(1280, "light"))


async def test_pictures_of_the_dashboard(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Start, load, one device, writes paused, a locked table, the database away, no space.

    No picture is empty, and the page has no error.
    """
    folder = Path(FOR_DOCS) if FOR_DOCS else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    await schema.apply(readings_connection, device_index=True)
    query = parse_qs(urlsplit(readings_url).query)
    socket = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
    async with FaultyProxy.to_unix(socket) as line, chromium() as browser:
        url = f"postgresql://postgres@127.0.0.1:{line.port}{urlsplit(readings_url).path}"
        await take_start(browser, folder, url, tmp_path / "fresh")
        async with (
            Service(tmp_path / "state", database_url=url, database_unsafe=True) as service,
            fleet(service.url, *ODD, *SHAPE),
            greenhouse(service),
        ):
            seen = await watched(browser, service.admin_url, opened=service.info.page)
            seen.page.set_default_timeout(30_000)
            seen.lost_allowed = True  # the browser reports each answer 503 to a question
            await seen.wait_text("#state-text", "Readings arrive and are stored")
            await asyncio.sleep(RUN_S)
            await take_all(Pictures(seen, folder), line, readings_connection)
            seen.check()
        await take_full(browser, folder, url, readings_connection, tmp_path / "small")
    for name in SHOWN:
        picture = folder / f"dashboard-{name}.png"
        assert picture.stat().st_size > 20_000, name
        if FOR_DOCS:
            keep(picture)


def keep(picture: Path) -> None:
    """Put a picture that texts show into docs/pictures/, in few colours."""
    kept = PICTURES / picture.name
    if shutil.which("convert") is None:
        shutil.copy(picture, kept)
        return
    few = ("-colors", "128", "-define", "png:compression-level=9", "-strip", f"PNG8:{kept}")
    subprocess.run(("convert", picture, *few), check=True)
    assert kept.stat().st_size < BYTES_MAX, picture.name
