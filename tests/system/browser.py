"""A real browser on the dashboard: Debian's Chromium, driven by Playwright, and axe-core.

`Watched` notes the faults of a page: errors on its console, requests to other hosts.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
NEEDS_CHROMIUM = pytest.mark.skipif(
    not Path(CHROMIUM).exists(),
    reason="no Chromium: apt-get install -y --no-install-recommends chromium",
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = "axe-core@4.14.1"
AXE_SHA512 = (
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)

# What is wider than its place. What scrolls or is shortened on purpose is not.
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(each => each.checkVisibility()
    && each.clientWidth && !each.closest('.hush, dialog, svg')
    && getComputedStyle(each).overflowX === 'visible' && each.scrollWidth > each.clientWidth)
    .map(each => `${each.tagName} ${each.id} ${each.textContent.slice(0, 40)}`)"""
# What takes two lines, and should take one.
WRAPPED = """[...document.querySelectorAll(`.group :is(b, small, dt), .legend, figcaption h3, th,
    .range, .tabs, #state-since, button`)].filter(each => each.checkVisibility()
    && !each.closest('.hush, dialog, .notice, .plain') && !each.matches('.plain')
    && each.textContent && each.clientHeight > 2.2 * parseFloat(getComputedStyle(each).fontSize)
        + parseFloat(getComputedStyle(each).paddingTop) * 2)
    .map(each => `${each.tagName} ${each.textContent.slice(0, 60)}`)"""


class Watched:
    """A page and its faults."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.strange: list[str] = []
        self.lost_allowed = False
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, message: Any) -> None:
        if message.type not in {"error", "warning"}:
            return
        if not (self.lost_allowed and "Failed to load resource" in message.text):
            self.errors.append(message.text)

    def _request(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.url).netloc:
            self.strange.append(url)

    def check(self) -> None:
        """Check that the page had no error and sent no request to another host."""
        assert not self.errors, self.errors
        assert not self.strange, self.strange

    async def text(self, selector: str) -> str:
        """Return the text of an element."""
        return (await self.page.text_content(selector)) or ""

    async def wait_true(self, expression: str, within_s: float = 10) -> None:
        """Wait until a JavaScript expression is true (Playwright's own wait needs eval: CSP)."""
        async with asyncio.timeout(within_s):
            while not await self.page.evaluate(expression):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.05)

    async def wait_text(self, selector: str, text: str, within_s: float = 10) -> None:
        """Wait until an element's text holds `text`."""
        found = self.page.locator(selector).filter(has_text=text).first
        await found.wait_for(state="attached", timeout=within_s * 1000)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


async def watched(
    context: Browser | BrowserContext, url: str, *, opened: str = "", **options: Any
) -> Watched:
    """Open the dashboard at `url` in a page of its own; return once it is live.

    `opened` is the address with the key of the log-in, if the test acts.
    """
    page = await context.new_page(**options)
    page.set_default_timeout(10_000)
    seen = Watched(page, url)
    await page.goto(opened or f"{url}/")
    await seen.wait_text("#link", "Live")
    return seen


def axe_source() -> str:
    """Return axe-core's script, fetched once by npm and checked against its pinned hash."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "iot-ingest-tests"
    archive = folder / (AXE.replace("@", "-") + ".tgz")
    if not archive.exists():
        if shutil.which("npm") is None:
            pytest.skip("no npm, which fetches axe-core: apt-get install -y npm")
        folder.mkdir(parents=True, exist_ok=True)
        fetch = ["npm", "pack", AXE, "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(fetch, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, done.stderr
    data = archive.read_bytes()
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    assert digest == AXE_SHA512, f"{archive} is not {AXE}: remove it"
    with tarfile.open(fileobj=io.BytesIO(data)) as files:
        script = files.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


async def violations(page: Page, source: str) -> list[str]:
    """Return the serious and critical findings of axe-core on a page (its CSP bypassed)."""
    await page.evaluate(source)
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['impact']}: {each['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]
