"""`python -m benchmarks.large_posts`: single posts beside the largest of line protocol and JSON.

A polite client posts ORDINARY_PER_S single readings a second over 64 connections: alone, beside
another one that posts 100,000 lines of line protocol at once, and beside one that posts JSON with
as many readings as a post may have. The other one pauses after each answer. All are measured in
turn, `--rounds` times, on one service with the journal, `ack=durable`. Prints a row of a table for
each. Exit codes: 0 each p99 beside them is below 25 ms, or below twice that alone, 1 it is not.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import FIRST_US, JOURNAL, PHASE_US
from benchmarks.open_loop import Load, OpenLoop, drive_openly
from benchmarks.options import count, seconds_within
from benchmarks.processes import Broken, Child, scratch, serving
from benchmarks.service import Service
from benchmarks.wrk import READINGS

ORDINARY_PER_S = 1_000
SECONDS = 10.0
ROUNDS = 3
P99_MS_MAX = 25.0
READY = "ready"
FIRST_LARGE_US = 1_500_000_000_000_000


class Large(NamedTuple):
    """A kind of large posts. `row` is one reading, `pause_s` follows each answer."""

    title: str
    target: str
    rows: int
    row: bytes
    between: bytes
    around: bytes
    status: int
    pause_s: float

    def body(self, first_us: int) -> bytes:
        """Return a post whose timestamps count up from `first_us`."""
        rows = self.between.join([self.row % (first_us + at) for at in range(self.rows)])
        return self.around % rows


KINDS = {
    "lines": Large(
        "line protocol, 100,000 readings",
        "/write?precision=u&ack=durable",
        100_000,
        b"temperature,device_id=large value=21.5 %d",
        b"\n",
        b"%b\n",
        http.HTTPStatus.NO_CONTENT,
        2.0,
    ),
    "json": Large(
        "JSON, 5,000 readings",
        f"{READINGS}?ack=durable",
        5_000,  # post_rows_max
        b'{"device_id":"large","metric":"temperature","ts":%d,"value":21.5}',
        b",",
        b"[%b]",
        http.HTTPStatus.ACCEPTED,
        0.1,  # as many readings a second
    ),
}


class Phase(NamedTuple):
    """One measurement: the p99 of the single posts, and how many large ones were taken."""

    p99_ms: float
    large_posts: int


def main() -> int:
    """Measure; print a table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_posts", description=__doc__)
    parser.add_argument("--seconds", type=seconds_within(1, 3600), default=SECONDS)
    parser.add_argument("--rounds", type=count, default=ROUNDS)
    chosen = parser.parse_args()
    alone: list[Phase] = []
    beside: dict[str, list[Phase]] = {name: [] for name in KINDS}
    with scratch() as folder, Service(folder / "state", *JOURNAL) as service:
        steady = _Steady(service)
        steady.send(1.0)  # warms up
        for _ in range(chosen.rounds):
            alone.append(Phase(steady.send(chosen.seconds).p99_ms, 0))
            for name, phases in beside.items():
                phases.append(_beside(steady, name, chosen.seconds, folder))
                service.quiet()
    allowed_ms = max(P99_MS_MAX, 2 * min(each.p99_ms for each in alone))
    print("| beside the single posts | large posts a second | p99 ms of the rounds | allowed |")
    print("| --- | ---: | --- | ---: |")
    print(f"| nothing | 0 | {_shown(alone)} | |")
    for name, phases in beside.items():
        rate = sum(each.large_posts for each in phases) / chosen.rounds / chosen.seconds
        print(f"| {KINDS[name].title} | {rate:.1f} | {_shown(phases)} | {allowed_ms:.1f} |")
    every = [each for phases in beside.values() for each in phases]
    return 0 if all(each.large_posts and each.p99_ms <= allowed_ms for each in every) else 1


def _shown(phases: list[Phase]) -> str:
    return ", ".join(f"{each.p99_ms:.2f}" for each in phases)


def _beside(steady: _Steady, name: str, seconds: float, folder: Path) -> Phase:
    words = [sys.executable, "-m", "benchmarks.large_posts", str(steady.service.port), name]
    other = Child(f"large-{name}", [*words, str(steady.phases)], folder)
    with serving(other, partial(_is_ready, other)):
        began = _taken(other)
        p99_ms = steady.send(seconds).p99_ms
        return Phase(p99_ms, _taken(other) - began)


def _is_ready(other: Child) -> bool:
    return READY in other.output().split()


def _taken(other: Child) -> int:
    return max((int(each) for each in other.output().split() if each.isdecimal()), default=0)


class _Steady:
    """The polite client. Each of its phases has timestamps of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.phases = 0

    def send(self, seconds: float) -> OpenLoop:
        """Send for so long. Raises Broken if not every post was taken."""
        first_us = FIRST_US + self.phases * PHASE_US
        self.phases += 1
        target = f"{READINGS}?ack=durable"
        load = Load(self.service.port, ORDINARY_PER_S, seconds, first_us, target=target)
        found = drive_openly(load)
        if found.failed or not found.taken_rows:
            raise Broken(f"not every post was taken: {found}")
        return found


def post_large(port: int, large: Large, phase: int) -> None:
    """Post until killed; print how many posts were taken."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    print(READY, flush=True)
    taken, at_us = 0, FIRST_LARGE_US + phase * PHASE_US
    while True:
        body = large.body(at_us)
        at_us += large.rows
        connection.request("POST", large.target, body, headers)
        answer = connection.getresponse()
        answer.read()
        taken += answer.status == large.status
        print(taken, flush=True)
        time.sleep(large.pause_s)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] in KINDS:
        post_large(int(sys.argv[1]), KINDS[sys.argv[2]], int(sys.argv[3]))
    sys.exit(main())
