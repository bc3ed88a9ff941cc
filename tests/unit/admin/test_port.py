"""The admin port: probes, metrics, hold/release with its token, pages made for many at once."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest.access.tokens import Tokens
from ingest.admin import port
from ingest.admin.guard import Guard
from ingest.admin.port import PAGES_MAX, Actions, Admin
from ingest.app.metrics_and_causes import own_metrics
from ingest.http.bodies import Bodies
from ingest.http.request_and_answer import Answer, Request
from ingest.http.routes import READ, Route, answered
from ingest.model.errors import Refused, StartError
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s
from tests.support.receiver import OTHER, SECRET, Client, Reply, end, head, line, put
from tests.support.wire import request_of

TOKEN = "s3cret-token"


class Rig:
    """A running admin port."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.released: list[bool] = []
        self.state = b'{"state":"on_hold","reason":"<b>28P01</b>","since":"2026-01-01T00:00:00Z"}'
        self.tokens = Tokens()
        self.guard = Guard(TOKEN, tokens=self.tokens)
        actions = Actions(
            self.guard,
            Bodies(body_bytes_max=1 << 20, body_s_max=10, all_bytes_max=1 << 26),
            message=lambda: "no <b>column</b>",
            release_hold=self._release_hold,
            refused_posts=lambda: [{"peer": "10.0.0.7"}],
            senders=lambda: [{"sender": "token a"}],
            pages={"/slow": Route(READ, self._slow)},
        )
        self.admin = Admin(
            own_metrics(self.ledger),
            lambda: (200, self.state),
            ledger=self.ledger,
            actions=actions,
        )
        self.address = ""
        self.waits = True
        self.slow_ends = asyncio.Event()

    async def _slow(self, _request: Request, _query: str, _at_s: float) -> Answer:
        await self.slow_ends.wait()
        return Answer(200, b"")

    def _release_hold(self, dead_letter: bool) -> bool:
        self.released.append(dead_letter)
        return self.waits

    async def ask(self, data: bytes) -> Reply:
        """Send raw bytes; return the answer."""
        client = await Client.connect(self.address)
        await client.send(data)
        reply = await client.reply()
        await client.close()
        return reply

    async def release(self, body: bytes, authorization: str | None) -> Reply:
        """Ask for hold/release."""
        headers = {"Content-Length": str(len(body))}
        if authorization is not None:
            headers["Authorization"] = authorization
        return await self.ask(head("POST", "/hold/release", headers) + body)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A running admin port, closed afterwards."""
    rig = Rig()
    rig.address = await rig.admin.start("127.0.0.1", 0)
    yield rig
    await rig.admin.close()
    await rig.admin.close()  # twice is fine


async def test_metrics_are_prometheus_text(rig: Rig) -> None:
    """The exposition parses, under the media type that goes with it, and counts itself."""
    await rig.ask(head("GET", "/metrics"))
    reply = await rig.ask(head("GET", "/metrics"))
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {each.name: each for each in text_string_to_metric_families(reply.body.decode())}
    assert "ingest_readings_received" in families
    asked = families["ingest_http_requests"].samples
    assert {sample.labels["route"]: sample.value for sample in asked} == {"/metrics": 1.0}


async def test_hold_quotes_the_database_to_who_may_look(rig: Rig) -> None:
    """/hold may quote readings, so on all interfaces it needs the token."""
    rig.guard.bound("0.0.0.0:1")
    assert (await rig.ask(head("GET", "/hold"))).status == 401
    reply = await rig.ask(head("GET", "/hold", {"Authorization": f"Bearer {TOKEN}"}))
    assert (reply.status, reply.document) == (200, {"said": "no <b>column</b>"})


async def test_open_pages_leave_room_for_an_operator(rig: Rig) -> None:
    """With as many open pages as there may be, `hold show` and `hold release` work."""
    pages = [await Client.connect(rig.address) for _ in range(PAGES_MAX)]
    for each in pages:
        await each.send(head("GET", "/slow"))
    assert (await rig.ask(head("GET", "/slow"))).code == "busy"
    for own in ("/hold", "/refused"):
        assert (await rig.ask(head("GET", own))).status == 401
    assert (await rig.release(b"", f"Bearer {TOKEN}")).status == 200
    rig.slow_ends.set()
    for each in pages:
        assert (await each.reply()).status == 200
        await each.close()


async def test_start_on_a_busy_port_names_its_own_flag(rig: Rig) -> None:
    """An address that cannot be bound is an error that names --admin-listen."""
    with pytest.raises(StartError, match="--admin-listen HOST:PORT"):
        await Rig().admin.start("127.0.0.1", int(rig.address.rpartition(":")[2]))


def bearer(token: str) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


async def test_with_a_token_for_this_port_everybody_needs_one(rig: Rig) -> None:
    """Also on the loopback. One to read may not act; a token for posts opens nothing."""
    rig.guard.bound("127.0.0.1:1")
    look = head("GET", "/senders").replace(b"Host: door", b"Host: localhost")
    assert (await rig.ask(look)).document == {"senders": [{"sender": "token a"}]}
    post_token = "iot_" + "p" * 43
    put(
        rig.tokens,
        line(SECRET, "ops", admin="operate"),
        line(OTHER, "wall", admin="read"),
        line(post_token, "device"),
    )

    def asked(method: str, target: str, token: str) -> bytes:
        headers = {**bearer(token), "Content-Length": "0"} if token else {"Content-Length": "0"}
        return head(method, target, headers).replace(b"Host: door", b"Host: localhost")

    expected = {"": (401, 401), post_token: (401, 401), OTHER: (200, 401), SECRET: (200, 200)}
    expected[TOKEN] = (200, 200)
    for token, (looks, acts) in expected.items():
        assert (await rig.ask(asked("GET", "/senders", token))).status == looks, token
        assert (await rig.ask(asked("POST", "/hold/release", token))).status == acts, token
        assert (await rig.ask(asked("GET", "/refused", token))).status == acts, token
        for open_page in ("/livez", "/readyz", "/metrics"):
            assert (await rig.ask(asked("GET", open_page, token))).status == 200
    put(rig.tokens, line(SECRET, "ops", admin="operate"), end(SECRET))
    for token in ("", SECRET):  # that the only one has ended does not open the page
        assert (await rig.ask(asked("GET", "/senders", token))).status == 401


async def test_log_in_lasts_as_long_as_its_token(rig: Rig) -> None:
    """The cookie of a token cannot be made from its digest or from the cookie of another one."""
    guard = rig.guard
    guard.bound("0.0.0.0:1")
    put(rig.tokens, line(SECRET, "ops", admin="operate"), line(OTHER, "wall", admin="read"))

    def cookie(token: str) -> str:
        return guard.log_in(token).decode().removeprefix("Set-Cookie: ").partition(";")[0]

    assert guard.log_in("wrong") == b""
    ours, ops, wall = cookie(TOKEN), cookie(SECRET), cookie(OTHER)
    rights = [(guard.may_look({"Cookie": each}), guard.may_act({"Cookie": each}))
              for each in (ours, ops, wall)]  # fmt: skip
    assert rights == [(True, True), (True, True), (True, False)]
    name, _, value = ops.partition("=")
    forged = value.partition(".")[0] + "." + wall.partition(".")[2]
    for bad in (forged, value[:-1], value.partition(".")[0], "." + value.partition(".")[2], "é."):
        assert not guard.may_look({"Cookie": f"{name}={bad}"})
    assert SECRET not in ops
    put(rig.tokens, line(OTHER, "wall", admin="read"))
    assert not guard.may_look({"Cookie": ops})
    assert guard.may_act({"Cookie": ours})
    with pytest.raises(Refused):  # a cookie needs the page's CSRF token, as before
        guard.check_act({"Cookie": ours})


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
        page.ask("a", Accept_Encoding="gzip;q=0, br"),
        page.ask("b"),
        page.ask("a", Accept_Encoding="gzip, br"),
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
    assert [getattr(each, "status", None) for each in answers] == [200, 200, 503]
    assert isinstance(answers[2], Refused)
    assert answers[2].code == "busy"
    assert (await answered(one, request(), "", 0.0)).status == 200
