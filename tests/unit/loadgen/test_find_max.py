"""The search finds the limit from both sides, in few steps, and confirms it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from loadgen.measure import find_max
from loadgen.measure.find_max import CLOSE_ENOUGH, RATE_MAX, FindMax, Search, Step
from loadgen.measure.load import LoadPlan
from loadgen.report.text import STEP_HEAD, found, step
from loadgen.traffic.post import target_of
from loadgen.traffic.traffic import Recipe

STEPS_MAX = 20 + 4 + 12


def _search(passes: Callable[[float], bool], first_rate: float) -> tuple[Search, int]:
    search = Search(first_rate)
    steps = 0
    while search.rate is not None:
        steps += 1
        assert steps <= STEPS_MAX
        search.took(passes(search.rate))
    return search, steps


@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_search_finds_the_border_within_five_percent(border: float, first_rate: float) -> None:
    """The result is at most the limit, and at most 5 % less, from any first rate."""
    search, _ = _search(lambda rate: rate <= border, first_rate)
    assert search.found is not None
    assert border / CLOSE_ENOUGH <= search.found <= border


def test_search_of_what_never_passes_ends_without_a_result() -> None:
    """If every rate fails, the search ends without a result."""
    search, steps = _search(lambda rate: False, 100)
    assert (search.found, steps) == (None, 8)


def test_search_of_what_always_passes_ends_at_the_top() -> None:
    """If every rate passes, the search ends at its highest rate."""
    search, _ = _search(lambda rate: True, 1000)
    assert search.found is not None
    assert RATE_MAX <= search.found < 2 * RATE_MAX


def test_rate_that_passed_by_luck_is_not_the_result() -> None:
    """After a failed confirmation a lower rate must pass."""
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        lucky = tried.count(rate) == 1
        return rate <= (1000 if lucky else 900)

    search, _ = _search(passes, 100)
    assert search.found is not None
    assert 800 < search.found <= 900
    assert tried[-2:] == [search.found] * 2


def test_search_gives_up_on_a_service_that_never_passes_twice() -> None:
    """Each failed confirmation lowers the rate; the search ends after some of them."""
    confirmations = 0
    search = Search(100)
    while search.rate is not None:
        confirmations += search.confirming
        search.took(not search.confirming and search.rate <= 1000)
    assert (search.found, confirmations) == (None, 6)


class Tired:
    """A service that takes a number of posts in each step, then answers 503."""

    def __init__(self) -> None:
        self.url = ""
        self.posts = 0
        self.posted = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        """Count and answer."""
        await request.read()
        self.posts += 1
        self.posted.set()
        if self.posts > 60:
            return web.json_response({"code": "buffer_full"}, status=503)
        return web.json_response({"accepted": 1, "dead_lettered": 0}, status=202)


@pytest.fixture
async def tired() -> AsyncIterator[Tired]:
    """Run it on a free port."""
    service = Tired()
    app = web.Application()
    app.router.add_post("/v1/readings", service.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield service
    await runner.cleanup()


def _plan(url: str) -> LoadPlan:
    return LoadPlan(target=target_of(url), recipe=Recipe(devices=10), shape=None, connections=4)


@pytest.mark.slow
@pytest.mark.alone
async def test_find_max_finds_what_a_real_server_takes_without_refusals(
    tired: Tired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is 400 a second (60 posts in 0.15 s); each failed step says why."""
    monkeypatch.setattr(find_max, "WARM_UP_S", 0.05)
    monkeypatch.setattr(find_max, "PAUSE_S", 0.0)
    search = FindMax(_plan(tired.url), p99_ms=60_000, step_s=0.1, first_rate=100)

    def on_step(step_: Step) -> None:
        tired.posts = 0
        assert len(step(step_)) > len(STEP_HEAD) - len("result")

    await search.run(on_step)
    assert search.search.found is not None
    assert 380 < search.search.found <= 400
    assert all("refused" in each.why for each in search.steps if each.rate > 401)
    assert all(not each.why for each in search.steps if each.rate < 400)
    assert [each.confirming for each in search.steps][-2:] == [False, True]
    report = search.document({}, interrupted=False)
    assert report["found_posts_per_s"] == search.search.found
    assert f"highest rate: {search.search.found:,.0f} posts/s" in found(report)


async def test_find_max_with_a_bound_that_none_keeps_finds_nothing_and_says_why(
    tired: Tired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an impossible p99 no rate is found; each step says why."""
    monkeypatch.setattr(find_max, "WARM_UP_S", 0.0)
    monkeypatch.setattr(find_max, "PAUSE_S", 0.0)
    search = FindMax(_plan(tired.url), p99_ms=1e-6, step_s=0.5, first_rate=4)
    await search.run(lambda _: None)
    assert search.search.found is None
    assert {each.why for each in search.steps} == {"p99 above 1e-06 ms"}
    report: dict[str, Any] = search.document({}, interrupted=False)
    assert "no rate was found" in found(report)


async def test_find_max_stopped_in_a_step_leaves_that_step_out(
    tired: Tired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that was stopped is not in the result."""
    monkeypatch.setattr(find_max, "WARM_UP_S", 0.01)
    monkeypatch.setattr(find_max, "PAUSE_S", 0.0)
    search = FindMax(_plan(tired.url), p99_ms=60_000, step_s=30, first_rate=100)
    running = asyncio.create_task(search.run(lambda _: None))
    async with asyncio.timeout(20):
        await tired.posted.wait()
        search.stop()
        await running
    assert search.steps == []
    assert "interrupted" in found(search.document({}, interrupted=True))
