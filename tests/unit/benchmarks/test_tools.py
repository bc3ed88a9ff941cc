"""The tools of the benchmarks: wrk, programs and their end, packages, the readings."""

from __future__ import annotations

import gzip
import socket
import ssl
from pathlib import Path

import pytest
import uvloop

from benchmarks import wrk
from benchmarks.columns import FORMS, MIXED, TABLES, VALUES
from benchmarks.contenders import PHASE_US
from benchmarks.database import execute
from benchmarks.floors import copy, ready_batches
from benchmarks.open_loop import Load, OpenLoop, Readings, Tally
from benchmarks.overload import Flood, lost_rows
from benchmarks.processes import make_certificate, own_server
from benchmarks.telegraf import HOSTS
from ingest.app.post_rules import make_rules
from ingest.config.settings import Settings
from ingest.formats import post as posted
from ingest.formats.json.body import begin, decode
from ingest.formats.lines.body import LinePost
from ingest.formats.lines.body import begin as begin_lines
from ingest.formats.lines.keys import Naming
from ingest.model.block import decode_rows
from ingest.model.moments import runs
from ingest.model.reading import Reading
from loadgen.driver.ports import Loss
from loadgen.traffic.post import Post

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


# Packages


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a PATH of one folder for programs in place of Debian's, and an empty cache."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


# Floors


@pytest.mark.parametrize("kind", ["fixed", "tls"])
def test_floor_of_a_new_connection_answers_once_and_closes(kind: str, tmp_path: Path) -> None:
    """A post gets its 202, each on a connection of its own; the probe of the start harms nobody."""
    cert_file, key_file = make_certificate(tmp_path)
    files = (str(cert_file), str(key_file)) if kind == "tls" else ()
    trust = ssl.create_default_context(cafile=cert_file)
    with own_server(tmp_path, "floors", kind, *files) as (_, port):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
                sender = trust.wrap_socket(plain, server_hostname="127.0.0.1") if files else plain
                with sender, sender.makefile("rwb") as stream:
                    stream.write(b"POST / HTTP/1.1\r\n\r\n")
                    stream.flush()
                    head, _, body = stream.read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202 ")
            assert body == b"{}"


# Readings


def decoded(body: bytes) -> list[Reading]:
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
    assert sorted(each.ts_us for each in found) == list(
        range(1_700_000_000_000_000, 1_700_000_000_000_000 + 5 * rows)
    )


def taken(load: Load, posts: int) -> list[tuple[list[bytes], bytes, int]]:
    """Give the lines of the head, the body and the number of readings of some posts."""
    source = Readings(load)
    made = [source.take() for _ in range(posts)]
    parts = [(post, post.request.partition(b"\r\n\r\n")) for post in made if post]
    return [(head.split(b"\r\n"), body, post.readings) for post, (head, _, body) in parts]


def test_posts_of_a_fleet() -> None:
    """Each device comes once in a random order, with its own token, and closes; some repeat."""
    first_us = 1_700_000_000_000_000
    tokens = tuple(f"token-{device}" for device in range(300))
    singles = Load(0, None, 60, first_us, devices=300, closing=1.0, tokens=tokens)
    devices = []
    for head, body, _ in taken(singles, 300):
        (reading,) = decoded(body)
        devices.append(int(reading.device_id.removeprefix("device-")))
        assert b"Connection: close" in head
        assert f"Authorization: Bearer token-{devices[-1]}".encode() in head
    assert sorted(devices) == [*range(300)] != devices
    mixed = Load(0, None, 60, first_us, 100, sizes=(1, 10, 100), repeats=0.1, late=0.1, closing=0.5)
    posts = taken(mixed, 500)
    assert {rows for _, _, rows in posts} == {1, 10, 100}
    assert 150 < sum(b"Connection: close" in head for head, _, _ in posts) < 350
    bodies = {body: rows for _, body, rows in posts}
    assert 400 < len(bodies) < 490
    keys = {(row.device_id, row.ts_us) for body in bodies for row in decoded(body)}
    assert len(keys) == sum(bodies.values())
    assert 10 < sum(ts_us < first_us for _, ts_us in keys) / len(keys) * 500 < 100


@pytest.mark.parametrize("form", HOSTS)
def test_hosts_send_all_their_keys_in_turn(form: str) -> None:
    """A round has each key of each host once, at one time; no reading comes twice."""
    hosts = HOSTS[form]
    bodies = [hosts.body(75, number, 1_000) for number in range(4)]
    texts = map(gzip.decompress, bodies) if hosts.gzip else bodies
    lines = b"".join(texts).splitlines()
    keys, fields, times = zip(*(line.split(b" ") for line in lines), strict=True)
    in_a_round = 75 * len(hosts.keys)
    assert len(set(keys)) == len(set(keys[:in_a_round])) == in_a_round
    assert {text.count(b"=") for text in fields} == {len(hosts.fields)}
    assert [int(each) for each in times] == [1_000 + at // in_a_round for at in range(len(lines))]


@pytest.mark.parametrize("form", [MIXED, *VALUES])
def test_all_values_of_one_time_have_columns(form: str) -> None:
    """A post has as many readings as it says, each once, and all of them in declared tables."""
    made, now_us = FORMS[form], 1_800_000_000_000_000
    rules = make_rules(Settings(tables_file=str(TABLES)))
    post = posted.Post("us", False, now_us, 0.0, rules)
    found = list[Reading]()
    for number in range(3):
        body = made.body(150, number, now_us)
        if made.media_type == "application/json":
            blocks = [posted.finished(begin(body, post)).block]
        else:
            lines = LinePost(post, Naming(("host",)), 100_000, 1 << 24)
            text = gzip.decompress(body) if made.gzip else body
            blocks = [*posted.finished(begin_lines(text, lines)).blocks]
        for block in blocks:
            assert block is not None
            for run in runs(block.tuples):
                assert run.form is not None
                found += run.decode()
    assert len(found) == len(set(found)) == 3 * made.rows


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
