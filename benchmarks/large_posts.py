"""`python -m benchmarks.large_posts`: single posts beside posts of 100,000 readings.

A polite client posts ORDINARY_PER_S single readings a second over 64 connections, alone and beside
another one, which posts line protocol, LARGE_ROWS lines at once, PAUSE_S after the answer to the
post before. Both are measured alternately, ROUNDS times, with the journal and `ack=durable`. Exit
codes: 0 the p99 beside it is below 25 ms, or below twice that alone, 1 it is not.
"""

from __future__ import annotations

import http.client
import sys
import time
from functools import partial

from benchmarks.contenders import FIRST_US, JOURNAL, PHASE_US
from benchmarks.open_loop import Load, OpenLoop, drive_openly
from benchmarks.processes import Broken, Child, scratch, serving
from benchmarks.service import Service
from benchmarks.wrk import READINGS

ORDINARY_PER_S = 1_000
LARGE_ROWS = 100_000
SECONDS = 10.0
PAUSE_S = 2.0
ROUNDS = 3
P99_MS_MAX = 25.0
READY = "ready"
TARGET = "/write?precision=u&ack=durable"
FIRST_LARGE_US = 1_500_000_000_000_000


def main() -> int:
    """Measure; print a line; return the exit code."""
    alone, beside, posts = list[float](), list[float](), 0
    with scratch() as folder, Service(folder / "state", *JOURNAL) as service:
        _steady(service, 1.0, 0)  # warms up
        for number in range(ROUNDS):
            alone.append(_steady(service, SECONDS, 2 * number + 1).p99_ms)
            words = [sys.executable, "-m", "benchmarks.large_posts", str(service.port), str(number)]
            other = Child("large posts", words, folder)
            with serving(other, partial(_is_ready, other)):
                began = _taken(other)
                beside.append(_steady(service, SECONDS, 2 * number + 2).p99_ms)
                posts += _taken(other) - began
            service.quiet()
    allowed_ms = max(P99_MS_MAX, 2 * min(alone))
    print(
        f"p99 alone {min(alone):.1f} to {max(alone):.1f} ms, beside {posts / ROUNDS / SECONDS:.1f} "
        f"posts of {LARGE_ROWS:,} readings a second {min(beside):.1f} to {max(beside):.1f} ms "
        f"({allowed_ms:.1f} ms allowed)"
    )
    return 0 if posts and max(beside) <= allowed_ms else 1


def _is_ready(other: Child) -> bool:
    return READY in other.output().split()


def _taken(other: Child) -> int:
    return max((int(each) for each in other.output().split() if each.isdecimal()), default=0)


def _steady(service: Service, seconds: float, phase: int) -> OpenLoop:
    first_us = FIRST_US + phase * PHASE_US
    load = Load(service.port, ORDINARY_PER_S, seconds, first_us, target=f"{READINGS}?ack=durable")
    found = drive_openly(load)
    if found.failed or not found.taken_rows:
        raise Broken(f"not every post was taken: {found}")
    return found


def attack(port: int, round_number: int) -> None:
    """Post until killed; print how many posts were taken."""
    head = b"temperature,device_id=large value=21.5 "
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    print(READY, flush=True)
    taken, at_us = 0, FIRST_LARGE_US + round_number * PHASE_US
    while True:
        body = b"".join([b"%b%d\n" % (head, at_us + row) for row in range(LARGE_ROWS)])
        at_us += LARGE_ROWS
        connection.request("POST", TARGET, body)
        answer = connection.getresponse()
        answer.read()
        taken += answer.status == http.HTTPStatus.NO_CONTENT
        print(taken, flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        attack(int(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main())
