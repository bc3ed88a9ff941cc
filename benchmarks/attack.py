"""What other clients, and the memory, feel of an attack on the door.

A client posts ORDINARY_PER_S single readings a second, open loop: alone, then beside 10,000 half
heads, then beside gzip bombs of 200 MiB; and all of that once more, so that memory which grows with
every attack is told from memory that an attack needs once.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

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
from benchmarks.open_loop import Openly, drive_openly
from benchmarks.processes import Broken, Child
from benchmarks.service import Service

ORDINARY_PER_S = 1_000
SECONDS_MIN = 3.0
ROUNDS = 2
P99_MS_MAX = 25.0  # or twice what it is alone (the better one of the rounds), if that is more
LOOKS_PER_S = 20
REST_S = 1.0  # after an attack, before its memory is told


class Memory:
    """The most memory that a service has while this is entered, looked at LOOKS_PER_S a second."""

    def __init__(self, service: Service) -> None:
        self.most_mib = 0.0
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.most_mib = max(self.most_mib, self._service.rss_mib())
            if self._over.wait(1 / LOOKS_PER_S):
                return


def measure_attack(plan: Plan) -> Figures:
    """Post steadily, alone and beside each attack, in turn; ROUNDS times on one service."""
    seconds = max(plan.seconds, SECONDS_MIN)
    p99_ms: dict[str, list[float]] = {}
    figures: Figures = {}
    driver_cores = 0.0
    phase = 0
    with running_service() as service:
        steady(service, 1.0, phase)  # warms up
        for number in range(1, ROUNDS + 1):
            for kind in ("alone", *KINDS):
                phase += 1
                with Memory(service) as memory:
                    seen = beside(service, kind, seconds, phase)
                service.quiet()
                time.sleep(REST_S)
                p99_ms.setdefault(kind, []).append(seen.p99_ms)
                figures[f"{kind}_{number}_p99_ms"] = seen.p99_ms
                figures[f"{kind}_{number}_max_ms"] = seen.max_ms
                figures[f"{kind}_{number}_rss_during_mib"] = memory.most_mib
                figures[f"{kind}_{number}_rss_after_mib"] = service.rss_mib()
                driver_cores = max(driver_cores, seen.cpu_cores)
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


def beside(service: Service, kind: str, seconds: float, phase: int) -> Openly:
    """Post steadily while somebody attacks. Raises Broken if the attack ended before."""
    if kind not in KINDS:
        return steady(service, seconds, phase)
    command = [sys.executable, "-m", "benchmarks.attackers", kind, "--port", str(service.port)]
    attacker = Child(kind, command, service.folder)
    try:
        attacker.wait_until(lambda: READY in attacker.said().split())
        seen = steady(service, seconds, phase)
        if not attacker.running:
            raise Broken(f"the attack ended early: {attacker.said()}")
        return seen
    finally:
        attacker.stop()


def steady(service: Service, seconds: float, phase: int) -> Openly:
    """Post steadily. Raises Broken if a post is not taken: an attack is no reason for that."""
    seen = drive_openly(service.port, ORDINARY_PER_S, seconds, FIRST_US + phase * PHASE_US)
    if seen.refused or seen.lost or seen.skipped or not seen.taken_rows:
        raise Broken(f"not every post was taken: {seen}")
    return seen


ATTACKS = (Contender("attack", "1,000 posts a second", measure_attack, by_wrk=False),)
