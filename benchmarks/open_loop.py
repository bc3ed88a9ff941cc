"""loadgen's driver with the readings of the wrk scripts, at a rate that does not yield.

`python -m benchmarks.open_loop --port N --rate R --seconds S ..` prints one line of JSON. Posts are
due at random moments (Poisson), latencies count from the moment at which they were due, and a
refused post is not sent again. Posts of the first `--warm-s` are in no latency: a thousand
connections that come at once are accepted one in a turn of the service's loop, for some 0.15 s. A
process of its own, so that its CPU can be told.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from benchmarks.processes import raise_open_files_limit, run_driver
from loadgen.driver.driver import Driver
from loadgen.driver.ports import Loss
from loadgen.measure.histogram import Histogram
from loadgen.traffic.post import Post, finish, head_of
from loadgen.traffic.schedule import constant, moments

SEED = 1


class Openly(NamedTuple):
    """What one open-loop run saw.

    `taken_rows` are readings of posts with a 2xx, `refused` posts with another answer, `lost` posts
    without one, `skipped` posts that were due and not sent, since too many had no answer yet.
    `lag_ms_max` is the driver's own fault. Latencies are of posts with a 2xx. `began_s` is the
    moment of the first post by time.monotonic, which is the same for all processes (Linux).
    """

    posts: int
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
    cpu_cores: float = 0.0


class Readings:
    """The source: posts of `rows` readings, every timestamp new, from `first_us` on."""

    def __init__(self, target: str, port: int, rows: int, first_us: int) -> None:
        self._head = head_of(target, f"127.0.0.1:{port}")
        self._rows = rows
        self._next_us = first_us
        self._number = 0
        self._items = [
            f'{{"device_id":"device-{at * 7 % 200:03d}","metric":"temperature",'
            f'"value":{20 + at % 5}.{at % 100:02d},"ts":%d}}'
            for at in range(200 if rows == 1 else rows)
        ]
        self._pattern = "[" + ",".join(self._items) + "]"

    def take(self) -> Post:
        """Render the next post."""
        number, first_us = self._number, self._next_us
        self._number += 1
        self._next_us += self._rows
        if self._rows == 1:
            body = self._items[number % 200] % first_us
        else:
            body = self._pattern % tuple(range(first_us, self._next_us))
        return Post(finish(self._head, body.encode()), self._rows, "live", number)


class Tally:
    """The observer."""

    def __init__(self, measured_from_s: float = 0.0) -> None:
        self._measured_from_s = measured_from_s
        self.statuses: Counter[int] = Counter()
        self.lost_posts = 0
        self.taken_rows = 0
        self.taken = array("I")  # the numbers of the posts with a 2xx
        self.latencies = Histogram()

    def sending(self, post: Post) -> None:
        """Nothing to note."""

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        if status < 300:
            self.taken_rows += post.readings
            self.taken.append(post.number)
            if intended_s >= self._measured_from_s:
                self.latencies.add(max(0.0, now_s - intended_s))

    def lost(self, loss: Loss) -> None:
        """Count a post without an answer."""
        self.lost_posts += 1


def drive_openly(
    port: int,
    rate_per_s: float,
    seconds: float,
    first_us: int,
    *,
    rows: int = 1,
    target: str = "/v1/readings",
    connections: int = 64,
    warm_s: float = 0.0,
    taken_to: Path | None = None,
) -> Openly:
    """Send so many posts a second in a child process. Raises Broken if it fails.

    Goes on for `warm_s` and `seconds`; latencies are those of the latter.

    `taken_to` is a file for the posts with a 2xx: see `first_us_of_taken`.
    """
    said, cpu_s = run_driver(
        [
            *(sys.executable, "-m", "benchmarks.open_loop", "--port", str(port)),
            *("--rate", f"{rate_per_s:.3f}", "--rows", str(rows)),
            *("--seconds", f"{seconds:g}", "--warm-s", f"{warm_s:g}"),
            *("--target", target, "--connections", str(connections)),
            *("--first-us", str(first_us)),
            *(() if taken_to is None else ("--taken", str(taken_to))),
        ],
        seconds + warm_s,
    )
    found: dict[str, Any] = json.loads(said)
    return Openly(**found)._replace(cpu_cores=cpu_s / (seconds + warm_s))


def first_us_of_taken(path: Path, first_us: int, rows: int) -> list[int]:
    """Return the first timestamp of each post with a 2xx; those of its rows follow it."""
    numbers = array("I")
    numbers.frombytes(path.read_bytes())
    return [first_us + number * rows for number in numbers]


async def _run(chosen: argparse.Namespace) -> Openly:
    tally = Tally(time.monotonic() + chosen.warm_s)
    driver = Driver(
        "127.0.0.1",
        chosen.port,
        Readings(chosen.target, chosen.port, chosen.rows, chosen.first_us),
        tally,
        connections=chosen.connections,
        schedule=moments(
            constant(chosen.rate),
            arrivals="poisson",
            seed=SEED,
            within_s=chosen.warm_s + chosen.seconds,
        ),
        retry=None,
    )
    await driver.run()
    if chosen.taken is not None:
        chosen.taken.write_bytes(tally.taken.tobytes())
    quantile = tally.latencies.quantile
    return Openly(
        posts=driver.taken,
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
        statuses={str(status): count for status, count in sorted(tally.statuses.items())},
    )


def main() -> None:
    """Send; print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="posts a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-s", type=float, default=0.0, help="before that, not measured")
    parser.add_argument("--rows", type=int, default=1, help="readings a post")
    parser.add_argument("--target", default="/v1/readings", help="path and query")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--first-us", type=int, default=1_700_000_000_000_000)
    parser.add_argument("--taken", type=Path, help="write the numbers of posts with a 2xx there")
    chosen = parser.parse_args()
    raise_open_files_limit()
    gc.collect()
    gc.freeze()  # a look through what was imported would be the driver's latency, not the service's
    print(json.dumps(uvloop.run(_run(chosen))._asdict()))


if __name__ == "__main__":
    main()
