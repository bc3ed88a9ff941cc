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
from loadgen.measure.find_max import CLOSE_ENOUGH, FindMax, Search
from loadgen.measure.load import LoadPlan
from loadgen.report.text import found
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
