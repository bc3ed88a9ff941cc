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
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

import uvloop

from benchmarks import telegraf
from benchmarks.processes import print_whole, raise_open_files_limit, run_driver
from benchmarks.wrk import CONNECTIONS, READINGS
from loadgen.driver.driver import Driver
from loadgen.driver.ports import Loss
from loadgen.measure.histogram import Histogram
from loadgen.traffic.post import Post, compress, finish, head_of
from loadgen.traffic.schedule import constant, moments

SEED = 1
JSON, LINES, TELEGRAF = "json", "lines", "telegraf"  # forms of posts
_ITEMS = {
    JSON: '{"device_id":"device-%03d","metric":"temperature","value":%s,"ts":%%d}',
    LINES: "temperature,device_id=device-%03d value=%s %%d",
}


class Load(NamedTuple):
    """What to send: posts of `rows` readings, whose timestamps count up from `first_us`.

    `rate_per_s` is in posts; None is the closed loop. It lasts `warm_s` and `seconds`; latencies
    are of the latter only. `lists_taken`: the result lists the posts with a 2xx. `new_heads`: each
    head has a number of its own, as behind a proxy that numbers requests. `token` is sent
    with each post, unless it is empty. `form` is of `rows` readings; TELEGRAF is a post of
    telegraf.py, which has telegraf.ROWS.
    """

    port: int
    rate_per_s: float | None
    seconds: float
    first_us: int
    rows: int = 1
    target: str = READINGS
    connections: int = CONNECTIONS
    warm_s: float = 0.0
    lists_taken: bool = False
    new_heads: bool = False
    token: str = ""
    form: str = JSON


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


class Readings:
    """The source of the driver: every timestamp is new.

    In closed loop it ends `seconds` after its first post, so that the time in which 64 connections
    are opened does not count: beside two services that start it may be longer than a short load.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        is_json = load.form == JSON
        self._head = head_of(
            load.target,
            f"127.0.0.1:{load.port}",
            gzip=load.form == TELEGRAF,
            token=load.token,
            media_type="application/json" if is_json else "text/plain",
        )
        self._number = 0
        self._items = [
            _ITEMS[JSON if is_json else LINES] % (at * 7 % 200, f"{20 + at % 5}.{at % 100:02d}")
            for at in range(200 if load.rows == 1 else load.rows)
        ]
        self._pattern = f"[{','.join(self._items)}]" if is_json else "\n".join(self._items)
        self._ends_s = math.inf

    def take(self) -> Post | None:
        """Render the next post; None: the load is over."""
        number, rows = self._number, self._load.rows
        if self._load.rate_per_s is None:
            now_s = time.monotonic()
            if number == 0:
                self._ends_s = now_s + self._load.warm_s + self._load.seconds
            elif now_s > self._ends_s:
                return None
        self._number += 1
        first_us = self._load.first_us + number * rows
        if self._load.form == TELEGRAF:
            body = compress(telegraf.body(first_us), telegraf.LEVEL)
        elif rows == 1:
            body = (self._items[number % 200] % first_us).encode()
        else:
            body = (self._pattern % tuple(range(first_us, first_us + rows))).encode()
        head = self._head
        if self._load.new_heads:
            head = head.replace(b"\r\n", b"\r\nX-Request-Id: %016x\r\n" % number, 1)
        return Post(finish(head, body), rows, "live", number)


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
