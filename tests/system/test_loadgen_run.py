"""`loadgen run` against the real service: its figures are those of the table; it always reports.

The commands of docs/reference/loadgen.md are run here, too."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.documents import DOCUMENTS, fences
from tests.support.processes import killed_after
from tests.system.service import REPOSITORY, Service, environment, run_command, started

Script = Callable[[int], Awaitable[web.StreamResponse]]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


async def test_run_against_the_service_reports_what_the_table_holds(
    open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """Odd posts get the right refusal, the others are in the table, all reports agree."""
    path = open_tmp_path / "run.json"
    async with Service(open_tmp_path / "state", **at_hand) as service:
        metrics = f"{service.admin_url}/metrics"
        done = await run_command(
            *("loadgen", "run", "--url", service.url, "--admin-url", metrics),
            *("--rate", 1000, "--arrivals", "poisson", "--posts", 1200, "--devices", 50),
            *("--batch", "1x3,10x1", "--duplicates", "5%", "--late", "2%", "--future", "2%"),
            *("--poison", "3%", "--broken", "2%", "--seed", 7),
            *("--json", path),
        )
        assert done.code == 0, done.stdout + done.stderr
        report = _read(path)
        posts, readings, mixed = report["posts"], report["readings"], report["mixed_in"]
        samples = await service.wait_quiet()
        (row,) = await service.query(
            "select count(*), count(distinct device_id) devices, min(ts) < now() - '1 h'::interval"
            " as late from readings"
        )
        # Storm: each of 30 devices posts 5 minutes of its two metrics, then one live reading each.
        storm = await run_command(
            *("loadgen", "run", "--url", service.url, "--shape", "storm:5", "--devices", 30),
            *("--rate", 300, "--posts", 90, "--seed", 8, "--gzip", "--ack", "committed"),
        )
        closed = await run_command(
            *("loadgen", "run", "--url", service.url, "--closed", "--batch", 100),
            *("--posts", 50, "--connections", 3),
        )
        await service.wait_quiet()
        after = await service.query("select count(*) from readings")
        assert await service.imbalance() == 0
    assert posts["right"] == posts["offered"] == 1200
    assert posts["retries"] == 0
    assert report["all_right"]
    assert all(mixed[name] > 5 for name in ("duplicates", "late", "future", "poison", "broken"))
    assert readings["accepted"] == samples["ingest_readings_accepted_total"]
    assert (
        readings["dead_lettered"]
        == samples['ingest_readings_dead_lettered_total{reason="invalid"}']
    )
    assert 0 < readings["dead_lettered"] < mixed["future"] + mixed["poison"]
    assert readings["committed"] == row["count"] == samples["ingest_readings_committed_total"]
    assert row["count"] == readings["accepted"] - samples["ingest_readings_duplicate_total"]
    assert (row["devices"], row["late"]) == (50, True)
    assert report["statuses"].keys() == {"202", "400", "422"}
    assert report["statuses"]["400"] == mixed["broken"]
    assert report["seed"] == 7
    assert report["generator"]["cpu_share"] > 0
    points = report["timeline"]["points"]
    committed = sum(each["committed_readings_per_s"] * each["span_s"] for each in points)
    assert committed == pytest.approx(row["count"], rel=0.2)
    assert f"{readings['accepted']:,} accepted" in done.stdout
    assert f"{row['count']:,} committed by the service" in done.stdout
    assert (storm.code, closed.code) == (0, 0), storm.stdout + closed.stdout
    assert "backlog: 30" in storm.stdout
    assert "answers     200: 90;" in storm.stdout
    assert after[0][0] == row["count"] + 30 * 10 + 60 + 5000


class Scripted:
    """A server that answers each request as a test says."""

    def __init__(self, script: Script) -> None:
        self.requests = 0
        self._script = script

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer with the script."""
        await request.read()
        self.requests += 1
        return await self._script(self.requests)


@asynccontextmanager
async def _scripted(script: Script) -> AsyncIterator[tuple[Scripted, str]]:
    server = Scripted(script)
    app = web.Application()
    app.router.add_post("/v1/readings", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _accept(_: int) -> web.StreamResponse:
    return web.json_response(
        {"errors": []}, status=202
    )  # without counts: all readings are accepted


async def _until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not ready():  # noqa: ASYNC110  the process cannot set an event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_interrupted_still_reports_and_exits_130(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C and kill end the sending, not the report; posts in flight are finished."""
    path = tmp_path / "run.json"
    async with (
        _scripted(_accept) as (server, url),
        started(
            *("loadgen", "run", "--url", url, "--rate", 200, "--duration-s", 300, "--json", path)
        ) as process,
    ):
        await _until(lambda: server.requests > 30)
        process.send_signal(number)
        async with asyncio.timeout(20):
            stdout, _ = await process.communicate()
    assert process.returncode == 130
    assert stdout.startswith(b"interrupted: ")
    report = _read(path)
    assert report["interrupted"]
    assert report["posts"]["right"] == report["posts"]["taken"] == server.requests


async def test_run_on_a_terminal_shows_live_lines_and_then_the_summary() -> None:
    """Lines are rewritten in place, and removed before the summary."""
    async with _scripted(_accept) as (_, url):
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "loadgen", "run", "--url", url, "--rate", "100", "--duration-s", "2"),
            cwd=REPOSITORY,
            env=environment({"TERM": "xterm", "COLUMNS": "120"}, measured=False),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = bytearray()
        try:
            async with killed_after(process), asyncio.timeout(20):
                while b" of a core" not in seen:
                    seen += await asyncio.to_thread(os.read, ours, 65536)
                assert await process.wait() == 0
        finally:
            os.close(ours)
    live, _, summary = seen.decode().rpartition("\x1b[2K")
    live = " ".join(live.split())  # a long line goes on in the next one
    assert "posts/s: " in live
    assert "in flight" in live
    assert "p99 " in live
    assert "200 offered (100/s), 200 answered as they should" in summary


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_readme_commands_of_loadgen_run_do_what_they_are_shown_for(
    tmp_path: Path, open_tmp_path: Path
) -> None:
    """All commands of the page run, each for a second; the search tries each rate for 0.2 s.

    They run against the real service, which refuses `--poison` readings for any seed.
    """
    document = DOCUMENTS["docs/reference/loadgen.md"]
    lines = re.findall(r"^\./run loadgen run ?(.*)$", document, re.MULTILINE)
    assert len(lines) >= 3
    async with Service(open_tmp_path / "state") as service:
        runs = []
        for line in lines:
            words = [word.replace("report.", f"{tmp_path}/report.") for word in shlex.split(line)]
            short = ("--step-s", "0.2") if "--find-max" in words else ("--duration-s", "1")
            runs.append([*words, "--url", service.url, *short])
        for words in runs:
            done = await run_command("loadgen", "run", *words, within_s=150)
            assert done.code == 0, f"{words}\n{done.stdout}{done.stderr}"
    assert _read(tmp_path / "report.json")["timeline"]["points"]


ROWS = "select device_id, metric, ts, value from readings order by 1, 2, 3"
WIDE = (
    b"\xef\xbb\xbfat;sensor;temp;hum;note;temp2\r\n"
    b'2026-09-01T08:00:00+02:00;"cellar; north";11.5;;dry;1\r\n'
    b"1788242400;attic;20;41.25;warm;\r\n"
)


@pytest.fixture
async def service(open_tmp_path: Path, at_hand: dict[str, Any]) -> AsyncIterator[Service]:
    """Give a service."""
    async with Service(open_tmp_path / "state", **at_hand) as started:
        yield started


async def test_example_of_the_page_stores_its_lines(service: Service, open_tmp_path: Path) -> None:
    """A file whose columns have other names, as it is typed in a checkout."""
    example = fences(DOCUMENTS["docs/reference/loadgen.md"])[0].text
    (open_tmp_path / "run").write_text(
        f'#!/bin/sh\nshift\nexec "{sys.executable}" -m loadgen "$@"\n'
    )
    (open_tmp_path / "run").chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", example),
        cwd=open_tmp_path,
        env={
            **environment(measured=False),
            "INGEST_STATE_DIR": str(service.state_dir),
            "PYTHONPATH": str(REPOSITORY),
        },
    )
    assert await process.wait() == 0
    await service.wait_quiet()
    assert [tuple(each.values()) for each in await service.query(ROWS)] == [
        ("cellar", "temperature", datetime(2026, 9, 1, 8, 0, tzinfo=UTC), 11.5),
        ("cellar", "temperature", datetime(2026, 9, 1, 8, 10, tzinfo=UTC), 11.4),
    ]


async def test_wide_file_gives_a_reading_for_each_number(
    service: Service, open_tmp_path: Path
) -> None:
    """All columns of numbers are metrics, or the named ones; twice the same is stored once."""
    path = open_tmp_path / "wide.csv"
    path.write_bytes(WIDE)
    for columns in ("time=at,device=sensor", "time=at,device=sensor,warmth=temp"):
        words = ("--url", service.url, "--columns", columns, "--batch", 2)
        for _ in range(2):
            done = await run_command("loadgen", "csv", path, *words)
            assert done.code == 0, done.stderr
            assert ("not read (no number in the first line): note" in done.stdout) == (
                "warmth" not in columns
            )
    await service.wait_quiet()
    at = datetime(2026, 9, 1, 6, 0, tzinfo=UTC)
    north = [(n, at, v) for n, v in (("temp", 11.5), ("temp2", 1.0), ("warmth", 11.5))]
    attic = [(n, at, v) for n, v in (("hum", 41.25), ("temp", 20.0), ("warmth", 20.0))]
    assert [tuple(each.values()) for each in await service.query(ROWS)] == [
        *(("attic", *each) for each in attic),
        *(("cellar; north", *each) for each in north),
    ]
