"""The CSV client sends a post until it has an answer; the command line reports it correctly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from loadgen.cli.main import main
from loadgen.csv.client import Client
from tests.support.commands import Here
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


async def test_csv_without_a_service_says_where_it_looked_and_how_to_say_another_place(
    csv: Csv, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not try for the minutes that a service which was there is given."""
    monkeypatch.setattr("loadgen.csv.client.CONNECT_S_MAX", 0.1)
    nobody = scripted.url.rpartition(":")[0] + ":1"
    code, _, err = await csv(_write(tmp_path / "f.csv", 2), nobody)
    assert code == 1
    assert f"no answer from {nobody}" in err
    assert "--url or its --state-dir" in err


async def test_wide_csv_without_a_number_is_not_all_right(
    scripted: Scripted, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its numbers have decimal commas: nothing was posted, so nothing is well."""
    path = tmp_path / "f.csv"
    path.write_text("timestamp;temp\n2024-01-01 00:00:00;21,5\n")
    done = await Here(capsys, main)(
        "csv", path, "--device", "d", "--columns", "time=timestamp", "--url", scripted.url
    )
    assert done.code == 1
    assert "not read (no number in the first line): temp" in done.stdout


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read {path}: No such file"),
        ("folder", "cannot read {path}: Is a directory"),
        ("", "{path} has no header"),
        ("1,2\n3,4\n", "{path} must have one column 'timestamp'; its header is '1, 2'"),
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
