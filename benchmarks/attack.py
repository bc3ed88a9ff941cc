"""Latency of other clients, and memory of the service, during attacks on the receiver.

A client posts ORDINARY_PER_S single readings a second, open loop: alone, then beside each kind of
attack (attackers.py). Then all of that runs once more: so memory that grows with every attack is
not confused with memory that an attack needs once. Beside all of it the admin port is asked for
/livez, each time on a new connection, as a supervisor does.
"""

from __future__ import annotations

import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.attackers import KINDS, READY
from benchmarks.contenders import (
    FIRST_US,
    PHASE_US,
    Contender,
    Figures,
    Plan,
    check_table,
    running_service,
)
from benchmarks.open_loop import Load, OpenLoop, drive_openly
from benchmarks.processes import Broken, Child, fetch, sampled, serving
from benchmarks.service import Service

ORDINARY_PER_S = 1_000
SECONDS_MIN = 3.0
ROUNDS = 2
P99_MS_MAX = 25.0  # or twice the p99 alone (the better one of the rounds), if that is more
REST_S = 1.0  # after an attack, before its memory is read
ON_ADMIN_PORT = {"log_ins", "admin_pages"}
CONNECTIONS_MAX = 12_000  # fewer than `body_holders` want
PROBE_PAUSE_S = 0.2
PROBE_S_MAX = 1.0  # the time-out that a supervisor gives a probe when it has none of its own


def measure_attack(plan: Plan) -> Figures:
    """Post steadily, alone and beside each attack; ROUNDS times on one service."""
    seconds = max(plan.seconds, SECONDS_MIN)
    p99_ms: dict[str, list[float]] = {}
    figures: Figures = {}
    driver_cores = 0.0
    phase = 0
    with running_service("--connections-max", str(CONNECTIONS_MAX)) as service:
        steady(service, 1.0, phase)  # warms up
        for number in range(1, ROUNDS + 1):
            for kind in ("alone", *KINDS):
                phase += 1
                with sampled(service.child.rss_mib) as memory, probed(service, kind) as probes_ms:
                    found = beside(service, kind, seconds, phase)
                time.sleep(REST_S)  # else the last requests of a flood are still before ours
                service.quiet()
                p99_ms.setdefault(kind, []).append(found.p99_ms)
                driver_cores = max(driver_cores, found.cpu_cores)
                figures |= {
                    f"{kind}_{number}_p99_ms": found.p99_ms,
                    f"{kind}_{number}_max_ms": found.max_ms,
                    f"{kind}_{number}_probe_max_ms": max(probes_ms),
                    f"{kind}_{number}_rss_during_mib": max(each.value for each in memory),
                    f"{kind}_{number}_rss_after_mib": service.child.rss_mib(),
                }
        check_table(service)
    allowed_ms = max(P99_MS_MAX, 2 * min(p99_ms["alone"]))
    return {
        "allowed_p99_ms": allowed_ms,
        **{f"{kind}_of_allowed": max(p99_ms[kind]) / allowed_ms for kind in KINDS},
        "rss_growth": most_mib(figures, ROUNDS) / most_mib(figures, 1),
        **figures,
        "driver_cores": driver_cores,
    }


def most_mib(figures: Figures, number: int) -> float:
    """Return the most memory of one round, during its attacks and after them."""
    return max(
        figures[f"{kind}_{number}_rss_{when}_mib"] for kind in KINDS for when in ("during", "after")
    )


@contextmanager
def probed(service: Service, kind: str) -> Iterator[list[float]]:
    """Ask for /livez until the block ends; give the times, in ms.

    Raises Broken at the end if two probes in a row had no good answer within PROBE_S_MAX: a
    supervisor waits for more than one.
    """
    took_ms: list[float] = []
    faults: list[str] = []
    in_a_row = most_in_a_row = 0
    ended = threading.Event()

    def probe() -> None:
        nonlocal in_a_row, most_in_a_row
        while not ended.wait(PROBE_PAUSE_S):
            began_s = time.monotonic()
            try:
                fetch(service.admin_url("livez"), within_s=PROBE_S_MAX)
                in_a_row = 0
            except (OSError, urllib.error.URLError) as error:
                faults.append(f"{type(error).__name__} {error}")
                in_a_row += 1
                most_in_a_row = max(most_in_a_row, in_a_row)
            took_ms.append((time.monotonic() - began_s) * 1e3)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield took_ms
    finally:
        ended.set()
        thread.join()
    if most_in_a_row > 1 or not took_ms:
        raise Broken(
            f"beside {kind}: {len(faults)} of {len(took_ms)} probes had no answer: {faults[:1]}"
        )


def beside(service: Service, kind: str, seconds: float, phase: int) -> OpenLoop:
    """Post steadily beside an attack. Raises Broken if the attack ended before."""
    if kind not in KINDS:
        return steady(service, seconds, phase)
    port = service.admin_port if kind in ON_ADMIN_PORT else service.port
    command = [sys.executable, "-m", "benchmarks.attackers", kind, str(port)]
    attacker = Child(kind, command, service.folder)
    with serving(attacker, lambda: READY in attacker.output().split()):
        try:
            found = steady(service, seconds, phase)
        except Broken as error:
            raise Broken(f"beside {kind}: {error}") from None
        if not attacker.running:
            raise Broken(f"the attack {kind} ended early: {attacker.output()}")
    return found


def steady(service: Service, seconds: float, phase: int) -> OpenLoop:
    """Post steadily. Raises Broken if a post is not taken: an attack is no reason for that."""
    first_us = FIRST_US + phase * PHASE_US
    found = drive_openly(Load(service.port, ORDINARY_PER_S, seconds, first_us))
    if found.failed or not found.taken_rows:
        raise Broken(f"not every post was taken: {found}")
    return found


ATTACKS = (Contender("attack", "1,000 posts a second", measure_attack, by_wrk=False),)
