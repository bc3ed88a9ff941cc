"""The tools of the benchmarks: wrk, programs and their end, packages, the readings."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvloop
from aiohttp import web

from benchmarks import against, peers, telegraf, wrk
from benchmarks.alternating import knows_partitions
from benchmarks.attack import most_mib
from benchmarks.attackers import HALF_HEAD, KINDS
from benchmarks.contenders import PHASE_US
from benchmarks.database import execute
from benchmarks.floors import copy, ready_batches
from benchmarks.open_loop import LINES, TELEGRAF, Load, OpenLoop, Readings, Tally
from benchmarks.overload import Flood, lost_rows
from benchmarks.processes import Broken, Child, Missing, cpu_clock_s, free_port, run_driver
from benchmarks.stories import close_all, is_open
from ingest.app.rules import make_rules
from ingest.config.settings import Settings
from ingest.formats import post as posted
from ingest.formats.json_post import decode
from ingest.model.rows import HEADER, TRAILER, decode_rows
from loadgen.driver.ports import Loss
from loadgen.traffic.post import Post
from tests.support.asking import first_answer
from tests.support.receiver import until
from tests.system.service import REPOSITORY, wait_gone

SAID = """Running 5s test @ http://127.0.0.1:41223/v1/readings
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.61ms    0.93ms  18.63ms   87.22%
    Req/Sec    24.73k     1.05k   26.42k    72.00%
  Latency Distribution
     50%    2.44ms
     75%    2.90ms
     90%    3.32ms
     99%  500.00us
  123021 requests in 5.00s, 17.60MB read
{more}Requests/sec:  24601.83
Transfer/sec:      3.52MB
"""


def test_wrk_is_understood() -> None:
    """Counts, units and the driver's share of a core are read right."""
    peak = wrk.understand(SAID.format(more=""), cpu_s=2.0)
    assert peak == wrk.Peak(123_021, 5.0, 0, 0, 2.44, 0.5, 0.4)
    assert peak.taken == 123_021


def test_wrk_refused_and_broken_ones_are_counted() -> None:
    """Answers that are not 2xx, and broken connections, are not taken posts."""
    more = (
        "  Socket errors: connect 1, read 20, write 300, timeout 4000\n"
        "  Non-2xx or 3xx responses: 21\n"
    )
    peak = wrk.understand(SAID.format(more=more), cpu_s=1.0)
    assert (peak.refused, peak.broken, peak.taken) == (21, 4_321, 123_000)


def test_wrk_that_says_something_else_is_no_figure() -> None:
    """An unknown output of wrk is an error that shows the output."""
    with pytest.raises(Broken, match="unable to connect"):
        wrk.understand("unable to connect to 127.0.0.1:1", cpu_s=0)


def test_cpu_clock_counts_user_and_system_of_all_threads() -> None:
    """It is as exact as the process's own clock; a process that has ended has no clock."""
    began_s = cpu_clock_s(os.getpid())
    own_s = time.process_time()

    def burn() -> None:
        end_s = time.thread_time() + 0.05
        while time.thread_time() < end_s:
            os.stat("/")

    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    used_s, own_s = cpu_clock_s(os.getpid()) - began_s, time.process_time() - own_s
    assert used_s >= 0.05
    assert used_s == pytest.approx(own_s, abs=0.005)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(Broken, match="has ended"):
        cpu_clock_s(gone.pid)


def test_wrk_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Missing, match="apt-get install wrk"):
        wrk.require_wrk()


def test_driver_that_fails_is_broken() -> None:
    """The error has its exit code and the end of its output."""
    with pytest.raises(Broken, match="code 3: no such thing"):
        run_driver([sys.executable, "-c", "print('no such thing'); exit(3)"], 1)


def test_child_that_ends_while_starting_tells_why(tmp_path: Path) -> None:
    """Its output is in the error, which is raised without a wait."""
    child = Child("mute", [sys.executable, "-c", "print('bad flag'); exit(1)"], tmp_path)
    with pytest.raises(Broken, match="mute ended while starting: bad flag"):
        child.wait_until(lambda: False)


async def test_child_ends_with_its_killed_parent(tmp_path: Path) -> None:
    """A benchmark that is killed leaves no server behind."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.processes import Child\n"
        "child = Child('sleep', ['sleep', '600'], Path(sys.argv[1]))\n"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(  # noqa: ASYNC220  a parent for a moment
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    await wait_gone(pid)


# Packages


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a PATH of one folder for programs in place of Debian's, and an empty cache."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def put(folder: Path, name: str, script: str) -> None:
    """Put a shell script there."""
    (folder / name).write_text("#!/bin/sh\n" + script)
    (folder / name).chmod(0o755)


def test_program_without_the_tools_is_missing(programs: Path) -> None:
    """On another system the peer is left out, with the reason."""
    assert list(programs.iterdir()) == []
    with pytest.raises(Missing, match="influxdb comes from Debian's packages"):
        peers.program("influxdb", "influxd")


def test_program_that_cannot_be_fetched_is_missing(programs: Path, tmp_path: Path) -> None:
    """Without a network the peer is left out, with what apt-get said."""
    put(programs, "dpkg", "exit 0")
    put(programs, "apt-get", "echo 'E: no such luck' >&2; exit 100")
    with pytest.raises(Missing, match="E: no such luck"):
        peers.program("influxdb", "influxd")
    assert list((tmp_path / "cache" / "iot-ingest" / "peers").iterdir()) == []


def test_program_is_fetched_once(programs: Path, tmp_path: Path) -> None:
    """It is unpacked into the cache, and found there the next time."""
    calls = tmp_path / "calls"
    put(programs, "apt-get", f'echo fetched >>"{calls}"; : >influxdb_1.deb')
    put(
        programs,
        "dpkg",
        'PATH=/usr/bin:/bin; [ "$1" = -x ] && mkdir -p "$3/usr/bin" && : >"$3/usr/bin/influxd"',
    )
    first = peers.program("influxdb", "influxd")
    assert first.is_relative_to(tmp_path / "cache")
    assert first.exists()
    assert peers.program("influxdb", "influxd") == first
    assert calls.read_text() == "fetched\n"


# Readings


def decoded(body: bytes) -> list[object]:
    """Give the readings of a body, as the service takes them."""
    rules = make_rules(Settings())
    block, errors, _ = decode(body, posted.Post(None, False, 1_800_000_000_000_000, 0.0, rules))
    assert not errors
    assert block is not None
    return list(decode_rows(block.tuples))


@pytest.mark.parametrize("rows", [1, 100])
def test_open_loop_posts_are_taken_and_all_new(rows: int) -> None:
    """The service takes the bodies; timestamps count from `first_us`, and none comes twice."""
    source = Readings(Load(8080, 1, 1, 1_700_000_000_000_000, rows, "/v1/readings?ack=committed"))
    posts = [source.take() for _ in range(5)]
    found = []
    for post in posts:
        assert post is not None
        assert post.readings == rows
        head, _, body = post.request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/readings?ack=committed HTTP/1.1\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        found += decoded(body)
    assert sorted(each.ts_us for each in found) == list(  # type: ignore[attr-defined]
        range(1_700_000_000_000_000, 1_700_000_000_000_000 + 5 * rows)
    )


def test_posts_of_lines_and_of_telegraf_have_their_bodies() -> None:
    """Lines have the readings of the JSON posts; a post of Telegraf is gzip, and of one time."""
    post = Readings(Load(8080, 1, 1, 1_000_000, 2, "/write", form=LINES)).take()
    assert post is not None
    head, _, body = post.request.partition(b"\r\n\r\n")
    assert b"Content-Type: text/plain\r\n" in head
    assert body == (
        b"temperature,device_id=device-000 value=20.00 1000000\n"
        b"temperature,device_id=device-007 value=21.01 1000001"
    )
    post = Readings(Load(8080, 1, 1, 5, telegraf.ROWS, "/write", form=TELEGRAF)).take()
    assert post is not None
    head, _, body = post.request.partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip\r\n" in head
    assert gzip.decompress(body) == telegraf.body(5)


def test_other_commit_is_102f91b0_unless_one_is_named(tmp_path: Path) -> None:
    """And a tree that does not know partitions is not asked for a table without them."""
    assert against.parser().parse_args(["--against", "--quick"]).against == "102f91b0"
    assert against.parser().parse_args(["--against", "HEAD"]).against == "HEAD"
    assert knows_partitions(REPOSITORY)
    assert not knows_partitions(tmp_path)


def test_closed_loop_is_over_a_while_after_its_first_post() -> None:
    """However late the first post is, it is sent: a short load is never empty."""
    source = Readings(Load(8080, None, 0.0, 1_700_000_000_000_000))
    assert source.take() is not None
    assert source.take() is None


def test_tally_counts_only_what_was_taken() -> None:
    """A 503 is refused, not taken, and its latency does not count."""
    tally = Tally(Load(0, 1, 1, 1_000, 100), 0.0)
    post = Post(b"", 100, "live", 0)
    tally.answered(post, 202, b"", 10.0, 10.5, final=True)
    tally.answered(post, 503, b"", 10.0, 12.0, final=True)
    tally.lost(Loss(post, "gone", True, 10.0, 11.0, True))
    tally.answered(post._replace(number=7), 200, b"", 10.0, 10.5, final=True)
    assert (tally.taken_rows, tally.lost_posts) == (200, 1)
    assert tally.taken_us == [1_000, 1_700]
    assert tally.statuses == {200: 1, 202: 1, 503: 1}
    assert tally.latencies.count == 2
    assert tally.latencies.max_s == 0.5


def test_tally_of_a_warm_up_counts_answers_and_no_latencies() -> None:
    """Posts that were due before the measurement are taken, but have no latency."""
    tally = Tally(Load(0, 1, 1, 1_000), 10.0)
    post = Post(b"", 1, "live", 0)
    tally.answered(post, 202, b"", 9.9, 12.0, final=True)
    tally.answered(post, 202, b"", 10.0, 10.25, final=True)
    assert tally.taken_rows == 2
    assert (tally.latencies.count, tally.latencies.max_s) == (1, 0.25)


def flood_of(taken_us: list[int]) -> Flood:
    """Give a flood that took these posts."""
    found = OpenLoop(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, {}, 0.0, taken_us)
    return Flood(0.0, found, 0.0, 0.0)


def test_reading_that_is_lost_is_not_made_good_by_another_one(readings_url: str) -> None:
    """A post that was stored without an answer does not hide an acknowledged one that is lost."""
    first_us = 1_700_000_000_000_000
    taken_us = [first_us, first_us + 10, first_us + 30]
    uvloop.run(copy(readings_url, ready_batches(40, 100, first_us)))  # post 2 without an answer
    assert lost_rows(readings_url, {first_us: 40}, [flood_of(taken_us)], 10) == 0
    gone = f"timestamptz 'epoch' + {first_us + 39} * interval '1 microsecond'"
    execute(readings_url, f"delete from readings where ts = {gone}")
    assert lost_rows(readings_url, {}, [flood_of(taken_us)], 10) == 1
    assert lost_rows(readings_url, {first_us: 40}, [], 10) == 1
    uvloop.run(copy(readings_url, ready_batches(10, 100, first_us + PHASE_US)))  # another drive's
    assert lost_rows(readings_url, {first_us: 40}, [flood_of(taken_us)], 10) == 2


def test_ready_batches_are_whole_streams_of_new_rows() -> None:
    """The floor of the database writes as many different rows as it is measured for."""
    streams = ready_batches(250, 100, 1_700_000_000_000_000)
    assert len(streams) == 3
    rows = []
    for stream in streams:
        assert stream.startswith(HEADER)
        assert stream.endswith(TRAILER)
        rows += list(decode_rows(stream[len(HEADER) : -len(TRAILER)]))
    assert [each.ts_us for each in rows] == list(
        range(1_700_000_000_000_000, 1_700_000_000_000_250)
    )


def test_idle_connection_that_the_other_side_closed_is_not_taken_for_one_that_is_held() -> None:
    """A peak beside 5,000 connections needs 5,000 open connections."""
    mine, its = socket.socketpair()
    other, held = socket.socketpair()
    with held:
        assert is_open(mine)
        its.close()
        assert not is_open(mine)
        devices = [mine, other]
        close_all(devices)
        assert devices == []
        assert other.fileno() == -1


def attack_with(name: str, value: int) -> str:
    """Give a program that attacks as usual, with another value of one number."""
    return (
        f"import sys; from benchmarks import attackers; attackers.{name} = {value}; "
        "attackers.main(*sys.argv[1:])"
    )


async def test_bombs_that_are_not_refused_for_their_size_end_the_attack() -> None:
    """An attack that the service does not refuse is an error, not a good result."""
    sizes = []

    async def accept(request: web.Request) -> web.Response:
        sizes.append(len(await request.read()))
        return web.json_response({}, status=413 if len(sizes) < 9 else 202)

    app = web.Application()
    app.router.add_post("/v1/readings", accept)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-c",
            attack_with("BOMB_BYTES", 9),
        ),
        *("bombs", str(runner.addresses[0][1])),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await attacker.communicate()
    await runner.cleanup()
    assert attacker.returncode == 1
    assert out == b"ready\n"
    assert b"the attack got 202" in err
    assert set(sizes) == {9}


async def test_half_heads_hold_their_connections_and_open_them_again() -> None:
    """A connection that the service closes is opened again; no connection ends its head."""
    heads: list[bytes] = []

    async def close_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.read(1_000))
        if len(heads) > 3:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(close_the_first, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-c",
            attack_with("HALF_HEADS", 5),
        ),
        *("half_heads", str(port)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    assert attacker.stdout is not None
    async with asyncio.timeout(20):
        assert await attacker.stdout.readline() == b"ready\n"
        await until(lambda: len(heads) == 8)
    attacker.kill()
    await attacker.communicate()
    server.close()
    assert set(heads) == {HALF_HEAD}
    assert b"\r\n\r\n" not in HALF_HEAD


def test_attacks_of_two_rounds_are_compared_by_the_most_memory_of_each() -> None:
    """The most memory counts of all attacks, during them and after them."""
    figures = {
        f"{kind}_{number}_rss_{when}_mib": 50.0
        for kind in KINDS
        for number in (1, 2)
        for when in ("during", "after")
    }
    figures["alone_1_rss_during_mib"] = 400.0
    figures["half_heads_1_rss_during_mib"] = 100.0
    figures["bombs_2_rss_after_mib"] = 120.0
    assert (most_mib(figures, 1), most_mib(figures, 2)) == (100.0, 120.0)


async def test_slow_line_forwards_all_bytes_both_ways(tmp_path: Path) -> None:
    """All bytes arrive, and the end of the stream too."""
    path = str(tmp_path / "socket")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())  # until the end of what is sent
        writer.close()

    sent = os.urandom(300_000)
    async with await asyncio.start_unix_server(echo, path):
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.slow_line", str(port), path, "3000000"]
        line = Child("slow_line", command, tmp_path)
        try:
            reader, writer = await _connected(port)
            writer.write(sent)
            writer.write_eof()
            async with asyncio.timeout(20):
                assert await reader.read() == sent
            writer.close()
        finally:
            line.stop()


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await first_answer(
        lambda: asyncio.open_connection("127.0.0.1", port), OSError, within_s=10
    )
