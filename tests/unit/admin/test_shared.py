"""Pages that are made for many at once: how often, for whom, and never too old."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from ingest.admin import port
from ingest.http.request import Answer, Request
from ingest.http.routes import READ, Route, answered
from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s
from tests.support.receiver import head
from tests.support.wire import request_of


def request(**headers: str) -> Request:
    """Return a request with these headers."""
    return request_of(head("GET", "/", {each.replace("_", "-"): headers[each] for each in headers}))


class Page:
    """A page that shows a number and takes a while."""

    def __init__(self, took_s: float = 0.002) -> None:
        self.number = self.made = 0
        self._took_s = took_s
        self.share = port.shared(Route(READ, self._answer), lambda asked: asked.headers.get("Who"))

    async def _answer(self, asked: Request, query: str, _at_s: float) -> Answer:
        assert "Accept-Encoding" not in asked.headers  # it need not compress
        self.made += 1
        number = self.number
        await asyncio.sleep(self._took_s)
        return Answer(200, b"%d %b" % (number, query.encode()))

    async def ask(self, query: str = "", **headers: str) -> bytes:
        """Ask for it once."""
        return (await answered(self.share, request(**headers), query, monotonic_s())).body


async def test_page_is_made_once_for_all_who_wait() -> None:
    """Forty requests cost two makings at most: those that came after the first began wait."""
    page = Page()
    assert set(await asyncio.gather(*(page.ask() for _ in range(40)))) == {b"0 "}
    assert page.made <= 2


async def test_answer_is_never_older_than_its_request() -> None:
    """What happened before a request is in its answer, also if others ask all the time."""
    page = Page(0.001)
    for number in range(1, 6):
        page.number = number
        assert set(await asyncio.gather(*(page.ask() for _ in range(5)))) == {b"%d " % number}


async def test_page_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of different queries, too; and one alone does not wait."""
    monkeypatch.setattr(port, "PAUSE_S_MAX", 0.05)

    async def alone_s() -> float:
        began_s = monotonic_s()
        await Page(0.01).ask()
        return monotonic_s() - began_s

    # The machine may stand still for a moment.
    assert min([await alone_s() for _ in range(3)]) < 0.04
    page, began_s = Page(0.01), monotonic_s()
    await page.ask()
    await asyncio.gather(*(page.ask(str(number)) for number in range(4)))
    assert page.made == 5
    assert monotonic_s() - began_s >= 0.01 + 4 * 0.06
    assert len(page.share.answer.__self__._made) == port.KEPT  # type: ignore[attr-defined]


async def test_what_the_page_depends_on_is_not_mixed_up() -> None:
    """Query, compression, and who asks: each has an answer of its own."""
    page = Page(0.0)
    bodies = await asyncio.gather(
        page.ask("a"), page.ask("b"), page.ask("a", Accept_Encoding="gzip, br")
    )
    assert [*bodies[:2], gzip.decompress(bodies[2])] == [b"0 a", b"0 b", b"0 a"]
    assert page.made == 3
    await asyncio.gather(page.ask("a", Who="x"), page.ask("a", Who="y"))
    assert page.made == 5


async def test_different_queries_without_end_are_refused() -> None:
    """Otherwise the next honest one would wait for all of them."""
    page = Page(0.0)
    asked = [page.ask(str(number)) for number in range(30)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, bytes) for each in answers) == port.WAITING_MAX
    assert {each.code for each in answers if isinstance(each, Refused)} == {"busy"}
    assert await page.ask("30") == b"0 30"


async def test_few_are_in_work_and_more_are_told_to_come_again() -> None:
    """The bound holds for all pages together, and a page that fails gives its place back."""
    few, page = port.Few(2), Page(0.01)
    one, other = few.bounded(Route(READ, page._answer)), few.bounded(Route(READ, page._answer))
    answers = await asyncio.gather(
        *(answered(each, request(), "", 0.0) for each in (one, other, one)), return_exceptions=True
    )
    assert [getattr(each, "status", None) for each in answers] == [200, 200, None]
    assert isinstance(answers[2], Refused)
    assert answers[2].code == "busy"
    assert (await answered(one, request(), "", 0.0)).status == 200
