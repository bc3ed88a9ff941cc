"""The dashboard of several processes in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser

from ingest.model.ledger import POSTS, READINGS
from tests.support.statuses import FakeProcess
from tests.support.up_admin import UpRig, running_up
from tests.system.browser import NEEDS_CHROMIUM, Watched, axe_source, chromium, violations, watched

pytestmark = [NEEDS_CHROMIUM, pytest.mark.slow, pytest.mark.timeout(90)]

NAMES = ("gateway-1", "gateway-2", "writer-1")
FIGURES = {
    "broker_up": 1,
    "stream_bytes": 3 * 1024**2,
    "stream_bytes_max": 1024**3,
    "stream_oldest_age_seconds": 75,
    "consumer_pending": {"writer": 1200},
    "consumer_ack_pending": {"writer": 14},
    "consumer_redelivered": {"writer": 3},
}


class Machine:
    """Processes that report each second, until they are removed from `processes`."""

    def __init__(self, rig: UpRig) -> None:
        self.rig = rig
        self.processes = {name: FakeProcess(name.rpartition("-")[0]) for name in NAMES}
        self.processes["writer-1"].broker = dict(FIGURES)

    async def run(self) -> None:
        """Let them work."""
        while True:
            for name, process in self.processes.items():
                process.takes(100 if process.role == "gateway" else 200)
                if name == "gateway-1":
                    counts = process.ledger.sent_by("token <b>garden")
                    counts[POSTS] += 9
                    counts[READINGS] += 90
                self.rig.hear(name, process)
            await asyncio.sleep(1)


@asynccontextmanager
async def page(browser: Browser, folder: Path) -> AsyncIterator[tuple[Machine, Watched]]:
    """Give the processes, and their page."""
    async with running_up(folder) as rig:
        machine = Machine(rig)
        working = asyncio.create_task(machine.run())
        try:
            seen = await watched(browser, f"http://{rig.address}")
            await seen.wait_text("#link", "Live")
            yield machine, seen
            seen.check()
        finally:
            working.cancel()


async def rows(seen: Watched) -> list[list[str]]:
    """Return the cells of the list of processes."""
    found: list[list[str]] = await seen.page.eval_on_selector_all(
        "#instance-list tbody tr", "rows => rows.map((r) => [...r.cells].map((c) => c.innerText))"
    )
    return found


async def test_page_lists_the_processes_and_what_waits_in_the_stream(tmp_path: Path) -> None:
    """State and load of each, in the order of their names; one that refuses, one that is gone."""
    async with chromium() as browser, page(browser, tmp_path) as (machine, seen):
        await seen.wait_text("#instance-list", "writer-1")
        await seen.wait_text("#instance-list tbody tr:first-child", "100")
        listed = await rows(seen)
        assert [row[0] for row in listed] == list(NAMES)
        assert [row[1] for row in listed] == ["accepting", "accepting", "runs"]
        await seen.wait_text("#sender-list tbody", "token <b>garden")
        note = await seen.text("#stream-note")
        assert "1,200 messages wait for a writer, and 14 are with one" in note
        assert "3 of these were delivered again" in note
        assert "1 min 15 s old" in note
        await seen.wait_text("#f-stream", "of 1 GiB")
        assert await seen.page.is_hidden("#tail-device"), "only a sample of each second is known"
        assert await seen.page.is_hidden("#tab-silent")
        assert await seen.page.is_visible("#c-waiting")

        gateway, writer = machine.processes["gateway-2"], machine.processes["writer-1"]
        gateway.ready = {"state": "full", "cause": "full", "reason": "no space"}
        writer.ready = {"state": "accepting", "cause": "unreachable", "reason": "no database"}
        await seen.wait_text("#state-word", "Full: some posts are refused")
        await seen.wait_text("#instance-list", "refuses posts: no space")
        await seen.wait_text("#instance-list [data-level=warn]", "no database")
        gateway.ready = {"state": "accepting", "cause": "", "reason": ""}
        await seen.wait_text("#state-word", "The database is away")
        gateway.ready = {"state": "starting", "cause": "starting", "reason": "starting"}
        await seen.wait_text("#state[data-level=off]", "Starting", within_s=15)  # it is replaced
        await seen.wait_text("#instance-list [data-level=off]", "starting")
        gateway.ready = {"state": "accepting", "cause": "", "reason": ""}
        await seen.wait_text("#state-word", "The database is away")
        machine.rig.up.instances.gone("gateway-1", machine.processes.pop("gateway-1").pid)
        await seen.wait_text("#instance-list [data-level=bad]", "has not reported for")
        for width, scheme in ((1280, "dark"), (390, "light")):
            await seen.page.set_viewport_size({"width": width, "height": 900})
            await seen.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            assert await violations(seen.page, axe_source()) == []
