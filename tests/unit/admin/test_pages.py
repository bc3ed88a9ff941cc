"""The dashboard over HTTP: who may see and act, headers, the feed, wrong requests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.admin.dashboard import history as dashboard_feed
from ingest.admin.dashboard import pages as dashboard
from ingest.admin.dashboard.assets import FOLDER, RUNBOOK
from ingest.admin.dashboard.history import COLUMNS, UNREAD_BYTES_MAX
from ingest.admin.dashboard.tail import Tail
from ingest.admin.guard import Guard
from ingest.system import logs
from tests.support.dashboard import TOKEN, Rig, running
from tests.support.receiver import Client, head, until
from tests.unit.admin.test_tail import decoded, reading

PRIVATE = (
    "/runbook",
    "/runbook.md",
    "/",
    "/history",
    "/feed",
    "/devices",
    "/devices/readings?device_id=d",
    "/dead-letters",
)
ACTIONS = ("/dead-letters/replay", "/dead-letters/discard", "/hold/release")
BODIES = {"/hold/release": {"dead_letter": False}}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """The port on the loopback."""
    async with running(tmp_path) as rig:
        yield rig


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """The port on all addresses."""
    async with running(tmp_path, host="0.0.0.0") as rig:
        yield rig


async def test_open_port_warns_of_what_needs_no_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beyond the loopback the warning says which parts have no token."""
    for host, warned in (("0.0.0.0", 1), ("127.0.0.1", 0)):
        async with running(tmp_path, host=host):
            pass
        out = capfd.readouterr().out
        assert out.count("open_to_the_network") == warned
        assert out.count("for page and actions, not for probes and /metrics") == warned


# The page


async def test_page_carries_the_csrf_token_only_for_who_is_logged_in(rig: Rig) -> None:
    """Who is not may look. The headers are those of the recorded requests."""
    assert b'name="csrf" content=""' in (await rig.ask("/")).body
    reply = await rig.ask("/", {"Cookie": rig.cookie})
    assert f'content="{rig.admin_side.guard.csrf}"'.encode() in reply.body
    assert b"{{csrf}}" not in reply.body


def test_markup_holds_no_script_style_or_foreign_address() -> None:
    """The page has nothing that its own policy forbids."""
    for page in FOLDER.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<style|style=|\son\w+=|https?://|<script(?![^>]*src=)", text), page
    for script in FOLDER.glob("*.js"):
        text = script.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text)
        assert "https://" not in text
    assert len((FOLDER / "charts.js").read_text().splitlines()) < 300


async def test_every_file_that_the_page_names_is_served_small_and_revalidated(rig: Rig) -> None:
    """A file has its type, is compressed if the client accepts that, and 304 if it is unchanged."""
    named = {
        name
        for page in FOLDER.glob("*.html")
        for name in re.findall(r'(?:href|src)="(/page/[^"]+)"', page.read_text())
    }
    imported = {
        f"/page/{name}"
        for script in FOLDER.glob("*.js")
        for name in re.findall(r'from "\./(\w+\.js)"', script.read_text())
    }
    later = {  # only if there are several processes
        f"/page/{name}"
        for name in re.findall(r'import\("\./(\w+\.js)"\)', (FOLDER / "main.js").read_text())
    }
    assert {f"/page/{path.name}" for path in FOLDER.glob("*.js")} <= named | later
    for path in named | imported | later:
        plain = await rig.ask(path, {"Accept-Encoding": "gzip; q=0.0, br"})
        small = await rig.ask(path, {"Accept-Encoding": "gzip, br"})
        assert plain.status == small.status == 200, path
        assert gzip.decompress(small.body) == plain.body == (FOLDER / path[6:]).read_bytes()
        again = await rig.ask(path, {"If-None-Match": plain.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    types = {(await rig.ask(path)).headers["content-type"] for path in named}
    assert types == {
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
        "image/svg+xml",
    }
    assert (await rig.ask("/", method="HEAD")).status == 200


# Who may look


@pytest.mark.parametrize("target", PRIVATE)
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "10.0.0.1:80", "x"])
async def test_name_that_is_not_of_the_loopback_is_refused(
    rig: Rig, target: str, host: str
) -> None:
    """A Host that is no name of the loopback is refused (DNS rebinding)."""
    assert (await rig.ask(target, {"Host": host})).code == "wrong_host"


async def test_probes_and_metrics_need_neither_name_nor_token(rig: Rig, open_rig: Rig) -> None:
    """Probes and metrics need no token and no Host of the loopback."""
    for each in (rig, open_rig):
        for target in ("/metrics", "/livez", "/readyz"):
            assert (await each.ask(target, {"Host": "pod.example"})).status == 200


@pytest.mark.parametrize("target", PRIVATE)
async def test_beyond_the_loopback_nothing_is_shown_without_the_token(
    open_rig: Rig, target: str
) -> None:
    """Beyond the loopback, without the token the page is the log-in and the rest is 401."""
    headers = {"Host": "ingest.example", "Authorization": "Bearer wrong", "Cookie": "a=b; c"}
    reply = await open_rig.ask(target, headers)
    assert reply.status == 401
    assert open_rig.admin_side.guard.csrf.encode() not in reply.body
    if target not in ("/feed", "/devices/readings?device_id=d"):
        headers["Authorization"] = f"Bearer {TOKEN}"
        assert (await open_rig.ask(target, headers)).status == 200


# Who may act


async def test_log_ins_that_do_not_come_leave_room_for_probes(open_rig: Rig) -> None:
    """300 of them, more than there may be connections: probes and metrics are answered at once."""
    holders = [await Client.connect(open_rig.address) for _ in range(300)]
    for each in holders:
        with contextlib.suppress(ConnectionError):
            await each.send(head("POST", "/login", {"Content-Length": "10"}))
    await asyncio.sleep(0.05)
    for path in ("/livez", "/readyz", "/metrics"):
        async with open_rig.connected() as client:
            await client.send(head("GET", path))
            assert (await client.reply()).status == 200
    assert (await holders[-1].reply()).code in {"busy", "body_timeout"}
    for each in holders:
        await each.close()


@pytest.mark.parametrize("target", ACTIONS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-CSRF-Token": ""}, {401, 403}),
        ({"X-CSRF-Token": "0" * 48}, {403}),
        ({"X-CSRF-Token": "\xff"}, {403}),
        ({"Origin": "http://evil.example"}, {403}),
        ({"Origin": "null"}, {403}),
        ({"Origin": "http://["}, {403}),
        ({"Origin": "http://[evil.example]"}, {403}),
        ({"Sec-Fetch-Site": "cross-site"}, {403}),
        ({"Sec-Fetch-Site": "same-site"}, {403}),
        ({"Host": "evil.example"}, {421}),
    ],
)
async def test_other_sites_cannot_act(
    rig: Rig, target: str, headers: dict[str, str], status: set[int]
) -> None:
    """Each sign of another site is enough to refuse an action, and nothing is done."""
    body: object = BODIES.get(target, {"where": {}})
    assert (await rig.send(target, body, headers)).status in status
    assert not rig.released


async def test_key_logs_one_browser_in(rig: Rig) -> None:
    """The first request with the key gets the cookie; later ones may look, as without a key."""
    path = rig.admin_side.guard.key_target
    assert (await rig.ask(path, {"Host": "evil.example"})).status == 421
    for wrong in ("", "?key=", f"?key={path[-24:-1]}", "?key=%FF"):
        reply = await rig.ask(f"/login/key{wrong}")
        assert reply.status in {303, 400}
        assert "set-cookie" not in reply.headers
    first, second = await rig.ask(path), await rig.ask(path)
    assert (first.status, first.headers["location"], second.status) == (303, "/", 303)
    assert first.headers["set-cookie"].startswith(rig.cookie)
    assert "set-cookie" not in second.headers
    assert b"Admin token" in (await rig.ask("/login")).body
    assert "set-cookie" not in (await rig.ask("/login/key?key=")).headers
    assert Guard(TOKEN).key_target == "/"  # the operator has set a token


async def test_no_answer_metric_or_log_has_the_key(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither before its use nor after it: who may read these could log in."""
    target = rig.admin_side.guard.key_target
    key = target.encode()[-24:]
    for when in ("before", "after"):
        for path in ("/x", "/login/", "/login/key", "/login", "/", "/history", "/metrics"):
            for method in ("GET", "POST"):
                assert key not in (await rig.ask(path, method=method)).body, (when, path)
        assert (await rig.ask(target)).status == 303
    assert key.decode() not in "".join(capfd.readouterr())


# What is asked badly


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/history?since=x", "bad_parameter"),
        ("/history?since=nan", "bad_parameter"),
        ("/history?until=1", "unknown_parameter"),
        ("/feed?device_id=%00", "bad_parameter"),
        ("/devices?silent_s=0", "bad_parameter"),
        ("/devices?silent_s=1&silent_s=2", "bad_parameter"),
        ("/devices/readings", "bad_parameter"),
        ("/devices/newest?limit=0", "bad_parameter"),
        ("/devices/readings?device_id=d&step=1", "bad_parameter"),
        ("/devices/readings?device_id=d&metric=m&step=0", "bad_parameter"),
        ("/devices/readings?device_id=d&metric=m&step=1&limit=2", "bad_parameter"),
        ("/devices/readings?device_id=d&metric=m&step=1&from=1&to=3000", "bad_parameter"),
        ("/devices/readings?device_id=d&metric=m&step=1&from=2&to=1", "bad_parameter"),
        ("/devices/readings?device_id=d&from=2&to=1", "bad_parameter"),
        ("/devices/readings?device_id=d&from=yesterday", "bad_parameter"),
        ("/devices/readings?device_id=d&to=2026-01-01T00:00:00", "bad_parameter"),
        ("/devices/readings?device_id=d&to=99999999999", "starting"),
        ("/devices/readings?device_id=d&metric=m&step=1&from=1&to=2000", "starting"),
        ("/devices/list?prefix=%00", "bad_parameter"),
        ("/devices/list?limit=201", "bad_parameter"),
        ("/dead-letters/count?limit=1", "unknown_parameter"),
        ("/devices/readings?device_id=" + "x" * 257, "bad_parameter"),
        ("/devices/readings?device_id=d&limit=0", "bad_parameter"),
        ("/devices/readings?device_id=%ff", "bad_parameter"),
        ("/devices/readings?device_id=%ED%A0%80", "bad_parameter"),
        ("/devices/readings?device_id=d", "starting"),
        ("/dead-letters?reason=because", "bad_parameter"),
        ("/runbook.md?section=../../etc/passwd", "unknown_parameter"),
        ("/dead-letters?id=" + "0" * 32, "not_found"),
        ("/dead-letters?id=../../etc/passwd", "not_found"),
    ],
)
async def test_bad_questions_are_refused_by_name(rig: Rig, target: str, code: str) -> None:
    """A wrong request gets a problem document, never a 500."""
    assert (await rig.ask(target)).code == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "not_json"),
        (b"[]", "bad_request"),
        (b"{}", "bad_request"),
        (b'{"ids":[]}', "bad_request"),
        (b'{"ids":["short"]}', "bad_request"),
        (b'{"ids":[7]}', "bad_request"),
        (b'{"ids":["../../../../../../../etc/passwd1"]}', "bad_request"),
        (b'{"where":{},"ids":[]}', "bad_request"),
        (b'{"where":{"since":"now"}}', "bad_request"),
        (b'{"where":{},"most":0}', "bad_request"),
        (b'{"where":{},"most":true}', "bad_request"),
        (b'{"ids":["00000000000000000000000000000000"],"most":1}', "bad_request"),
        (b'{"where":{"reason":"because"}}', "bad_parameter"),
        (b'{"where":{"device":7}}', "bad_parameter"),
        (b'{"where":{"reason":[]}}', "bad_parameter"),
        (b'{"where":{"code":false}}', "bad_parameter"),
        (b'{"where":{"device":{}}}', "bad_parameter"),
        (b'{"where":[]}', "bad_request"),
        (b'{"ids":["00000000000000000000000000000000"],"code":7}', "bad_parameter"),
        (b" " * 2_000_000, "body_too_large"),
    ],
)
async def test_bad_actions_are_refused_and_do_nothing(rig: Rig, body: bytes, code: str) -> None:
    """An action with a wrong body is refused and does nothing."""
    assert (await rig.send("/dead-letters/discard", body)).code == code


# The feed


async def test_feed_tells_every_second_and_history_what_was_before(rig: Rig) -> None:
    """The first event comes at once, has a value for each column, and the state of /readyz."""
    rig.dashboard.history.sample(1000)
    rig.ledger.received = 5
    rig.dashboard.history.sample(1001)
    history = (await rig.ask("/history?since=0")).document
    assert history["order"] == list(COLUMNS) == list(history["columns"])
    first = history["first"] + len(history["columns"]["held"]) - 1
    assert first == 1001
    assert history["listen"] == "127.0.0.1:1"
    assert (history["buffer"], history["journal_bytes_max"]) == ("journal", 8 * 2**30)
    async with rig.feed() as client:
        event = await rig.event(client)
        assert event["t"] == 1001
        assert len(event["v"]) == len(COLUMNS)
        assert event["ready"]["state"] == "accepting"
        assert event["sum"]["received"] == 5
        assert event["sum"]["damaged"] == 0
        rig.ledger.received, rig.ledger.recovered, rig.ledger.replayed = 6, 7, 8
        rig.journal = rig.journal._replace(damaged=9)
        await rig.dashboard.tick()
        figures = (await rig.event(client))["sum"]
        told = [figures[each] for each in ("received", "recovered", "replayed", "damaged")]
        assert told == [6, 7, 8, 9]
    await until(lambda: _gone(rig))


async def test_level_says_whether_posts_are_refused_or_writes_wait(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused is bad, but not at a start or stop; every other cause is a warning."""
    levels: list[float | int | None] = []
    gauges = rig.ledger.gauges
    assert gauges is not None
    up, answer = True, (200, b"")
    rig.ledger.gauges = gauges._replace(database_up=lambda: up)
    observed = rig.dashboard._observed._replace(readyz=lambda: answer)
    monkeypatch.setattr(rig.dashboard, "_observed", observed)
    for state, refusing, cause, up in (  # noqa: B007  the lambda above reads it
        ("accepting", False, "", True),
        ("accepting", False, "unreachable", False),
        ("accepting", False, "", False),
        ("on_hold", False, "schema", True),
        ("accepting", False, "invalid_full", True),
        ("starting", True, "starting", False),
        ("draining", True, "draining", True),
        ("starting", True, "unreachable", False),
    ):
        document = {"state": state, "refusing": refusing, "cause": cause}
        answer = (503 if refusing else 200, json.dumps(document).encode())
        rig.dashboard.history.sample(1000 + len(levels))
        levels.append(rig.dashboard.history.newest()[-1])
    assert levels == [None, 1, 1, 1, 1, 3, 3, 2]  # the first second has no rates yet


async def test_runbook_is_a_page_of_a_text(rig: Rig) -> None:
    """The text is the one in the repository; the page has its script."""
    text = await rig.ask("/runbook.md")
    assert text.body == RUNBOOK.read_bytes()
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"/page/runbook.js" in (await rig.ask("/runbook")).body


async def test_tick_that_fails_is_told_and_the_next_one_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tick that fails does not end the ticks."""
    logs.configure("info")
    monkeypatch.setattr(dashboard, "LATE_S", -0.999)
    ticks: list[int] = []

    def fail() -> bool:
        ticks.append(1)
        raise ValueError("a fault")

    monkeypatch.setattr(rig.dashboard.history, "sample", fail)
    stop = asyncio.Event()
    running = asyncio.create_task(rig.dashboard.run(stop))
    await until(lambda: len(ticks) >= 2)
    stop.set()
    await running
    assert capfd.readouterr().err.count("tick_failed") == 1


def _gone(rig: Rig) -> bool:
    """Send an event; return whether the stream has noticed that its page is gone."""
    rig.dashboard.feed.send(b"{}")
    return rig.dashboard.feed.clients == 0


async def test_tail_of_a_feed_is_its_own(rig: Rig) -> None:
    """A page that follows a device gets only that one; when it leaves, nothing is searched for."""
    tail = rig.dashboard.tail
    assert isinstance(tail, Tail)
    followed = "?tail=true&device_id=wanted"
    async with rig.feed("?tail=true") as all_, rig.feed(followed) as one:
        tail.take()
        tail.observe(decoded(reading("other")))
        for _ in range(5):
            tail.observe(decoded(reading("x"), reading("wanted", 3.0)))
        await rig.dashboard.tick()
        told = (await rig.event(one, "tail"))["readings"]
        assert {(each[1], each[3]) for each in told} == {("wanted", 3.0)}
        assert len(told) == 5
        sample = await rig.event(all_, "tail")
        assert sample["posts"] == 6
        assert sample["readings"][0][1] == "other"
    await until(lambda: _gone(rig))
    assert tail.watched == 0
    assert not tail._needles


async def test_page_that_does_not_read_is_not_waited_for(rig: Rig) -> None:
    """A page that does not read is closed after a bound; other pages get their events."""
    async with rig.feed() as deaf, rig.feed() as other:
        deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
        event = b'"' + b"x" * 30_000 + b'"'
        for _ in range(500):
            rig.dashboard.feed.send(event)
            await rig.event(other)
        transports = [each.transport for each in rig.admin._port.connections._open]
        unread = max(each.get_write_buffer_size() for each in transports if each is not None)
        assert UNREAD_BYTES_MAX < unread < UNREAD_BYTES_MAX + 2 * len(event)


async def test_pages_beyond_the_bound_are_told_to_come_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of pages is bounded, so that probes get in; a page that leaves is replaced."""
    monkeypatch.setattr(dashboard_feed, "CLIENTS_MAX", 1)
    async with rig.feed():
        assert (await rig.ask("/feed")).code == "busy"
        assert (await rig.ask("/metrics")).status == 200
    await until(lambda: _gone(rig))
    async with rig.feed():
        pass


async def test_close_ends_the_streams_at_once(rig: Rig) -> None:
    """An open page does not delay the stop."""
    async with rig.feed() as client:
        rig.dashboard.close()
        await until(lambda: rig.dashboard.feed.clients == 0)
        async with asyncio.timeout(5):
            await client.reader.read()
