"""The dashboard in a real browser, on a real service under load."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.system.browser import (
    NEEDS_CHROMIUM,
    TOO_WIDE,
    Watched,
    axe_source,
    chromium,
    violations,
    watched,
)
from tests.system.fleet import Fleet
from tests.system.service import Service

# One browser for all tests: it takes longer to start than the service.
pytestmark = [NEEDS_CHROMIUM, pytest.mark.asyncio(loop_scope="module")]

WEIGHT_BYTES_MAX = 49_000
WIDTHS = (1280, 1024, 390)
HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "\"'><svg/onload=window.hacked=1>",
    "</td></table><script>window.hacked=1</script>",
    "javascript:window.hacked=1//",
    "{{csrf}}${window.hacked=1}",
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Give the browser of this module."""
    async with chromium() as browser:
        yield browser


@asynccontextmanager
async def table(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Give a database connection of the operator."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def dashboard(
    browser: Browser, folder: Path, database_url: str, **settings: object
) -> AsyncIterator[tuple[Service, Watched]]:
    """Run a service and open its page; at the end the page must have had no error."""
    where = {"database_url": database_url, "database_unsafe": True}  # it does not fsync
    quick: Any = {"wait_s_max": 0.6, **where, **settings}
    async with Service(folder / "state", **quick) as service:
        seen = await watched(browser, service.admin_url, opened=service.info.page)
        try:
            yield service, seen
            seen.check()
        finally:
            await seen.page.close()


async def reading(seen: Watched, figure: str) -> float:
    """Return the number of a figure."""
    return float((await seen.text(f"#f-{figure} b")).replace(",", "").split("/")[0].split()[0])


WEIGHT = """[...performance.getEntriesByType('resource'),
    ...performance.getEntriesByType('navigation')]
    .filter(each => /\\/page\\/|\\/$/.test(each.name))
    .reduce((sum, each) => sum + each.transferSize, 0)"""
CHARTS = "#curves .chart:not([hidden])"
PICTURE = "document.querySelector('#c-readings canvas').toDataURL()"


async def test_page_shows_load_as_moving_curves_and_weighs_little(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """Figures, curves, tail and devices follow what the fleet posts; nothing else is loaded.

    A device has a curve that moves. No text leaves its place, however wide the window is. Who has
    not logged in may look, and is told how to act.
    """
    async with dashboard(browser, tmp_path, readings_url) as (service, seen):
        await seen.wait_text("#state-text", "No reading has come yet")
        await seen.wait_text("#state-todo", f"{service.url}/v1/readings")
        async with Fleet(service.url, connections=2, rows=10):
            await seen.wait_text("#state-text", "Readings arrive and are stored")
            committed = "document.querySelector('#f-committed b').textContent"
            await seen.wait_true(f"parseFloat({committed}) > 0")
            first = await seen.page.evaluate(PICTURE)
            await seen.wait_true(f"{PICTURE} !== '{first}'")
            await seen.wait_text("#tail tbody", "device-")
            await service.post({"device_id": "oven-7", "metric": "heat", "value": 187})
            await seen.page.fill("#find", "oven")
            await seen.page.click("#device-list button:has-text('oven-7')")
            await seen.wait_text("#device-charts .legend", "187")
            curve = PICTURE.replace("#c-readings", "#device-charts")
            first = await seen.page.evaluate(curve)
            await seen.wait_true(f"{curve} !== '{first}'", within_s=20)
            for width in WIDTHS:
                await seen.page.set_viewport_size({"width": width, "height": 844})
                assert await seen.page.evaluate(TOO_WIDE) == [], width
                assert await seen.page.evaluate("document.body.scrollWidth") <= width
            assert "device=oven-7" in seen.page.url
        await seen.wait_text("#state-text", "No reading arrives at the moment")
        await seen.wait_text("#f-balance", "Every reading is accounted for")
        stranger = await watched(browser, service.admin_url)  # without the key of the log-in
        await stranger.wait_text("#notices", "To act, open the address with the key")
        assert not await stranger.page.is_visible("#discard-all")
        await stranger.page.click("#look-only button")
        await stranger.page.reload()
        await stranger.wait_text("#link", "Live")
        assert await stranger.page.locator("#look-only").count() == 0, "a closed note stays closed"
        stranger.check()
        await stranger.page.close()
        weight = await seen.page.evaluate(WEIGHT)
        assert 10_000 < weight < WEIGHT_BYTES_MAX
        forged = "document.querySelector('#f-journal b').textContent = '1,234,567,890 MiB'; "
        assert await seen.page.evaluate(forged + TOO_WIDE)  # the check can fail


async def test_page_says_what_senders_lose_though_the_service_is_well(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """Posts that are all refused, and many readings that become dead letters, are not green."""
    async with dashboard(browser, tmp_path, readings_url) as (service, seen):
        assert (await service.post([])).status == 422
        await seen.wait_text("#state-word", "All posts are refused")
        await seen.wait_text("#state-text", "1 with empty")
        items = [{"device_id": "d", "metric": f"m{at}", "value": at} for at in range(7)]
        await service.post([*items, *({"device_id": "d", "metric": "m", "value": "x"},) * 3])
        await seen.wait_text("#state-word", "Many readings become dead letters")
        await seen.wait_text("#state-text", "of the readings of the last minute")
        link = await seen.page.get_attribute("#state-runbook", "href")
        assert link == "/runbook#ingestdeadlettersmany"
        await seen.page.set_viewport_size({"width": 390, "height": 844})
        await seen.page.goto(f"{service.admin_url}/runbook")
        await seen.wait_text("#runbook", "IngestDown")
        assert await seen.page.evaluate(TOO_WIDE) == []
        assert await seen.page.evaluate("document.body.scrollWidth") <= 390


@pytest.mark.slow
async def test_dead_letters_are_shown_in_full_replayed_and_discarded_after_a_question(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """Cancel changes nothing; replay writes the reading to the table; discard deletes it."""
    cold = "alter table readings add constraint cold check (value < 100)"
    hot = {"device_id": "oven", "metric": "heat", "ts": 1750000000, "value": 200}
    async with (
        table(readings_url) as readings_connection,
        dashboard(browser, tmp_path, readings_url) as (service, seen),
    ):
        page = seen.page
        await readings_connection.execute(cold)
        await service.post([hot, {"device_id": "odd", "metric": "m", "value": "warm"}])
        await seen.wait_text("#letters tbody", "refused by the database")
        await seen.wait_text("#letters tbody", "wrong_type")
        await page.fill("#letters-device", "odd")
        await page.click("#letters-form button")
        await seen.wait_true("document.querySelectorAll('#letters tbody tr').length === 1")
        await page.click("#letters tbody button")
        await seen.wait_text("#letter-original", '"value": "warm"')
        await page.click("#letter button")
        await page.fill("#letters-device", "oven")
        await page.click("#letters-form button")
        await seen.wait_true("document.querySelectorAll('#letters tbody tr').length === 1")
        await readings_connection.execute("alter table readings drop constraint cold")

        await page.check("#letters tbody input")
        await page.click("#replay")
        await page.click("#ask button[value=no]")
        assert await service.query("select from readings") == []
        await page.click("#replay")
        await page.click("#ask-yes")
        await seen.wait_text("#letters-note", "1 of 1 are stored: 1 new rows")
        rows = await service.query("select device_id, value from readings")
        assert [tuple(row) for row in rows] == [("oven", 200.0)]

        await page.fill("#letters-device", "")
        await page.click("#letters-form button")
        await seen.wait_true("document.querySelectorAll('#letters tbody tr').length === 1")
        await page.click("#discard-all")
        await seen.wait_text("#ask-title", "Discard 1 dead letters?")
        await page.click("#ask-yes")
        await seen.wait_text("#letters-note", "1 dead letters discarded")
        await seen.wait_text("#letters-empty", "No dead letters")
        await service.wait_sample("ingest_dlq_readings", 0)


@pytest.mark.slow
async def test_hostile_names_are_text_wherever_they_are_shown(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """Tail, devices, readings, refused posts, dead letters, originals: markup is shown as sent."""
    async with dashboard(browser, tmp_path, readings_url) as (service, seen):
        page = seen.page
        good = [{"device_id": name, "metric": name, "value": 1} for name in HOSTILE]
        bad = [{"device_id": name, "metric": name, "value": name, name: 1} for name in HOSTILE]
        await seen.wait_text("#tail-note", "No post in this second")
        await service.post([*good, *bad])
        for name in HOSTILE:
            await seen.wait_text("#letters tbody", name)
        await seen.wait_text("#tail tbody", HOSTILE[0])
        assert (await service.post(bad[:1])).status == 422
        await seen.wait_text("#refused-note", "all_invalid")
        await seen.wait_text("#refused-list tbody", HOSTILE[0])
        for tab in ("newest", "rejected"):
            await page.click(f"#tab-{tab}")
            await seen.wait_text("#device-list", HOSTILE[1])
        await page.click("#tab-all")
        await page.locator("#device-list button").filter(has_text=HOSTILE[2]).click()
        await seen.wait_text("#device-last tbody", HOSTILE[2])
        await seen.wait_text("#device-charts h3", HOSTILE[2])
        await page.click("#letters tbody button >> nth=0")
        await seen.wait_text("#letter-original", "window.hacked")
        await page.click("#letter button")
        await page.fill("#tail-device", HOSTILE[0])
        await page.click("#tail-form button >> nth=0")
        await seen.wait_text("#tail tbody", HOSTILE[0])
        await seen.wait_text("#tail-note", "posts were checked")
        await service.post(good)
        await seen.wait_text("#tail tbody", HOSTILE[0])
        assert HOSTILE[1] not in await seen.text("#tail tbody")
        made = await page.evaluate("document.querySelectorAll('img, main script, td svg').length")
        assert (made, await page.evaluate("typeof window.hacked")) == (0, "undefined")


@pytest.mark.slow
async def test_page_has_no_serious_accessibility_fault(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """axe-core finds none: light and dark, writes paused, with a dialog, on a phone; the log-in."""
    source = axe_source()
    settings: Any = {
        "database_url": readings_url,
        "database_unsafe": True,
        "wait_s_max": 0.6,
        "admin_listen": "[::]:0",
    }
    async with (
        table(readings_url) as readings_connection,
        Service(tmp_path / "state", **settings) as service,
        await browser.new_context(bypass_csp=True) as context,
    ):
        service.admin_url = service.admin_url.replace("[::]", "[::1]")
        page = await context.new_page()
        await page.goto(service.admin_url)
        assert await violations(page, source) == []
        await page.fill("#token", service.info.token)
        await page.click("button")
        await page.close()
        seen = await watched(context, service.admin_url)
        page = seen.page
        await service.post([{"device_id": "d", "metric": "m", "value": each} for each in (1, "x")])
        await seen.wait_text("#letters tbody", "wrong_type")
        await page.click("#device-list button")
        await seen.wait_text("#device-charts h3", "m")
        for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 390)):
            await page.set_viewport_size({"width": width, "height": 844})
            await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            assert await violations(page, source) == [], scheme
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await page.click("#device-close")
        await readings_connection.execute("alter table readings rename value to val")
        await service.post({"device_id": "d", "metric": "m", "value": 2})
        await seen.wait_text("#state-word", "Writes are paused")
        await page.click("#letters tbody button")
        await seen.wait_text("#letter-original", '"d"')
        assert await violations(page, source) == []
        await readings_connection.execute("alter table readings rename val to value")
        seen.check()


async def test_curves_have_one_read_out_and_draw_gaps_as_gaps(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """Keys and pointer move it; a screen reader gets its text; a missing value is not 0."""
    times = f"[...document.querySelectorAll('{CHARTS} time')].map(each => each.textContent)"
    async with dashboard(browser, tmp_path, readings_url) as (service, seen):
        await service.post({"device_id": "d", "metric": "m", "value": 2})
        await seen.wait_text("#f-received small", "1 in all")
        await seen.page.focus("#c-commit canvas")
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
            await seen.page.keyboard.press(key)
        await seen.wait_true(f"new Set({times}).size === 1 && {times}[0] !== ''")
        await seen.wait_text("#cursor-said", "Readings: received")
        await seen.page.keyboard.press("Escape")
        await seen.wait_true(f"{times}.join('') === ''")
        async with asyncio.timeout(10):
            x = 120  # a card above may grow, and move the chart away from the pointer
            while not await seen.page.evaluate(f"new Set({times}).size === 1 && {times}[0] !== ''"):
                x += 1
                await seen.page.hover("#c-buffer canvas", position={"x": x, "y": 50})
        assert await seen.page.evaluate(GROWN) == 0
        inks = await seen.page.evaluate(GAP)
        before, between, after = inks["columns"]
        assert before > 0
        assert after > 0
        assert between == 0
        assert inks["dot"] >= 8  # one second between gaps must be visible, too
        assert inks["rows"] == [5, 5, None, None, 7, 7]
        assert inks["kept"] == [3, 8, [2, 3, 4]]
        assert await seen.page.evaluate(SCALES) == {
            "tops": [0.8, 1000, 1500, 80 * 2**20, 2**10, 2**30],
            "usual": [1040, 30],
            "between": [1, 0.2, 1e308],
            "alone": [[20, 23, 1], [-1, 1, 1]],
            "begin": 1000,
            "told": ["0 B", "80 MiB", "1.5 GiB", "2 TiB"],
            "printed": "a\\u0000b",
            "left": [10, 10, 12],
        }


# How much higher the charts are after many drawings, in cards that are stretched by a neighbour.
GROWN = """(async () => {
    document.querySelector('#c-flush .legend').style.height = '60px';
    const charts = [...document.querySelectorAll('#curves .chart:not([hidden]) canvas')];
    const height = () => charts.reduce((sum, each) => sum + each.height, 0);
    const drawn = async () => {
        charts[0].dispatchEvent(new PointerEvent('pointermove'));
        await new Promise(requestAnimationFrame);
        await new Promise(requestAnimationFrame);
    };
    await drawn();
    const before = height();
    for (let time = 0; time < 20; time++) await drawn();
    return height() - before;
})()"""

GAP = """(async () => {
    const {Board} = await import('/page/board.js');
    const {Chart} = await import('/page/charts.js');
    const board = new Board(1800);
    board.span = 130;
    board.append(1000, {x: Array(40).fill(5)});
    board.append(1060, {x: Array(41).fill(7)});
    board.append(1115, {x: [6]});
    board.append(1130, {x: [null]});
    const chart = new Chart(board, {id: 'gap', title: 'T', unit: 'u', tell: String,
        series: [{name: 'x', label: 'x', tone: 't1'}]});
    document.querySelector('#curves').append(chart.element);
    chart.draw();
    const pen = chart.canvas.getContext('2d');
    const ratio = devicePixelRatio;
    const {width, height, data} = pen.getImageData(0, 0, chart.canvas.width, chart.canvas.height);
    // Of a column of pixels those that are as strong as a curve: rules and shades are not.
    const strong = second => {
        let count = 0;
        for (let y = 0; y < height; y++) {
            const at = 4 * (y * width + Math.round(chart.x(second) * ratio));
            count += data[at + 3] > 90 && data[at + 2] > data[at] + 60;
        }
        return count;
    };
    const columns = [strong(1020), strong(1050), strong(1080)];
    let dot = 0;
    const [dotFrom, dotTo] = [1112, 1118].map(second => Math.round(chart.x(second) * ratio));
    for (let y = 0; y < height; y++)
        for (let x = dotFrom; x < dotTo; x++) {
            const at = 4 * (y * width + x);
            dot += data[at + 3] > 90 && data[at + 2] > data[at] + 60;
        }
    const small = new Board(100);
    small.append(1, {x: [5, 5]});
    small.append(5, {x: [7, 7]});
    const rows = [...small.columns.get('x')];
    const ring = new Board(3);
    ring.append(1, {x: [0, 1]});
    ring.append(2, {x: [1, 2, 3, 4]});  // the first is known already
    return {columns, dot, rows, kept: [ring.first, ring.last + 3, ring.columns.get('x')]};
})()"""


SCALES = """(async () => {
    const {Board, between, scale, usual} = await import('/page/board.js');
    const young = new Board(1800);
    young.append(1000, {x: Array(40).fill(1)});
    const {bytes, make} = await import('/page/text.js');
    const {steady} = await import('/page/state.js');
    const left = [10, 1000, 12].map((odd) => {
        const full = {odd};
        steady(full);
        return full.odd;
    });
    const tops = [[0.75], [1000], [1001], [70 * 2 ** 20, 1024], [2 ** 10, 1024], [2 ** 30, 1024]];
    return {
        tops: tops.map((each) => scale(...each).top),
        usual: [usual([Array(290).fill(800), [25000, 24000]]), usual([[1, 2, 30]])],
        between: [[20.1, 21.9], [5, 5], [-1e308, 1e308]].map((each) => between(...each).step),
        alone: [[21.4, 21.4], [0, 0]].map((each) => Object.values(between(...each))),
        begin: young.begin,
        told: [0, 80 * 2 ** 20, 1.5 * 2 ** 30, 2 ** 41].map(bytes),
        printed: make('p', {}, 'a\\u0000b').textContent,
        left,
    };
})()"""


@pytest.mark.slow
async def test_beyond_the_loopback_the_page_asks_for_the_token(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """A wrong token gets an error; the right one opens page, feed and actions."""
    token = "a-token-of-the-operator"
    everywhere = {"admin_listen": "0.0.0.0:0", "admin_token": token}
    settings: Any = {"database_url": readings_url, "database_unsafe": True, **everywhere}
    async with Service(tmp_path / "state", **settings) as service:
        page = await browser.new_page()
        seen = Watched(page, service.admin_url)
        seen.lost_allowed = True  # the browser reports the 401 of the log-in
        await page.goto(f"{service.admin_url}/")
        await page.fill("#token", "wrong")
        await page.click("button")
        await seen.wait_text("[role=alert]:visible", "not the token")
        await page.fill("#token", token)
        await page.click("button")
        await seen.wait_text("#link", "Live")
        await service.post([{"device_id": "odd", "metric": "m", "value": v} for v in (1, "warm")])
        await seen.wait_text("#letters tbody", "wrong_type")
        await page.check("#letters-all")
        await page.click("#discard")
        await page.click("#ask-yes")
        await seen.wait_text("#letters-note", "letters discarded")
        seen.check()


async def test_device_has_a_chart_of_each_metric_that_begins_with_its_first_reading(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """In alphabetical order, also of all times; few devices need no click."""
    now_s = time.time()
    old = [
        {"device_id": "d", "metric": metric, "ts": now_s - age_s, "value": age_s}
        for metric in ("temp", "hum", "bat")
        for age_s in (3 * 365 * 86_400, 40, 20, 1)
    ]
    titles = "[...document.querySelectorAll('#device-charts .chart:not([hidden]) h3')]"
    board = "(await import('/page/main.js')).device.board"
    async with dashboard(browser, tmp_path, readings_url) as (service, seen):
        await service.post(old)
        await seen.wait_true(
            f"{titles}.map(each => each.textContent.trim()).join() === 'bat,hum,temp'"
        )
        begin = await seen.page.evaluate(f"(async () => {board}.begin)()")
        assert now_s - 60 < begin < now_s - 20, "an hour was asked for"
        await seen.page.click("[name=device-range][value='0'] + span")
        await seen.wait_true(f"(async () => {board}.step > 86400)()")
        begin = await seen.page.evaluate(f"(async () => {board}.begin)()")
        assert 2.9 < (now_s - begin) / (365 * 86_400) < 3.1
        assert "range=0" in seen.page.url


async def test_runbook_is_rendered_with_the_commands_of_this_installation(
    browser: Browser, tmp_path: Path, readings_url: str
) -> None:
    """From the page to a section and back; tables, code and links are elements; nothing is raw."""
    ways = {"./run": "./run", "docker compose exec ingest python -P -m ingest": "docker"}
    for way, begins in {**ways, "": "ingest"}.items():
        env = {"INGEST_COMMAND": way} if way else {}
        settings: Any = {"database_url": readings_url, "database_unsafe": True}
        async with Service(tmp_path / begins.strip("./"), env=env, **settings) as service:
            page = await browser.new_page()
            seen = Watched(page, service.admin_url)
            await page.goto(f"{service.admin_url}/runbook#ingestonhold")
            await seen.wait_text("#runbook h2", "IngestOnHold")
            codes = await page.eval_on_selector_all(
                "#runbook code", "all => all.map(each => each.textContent)"
            )
            commands = [each for each in codes if each.endswith((" doctor", " hold show"))]
            assert len(commands) > 3
            assert all(each.startswith(begins) for each in commands), commands
            text = await page.inner_text("#runbook")
            assert not re.search(r"\*\*|\]\(|^\s*\||^#|```", text, re.MULTILINE), text
            assert ("Where this runbook says" in text) == (not way)
            assert await page.locator("#runbook table").count() > 2
            ids = await page.eval_on_selector_all("[id]", "all => all.map(each => '#' + each.id)")
            links = await page.eval_on_selector_all(
                "#runbook a[href^='#']", "all => all.map(each => each.getAttribute('href'))"
            )
            assert links
            assert set(links) <= set(ids), set(links) - set(ids)
            top = "document.querySelector('#ingestonhold').getBoundingClientRect().top"
            await seen.wait_true(f"Math.abs({top}) < 120")
            for width in WIDTHS:
                await page.set_viewport_size({"width": width, "height": 844})
                assert await page.evaluate("document.body.scrollWidth") <= width
            await page.click("text=Back to the page")
            await seen.wait_text("#link", "Live")
            seen.check()
            await page.close()
