"""The pictures of the dashboard that the README shows, made from a real service and a real fleet.

`INGEST_TEST_SCREENSHOTS=1 ./run test-long tests/system/test_dashboard_pictures.py` writes them into
docs/ and takes five minutes, so that the curves are long enough. An ordinary run takes seconds,
writes to the temporary folder, and checks that pictures can be made.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import asyncpg
import pytest
from playwright.async_api import Page, ViewportSize

from tests.system.browser import NEEDS_CHROMIUM, chromium, watched
from tests.system.service import REPOSITORY, Service, environment

FOR_DOCS = os.environ.get("INGEST_TEST_SCREENSHOTS") == "1"
RUN_S = 255 if FOR_DOCS else 2
HOLD_S = 9 if FOR_DOCS else 0
FLEET = ("--devices", "600", "--batch", "1x75,10x20,60x5", "--gzip")
ODD = ("--duplicates", "2%", "--poison", "0.02%", "--arrivals", "poisson", "--seed", "7")
SHAPE = ("--shape", "burst:110,260,70,25")
WIDE: ViewportSize = {"width": 1440, "height": 1230}
PHONE: ViewportSize = {"width": 390, "height": 844}

pytestmark = [NEEDS_CHROMIUM, pytest.mark.slow, pytest.mark.timeout(RUN_S + 60)]


async def picture(page: Page, folder: Path, name: str, scheme: str) -> None:
    """Write one picture."""
    await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await asyncio.sleep(0.3)  # a frame with the new colours
    await page.screenshot(path=folder / f"dashboard-{name}.png")


async def test_pictures_of_the_dashboard(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Light, dark, on a phone, writes paused: no picture is empty, and no error occurs."""
    folder = REPOSITORY / "docs" if FOR_DOCS else tmp_path
    folder.mkdir(exist_ok=True)
    async with Service(
        tmp_path / "state", database_url=readings_url, database_unsafe=True
    ) as service:
        fleet = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadgen", "run", "--url", service.url),
            *("--duration-s", str(RUN_S + 50), *FLEET, *ODD, *SHAPE),
            cwd=REPOSITORY,
            env=environment(),
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            async with chromium() as browser:
                seen = await watched(browser, service.admin_url, viewport=WIDE)
                seen.page.set_default_timeout(30_000)
                await seen.wait_text("#state-text", "Readings arrive and are stored")
                await asyncio.sleep(RUN_S)
                await seen.page.click("#tab-newest")
                await seen.page.click("#tail tbody button >> nth=0")
                await seen.wait_text("#lookup", "JSON")
                await seen.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                await picture(seen.page, folder, "light", "light")
                await picture(seen.page, folder, "dark", "dark")
                await seen.page.set_viewport_size(PHONE)
                await picture(seen.page, folder, "phone", "dark")
                await seen.page.set_viewport_size(WIDE)
                await readings_connection.execute("alter table readings rename value to val")
                await seen.wait_text("#state-word", "Writes are paused")
                await asyncio.sleep(HOLD_S)
                await picture(seen.page, folder, "hold", "light")
                await readings_connection.execute("alter table readings rename val to value")
                seen.check()
        finally:
            if fleet.returncode is None:
                fleet.kill()
            await fleet.wait()
    sizes = {each.name: each.stat().st_size for each in folder.glob("dashboard-*.png")}
    assert len(sizes) == 4
    assert min(sizes.values()) > 20_000, sizes
