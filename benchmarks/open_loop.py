"""Open loop: loadgen's driver with the readings of the wrk scripts.

`python -m benchmarks.open_loop LOAD`, where LOAD is a JSON object (the fields of `Load`), prints
one line of JSON. It is a process of its own, so that its CPU can be measured. Posts are due at
random moments (Poisson), latencies count from the moment at which a post was due, and a refused
post is not sent again. Posts of the first `warm_s` are in no latency: a thousand connections that
come at once are accepted one in a round of the service's event loop, for some 0.15 s.
"""

from __future__ import annotations

import gc
import json
import math
import random
import ssl
import sys
import time
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import uvloop

from benchmarks import telegraf
from benchmarks.columns import FORMS, Mixed, Values
from benchmarks.processes import print_whole, raise_open_files_limit, run_driver
from benchmarks.wrk import CONNECTIONS, READINGS
from loadgen.driver.driver import Driver
from loadgen.driver.ports import Loss
from loadgen.measure.histogram import Histogram
from loadgen.traffic.post import Post, finish, head_of
from loadgen.traffic.schedule import constant, moments

SEED = 1
DAY_US = 86_400_000_000
LATE_DAYS_MAX = 30
JSON, LINES = "json", "lines"  # forms of posts
BODIES: dict[str, telegraf.Hosts | Mixed | Values] = {**telegraf.HOSTS, **FORMS}  # other forms
# With `twice` at most so many readings and posts, and then the same again.
AGAIN_ROWS, AGAIN_POSTS = 100_000, 1_000
_ITEMS = {
    JSON: '{"device_id":"device-%03d","metric":"temperature","value":%s,"ts":%d}',
    LINES: "temperature,device_id=device-%03d value=%s %d",
}
_VALUES = [f"{20 + at % 5}.{at % 100:02d}" for at in range(200)]


class Load(NamedTuple):
    """What to send: posts of `rows` readings, whose timestamps count up from `first_us`.

    `rate_per_s` is in posts; None is the closed loop. It lasts `warm_s` and `seconds`; latencies
    are of the latter only. `lists_taken`: the result lists the posts with a 2xx.

    The readings are of `devices` in a random order. `form` is JSON, LINES, or one of BODIES: then
    `devices` counts the hosts, and with `twice` each post comes again, some later. `sizes`: a post
    has one of so many readings, at most `rows`. Shares of the posts, 0 to 1: `repeats` are those of
    the post before, byte for byte; `late` are up to LATE_DAYS_MAX days old; `closing` close their
    connection, so that as many come on a new one.

    `new_heads`: each head has a number of its own, as behind a proxy that numbers requests.
    `tokens`: each device sends its own one of them. `ca_file`: for TLS.
    """

    port: int = 0
    rate_per_s: float | None = None
    seconds: float = 0.0
    first_us: int = 0
    rows: int = 1
    target: str = READINGS
    connections: int = CONNECTIONS
    warm_s: float = 0.0
    lists_taken: bool = False
    form: str = JSON
    devices: int = 200
    sizes: tuple[int, ...] = ()
    repeats: float = 0.0
    late: float = 0.0
    closing: float = 0.0
    new_heads: bool = False
    tokens: tuple[str, ...] = ()
    ca_file: str = ""
    twice: bool = False


def media_type_of(form: str) -> str:
    """Return what the header of a post says."""
    if form in BODIES:
        return BODIES[form].media_type
    return "application/json" if form == JSON else "text/plain"


class OpenLoop(NamedTuple):
    """The result of one load in open loop.

    `taken_rows` are readings of posts with a 2xx, `refused` posts with another answer, `lost` posts
    without an answer, `skipped` posts that were due and not sent, since too many had no answer yet.
    `lag_ms_max` is the driver's own delay. Latencies are of posts with a 2xx. `began_s` is the
    moment of the first post by time.monotonic, which is the same for all processes. `taken_us`, if
    asked for, is the first timestamp of each post with a 2xx; those of its other rows follow it.
    """

    taken_rows: int
    refused: int
    lost: int
    skipped: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    lag_ms_max: float
    statuses: dict[str, int]
    began_s: float
    taken_us: list[int]
    cpu_cores: float = 0.0

    @property
    def failed(self) -> int:
        """Posts without a 2xx."""
        return self.refused + self.lost + self.skipped


@cache
def _order(devices: int) -> list[int]:
    """Return the numbers of all devices in a random order, each once."""
    return random.Random(SEED).sample(range(devices), devices)


class Readings:
    """The source of the driver: every timestamp is new, except in repeated posts.

    In closed loop it ends `seconds` after its first post, so that the time in which 64 connections
    are opened does not count: beside two services that start it may be longer than a short load.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._hosts = BODIES.get(load.form)
        head = head_of(
            load.target,
            f"127.0.0.1:{load.port}",
            gzip=self._hosts is not None and self._hosts.gzip,
            media_type=media_type_of(load.form),
        )
        self._head = head.partition(b"\r\n")
        self._number = 0
        self._draw = random.Random(load.first_us)
        self._next_device = self._draw.randrange(load.devices)
        self._next_lines = self._draw.randrange(1_000)  # else each load had the same first hosts
        self._last: Post | None = None
        self._ends_s = math.inf

    def take(self) -> Post | None:
        """Render the next post; None: the load is over."""
        number, load = self._number, self._load
        if load.rate_per_s is None:
            now_s = time.monotonic()
            if number == 0:
                self._ends_s = now_s + load.warm_s + load.seconds
            elif now_s > self._ends_s:
                return None
        self._number += 1
        if load.repeats and self._last and self._draw.random() < load.repeats:
            return self._last._replace(number=number)
        rows = self._draw.choice(load.sizes) if load.sizes else load.rows
        if self._hosts:
            if load.twice:
                some = max(1, min(AGAIN_POSTS, AGAIN_ROWS // rows))
                number = number // (2 * some) * some + number % some
            body = self._hosts.body(load.devices, self._next_lines + number, load.first_us)
            request = self._request(body, number)
        else:
            devices = self._devices(rows)
            request = self._request(self._body(devices, number), number, devices[0])
        self._last = Post(request, rows, "live", number)
        return self._last

    def _devices(self, rows: int) -> list[int]:
        """Return the devices of a post, in the order of all."""
        at, order = self._next_device, _order(self._load.devices)
        self._next_device = (at + rows) % len(order)
        found = order[at : at + rows]
        while len(found) < rows:
            found += order[: rows - len(found)]
        return found

    def _body(self, devices: list[int], number: int) -> bytes:
        load = self._load
        first_us = load.first_us + number * load.rows
        if load.late and self._draw.random() < load.late:
            first_us -= self._draw.randint(1, LATE_DAYS_MAX) * DAY_US
        item = _ITEMS[load.form]
        items = [
            item % (device, _VALUES[at % 200], at) for at, device in enumerate(devices, first_us)
        ]
        if load.form == LINES:
            return "\n".join(items).encode()
        return (items[0] if len(items) == 1 else f"[{','.join(items)}]").encode()

    def _request(self, body: bytes, number: int, device: int = 0) -> bytes:
        load = self._load
        line, _, rest = self._head
        fields = b""
        if load.tokens:
            fields += b"Authorization: Bearer %b\r\n" % load.tokens[device].encode()
        if load.closing and self._draw.random() < load.closing:
            fields += b"Connection: close\r\n"
        if load.new_heads:
            fields += b"X-Request-Id: %016x\r\n" % number
        return finish(b"%b\r\n%b%b" % (line, fields, rest), body)


class Tally:
    """The observer of the driver."""

    def __init__(self, load: Load, measured_from_s: float) -> None:
        self._load = load
        self._measured_from_s = measured_from_s
        self.statuses: Counter[int] = Counter()
        self.lost_posts = 0
        self.taken_rows = 0
        self.taken_us: list[int] = []  # the first timestamp of each post with a 2xx
        self.latencies = Histogram()
        self.took_s = 0.0  # from the first post to the last answer

    def sending(self, post: Post) -> None:
        """Do nothing: answers are counted."""

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        if status < 300:
            self.taken_rows += post.readings
            self.taken_us.append(self._load.first_us + post.number * post.readings)
            if intended_s >= self._measured_from_s:
                self.latencies.add(max(0.0, now_s - intended_s))

    def lost(self, loss: Loss) -> None:
        """Count a post without an answer."""
        self.lost_posts += 1


async def send(load: Load) -> tuple[Driver, Tally]:
    """Send a load from this process."""
    within_s = load.warm_s + load.seconds
    tally = Tally(load, time.monotonic() + load.warm_s)
    driver = Driver(
        "127.0.0.1",
        load.port,
        Readings(load),
        tally,
        connections=load.connections,
        schedule=None
        if load.rate_per_s is None
        else moments(constant(load.rate_per_s), arrivals="poisson", seed=SEED, within_s=within_s),
        retry=None,
        tls=ssl.create_default_context(cafile=load.ca_file) if load.ca_file else None,
    )
    await driver.run()
    tally.took_s = time.monotonic() - driver.started_s
    return driver, tally


def drive_openly(load: Load) -> OpenLoop:
    """Send a load from a child process. Raises Broken if that fails."""
    seconds = load.warm_s + load.seconds
    output, cpu_s = run_driver(
        [sys.executable, "-m", "benchmarks.open_loop", json.dumps(load._asdict())], seconds
    )
    found: dict[str, Any] = json.loads(output)
    return OpenLoop(**found)._replace(cpu_cores=cpu_s / seconds)


def main() -> None:
    """Send; print the result."""
    load = Load(**json.loads(sys.argv[1]))
    raise_open_files_limit()
    gc.collect()
    gc.freeze()  # else a collection that walks all imported objects would count as latency
    driver, tally = uvloop.run(send(load))
    quantile = tally.latencies.quantile
    found = OpenLoop(
        taken_rows=tally.taken_rows,
        refused=sum(count for status, count in tally.statuses.items() if status >= 300),
        lost=tally.lost_posts,
        skipped=driver.skipped,
        p50_ms=quantile(0.5) * 1e3,
        p99_ms=quantile(0.99) * 1e3,
        p999_ms=quantile(0.999) * 1e3,
        max_ms=tally.latencies.max_s * 1e3,
        lag_ms_max=driver.lag_s_max * 1e3,
        began_s=driver.started_s,
        taken_us=tally.taken_us if load.lists_taken else [],
        statuses={str(status): count for status, count in sorted(tally.statuses.items())},
    )
    print_whole(json.dumps(found._asdict()))


if __name__ == "__main__":
    main()
