"""The CSV client sends a post until it has an answer; the command line reports it correctly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from loadgen.cli.main import main
from loadgen.csv import client as client_module
from loadgen.csv.client import Client, GaveUp
from tests.support.commands import Here
from tests.support.faulty_proxy import FaultyProxy
from tests.system.service import Done

Script = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]
Csv = Callable[..., Awaitable[Done]]


class Scripted:
    """A server on a real port that answers posts as a test says, and keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.queries: list[str] = []
        self.answers: list[Script] = []
        self.url = ""
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Reply with the next script, or accept everything when there is none."""
        body = await request.read()
        self.bodies.append(body)
        self.queries.append(request.query_string)
        if self.answers:
            return await self.answers.pop(0)(request, body)
        items = json.loads(body)
        count = len(items) if isinstance(items, list) else 1
        return web.json_response(
            {"accepted": count, "dead_lettered": 0, "ack": "buffered", "errors": []}, status=202
        )


def _says(status: int, document: object, **headers: str) -> Script:
    async def answer(request: web.Request, body: bytes) -> web.StreamResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(document, status=status, headers=sent)

    return answer


async def _hangs_up(request: web.Request, body: bytes) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """Give a scripted server."""
    server = Scripted()
    app = web.Application()
    app.router.add_post("/v1/readings", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    server.url = f"http://127.0.0.1:{server.port}"
    yield server
    await runner.cleanup()


async def test_post_meets_trouble_and_sends_the_same_bytes_until_accepted(
    scripted: Scripted,
) -> None:
    """After 503, 429, a proxy's 502 and a lost connection the same bytes are sent again."""
    problem = {"code": "buffer_full", "title": "No room"}
    scripted.answers = [
        _says(503, problem),
        _says(429, {}, Retry_After="0"),
        _says(502, "bad gateway", Retry_After="0"),
        _hangs_up,
        _says(503, {"code": "outcome_unknown"}, Retry_After="0"),
    ]
    async with Client(scripted.url, connections_max=1, give_up_s=30) as client:
        answer = await client.post(b"[1,2]")
    assert answer.ok
    assert answer.accepted == 2
    assert scripted.bodies == [b"[1,2]"] * 6
    assert (client.retries, client.trouble) == (5, "")


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the pauses that the client makes; only they move its clock, at once."""
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)

    monkeypatch.setattr(client_module, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(client_module, "time", SimpleNamespace(monotonic=lambda: sum(pauses_s)))
    return pauses_s


async def test_post_waits_for_the_time_of_retry_after(
    scripted: Scripted, pauses_s: list[float]
) -> None:
    """The pause is that of Retry-After."""
    scripted.answers = [_says(503, {}, Retry_After="7"), _says(503, {}, Retry_After="20")]
    async with Client(scripted.url, connections_max=1, give_up_s=30) as client:
        await client.post(b"[1]")
    assert pauses_s == [7, 20]


@pytest.mark.parametrize("header", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "soon", "²", ""])
async def test_post_with_a_wrong_retry_after_is_tried_again(
    scripted: Scripted, header: str
) -> None:
    """A header that is no number of seconds counts as no header."""
    scripted.answers = [_says(503, {}, Retry_After=header)]
    async with Client(scripted.url, connections_max=1, give_up_s=10) as client:
        assert (await client.post(b"[1]")).ok


async def test_post_that_is_refused_is_not_sent_again(scripted: Scripted) -> None:
    """A 4xx is final: its errors are returned."""
    errors = [
        {"index": 3, "field": "ts", "code": "ts_in_future", "message": "too new"},
        {"x": 1},
        7,
    ]
    scripted.answers = [_says(422, {"code": "all_invalid", "detail": "no", "errors": errors})]
    async with Client(f"{scripted.url}/v1/readings/", connections_max=1, give_up_s=10) as client:
        answer = await client.post(b"[1]")
    assert not answer.ok
    assert (answer.status, answer.code, answer.detail) == (422, "all_invalid", "no")
    assert answer.errors == ((3, "ts_in_future", "ts: too new"),)
    assert len(scripted.bodies) == 1


@pytest.mark.parametrize("document", ["welcome", [1], {"ok": True}, None])
async def test_success_of_something_else_is_not_taken_for_a_promise(
    scripted: Scripted, document: object
) -> None:
    """A proxy's 200 page does not count as an accepted post."""
    scripted.answers = [_says(200, document)]
    async with Client(scripted.url, connections_max=1, give_up_s=10) as client:
        answer = await client.post(b"[1]")
    assert not answer.ok
    assert answer.code == "not_the_service"


async def test_post_to_nobody_gives_up_in_time_and_says_why(
    free_port: int, pauses_s: list[float]
) -> None:
    """The client gives up after its time, with an error."""
    async with Client(f"http://127.0.0.1:{free_port}", connections_max=1, give_up_s=60) as client:
        with pytest.raises(GaveUp, match=r"no answer from .*tried \d+ times") as caught:
            await client.post(b"[1]")
    assert f"tried {len(pauses_s) + 1} times" in str(caught.value)
    assert len(pauses_s) > 2
    assert sum(pauses_s) <= 60
    async with Client("htp:/nowhere", connections_max=1, give_up_s=5) as client:
        with pytest.raises(GaveUp):
            await client.post(b"[1]")


async def test_post_whose_reply_is_lost_is_sent_again(scripted: Scripted) -> None:
    """The client cannot know that the server has the post, so it sends it again."""
    async with FaultyProxy("127.0.0.1", scripted.port) as proxy:
        proxy.lose_replies(1)
        async with Client(f"http://127.0.0.1:{proxy.port}", connections_max=1, give_up_s=20) as it:
            assert (await it.post(b"[1,2,3]")).accepted == 3
            assert it.retries == 1
    assert scripted.bodies == [b"[1,2,3]"] * 2


@pytest.fixture
def csv(capsys: pytest.CaptureFixture[str]) -> Csv:
    """Give a way to run `loadgen csv`, in this process."""
    here = Here(capsys, main)

    async def run(path: Path, url: str, *more: str) -> Done:
        return await here("csv", path, "--device", "d", "--metric", "m", "--url", url, *more)

    return run


def _write(path: Path, rows: int) -> Path:
    lines = [f"2024-01-01 00:{n // 60:02}:{n % 60:02},{n}" for n in range(rows)]
    path.write_text("\n".join(["timestamp,value", *lines]))
    return path


async def test_csv_all_accepted_exits_with_zero_and_a_summary(
    csv: Csv, scripted: Scripted, tmp_path: Path
) -> None:
    """Every row is posted once, in batches, with the ack that was asked for."""
    path = _write(tmp_path / "f.csv", 1050)
    code, out, err = await csv(path, scripted.url, "--batch", "100", "--ack", "committed")
    assert (code, err) == (0, "")
    assert out.startswith(
        "rows=1050 accepted=1050 dead_lettered=0 refused=0 left_out=0 retries=0 seconds="
    )
    assert sorted(len(json.loads(each)) for each in scripted.bodies) == [50] + [100] * 10
    assert set(scripted.queries) == {"ack=committed"}
    values = [item["value"] for body in scripted.bodies for item in json.loads(body)]
    assert sorted(values) == list(range(1050))


async def test_csv_with_bad_lines_and_dead_letters_names_the_lines_and_exits_with_one(
    csv: Csv, scripted: Scripted, tmp_path: Path
) -> None:
    """Refused items are named by their line in the file; the others are accepted."""
    path = _write(tmp_path / "f.csv", 20)
    path.write_text(path.read_text().replace(",3\n", ",three\n"))
    error = {"index": 4, "field": "ts", "code": "ts_too_old", "message": "old"}
    scripted.answers = [_says(202, {"accepted": 9, "dead_lettered": 1, "errors": [error]})]
    code, out, err = await csv(path, scripted.url, "--batch", "10", "--connections", "1")
    assert code == 1
    assert "rows=19 accepted=18 dead_lettered=1 refused=0 left_out=1" in out
    assert "line 5: 'three' is not a number" in err
    assert (
        "line 7: ts_too_old: ts: old" in err
    )  # item 4 is in line 7, since the bad line before it is no item


async def test_csv_refused_as_a_whole_stops_at_once(
    csv: Csv, scripted: Scripted, tmp_path: Path
) -> None:
    """A refusal that is not about the items ends the run, since it concerns all posts."""
    scripted.answers = [_says(400, {"code": "ack_unavailable", "detail": "memory only"})]
    path = _write(tmp_path / "f.csv", 100)
    code, out, err = await csv(
        path, scripted.url, "--ack", "durable", "--batch", "10", "--connections", "1"
    )
    assert code == 1
    assert "refused at line 2: 400 ack_unavailable: memory only" in err
    assert "refused=10" in out
    assert len(scripted.bodies) == 1


async def test_csv_items_refused_goes_on_with_the_next_post(
    csv: Csv, scripted: Scripted, tmp_path: Path
) -> None:
    """After a 422, which is about the items of one post, the next post is sent."""
    scripted.answers = [_says(422, {"code": "all_invalid", "detail": "all of them"})]
    path = _write(tmp_path / "f.csv", 20)
    code, out, err = await csv(path, scripted.url, "--batch", "10", "--connections", "1")
    assert (code, len(scripted.bodies)) == (1, 2)
    assert "accepted=10 dead_lettered=0 refused=10" in out
    assert "line 2: 422 all_invalid: all of them" in err


async def test_csv_without_a_service_gives_up_and_names_the_line(
    csv: Csv, free_port: int, tmp_path: Path
) -> None:
    """The message names the line at which it gave up."""
    path = _write(tmp_path / "f.csv", 20)
    code, out, err = await csv(path, f"http://127.0.0.1:{free_port}", "--give-up-s", "0.3")
    assert code == 1
    assert "gave up at line 2: no answer from" in err
    assert "accepted=0" in out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--timezone", "Nowhere"), "there is no time zone 'Nowhere'"),
        (("--batch", "0"), "must be at least 1"),
        (("--ack", "maybe"), "there is no"),
        (("--give-up-s", "soon"), "invalid float"),
    ],
)
async def test_csv_used_wrongly_exits_with_two(
    csv: Csv, tmp_path: Path, more: tuple[str, ...], why: str
) -> None:
    """A wrong flag is named before a post is sent."""
    code, _, err = await csv(_write(tmp_path / "f.csv", 1), "http://127.0.0.1:9", *more)
    assert code == 2
    assert why in err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read {path}: No such file"),
        ("folder", "cannot read {path}: Is a directory"),
        ("", "{path} has no header"),
        ("1,2\n3,4\n", "{path}, line 1: the header must name"),
    ],
)
async def test_csv_that_is_none_is_wrong_use_and_a_sentence(
    csv: Csv, tmp_path: Path, content: str | None, why: str
) -> None:
    """A wrong file gives one sentence: no traceback, and no result line."""
    path = tmp_path / "file.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    code, out, err = await csv(path, "http://127.0.0.1:9")
    assert (code, out) == (2, "")
    assert err.startswith("loadgen csv: " + why.format(path=path))
    assert err.count("\n") == 1


async def test_csv_of_a_header_only_is_an_empty_result(csv: Csv, tmp_path: Path) -> None:
    """A file without rows is no error."""
    path = tmp_path / "file.csv"
    path.write_text("timestamp,value\n")
    code, out, err = await csv(path, "http://127.0.0.1:9")
    assert (code, err) == (0, "")
    assert out.startswith("rows=0 accepted=0")
