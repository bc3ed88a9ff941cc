"""Searches the highest rate that a service can take: doubles it, then halves the interval.

Promises: every rate is tried with a run of its own; the result has passed twice. A rate passes if
p99 from the intended moments is below the bound and no post is refused, lost or not sent. Refused
posts are not sent again, since a refusal means that the rate is too high.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from loadgen.measure.histogram import latency_ms
from loadgen.measure.load import BUSY_CPU_SHARE, Load, LoadPlan
from loadgen.traffic.schedule import constant

WARM_UP_S = 1.0
FIRST_RATE = 100.0
RATE_MIN, RATE_MAX = 1.0, 1e6
CLOSE_ENOUGH = 1.05
RELAPSES_MAX = 6
LOOK_S = 0.1
# A run that is further behind cannot reach its rate any more.
BEHIND_S_MAX = 1.0
SETTLE_S_MAX = 10.0
PAUSE_S = 0.5
SCHEMA, SCHEMA_VERSION = "iot-ingest/loadgen-find-max", 1


class Search:
    """Chooses the next rate. `rate` None: the search is over; `found` is the result, or None.

    Pure. At most 20 doublings or halvings, 4 halvings of the interval, 12 confirmations.
    """

    def __init__(self, first_rate: float = FIRST_RATE) -> None:
        self.rate: float | None = first_rate
        self.found: float | None = None
        self.confirming = False
        self._passed, self._failed = 0.0, math.inf  # the last rate that did
        self._times_passed = self._relapses = 0  # while confirming

    def took(self, passed: bool) -> None:
        """Take the result of the last rate."""
        assert self.rate is not None, "it is over"
        if self.confirming:
            self._confirmed(self.rate, passed)
            return
        if passed:
            self._passed = self.rate
        else:
            self._failed = self.rate
        self.rate = self._next()

    def _next(self) -> float | None:
        if not self._passed:
            return self._failed / 2 if self._failed > RATE_MIN else None
        if self._failed < math.inf and self._failed / self._passed > CLOSE_ENOUGH:
            return math.sqrt(self._failed * self._passed)
        if self._failed == math.inf and self._passed < RATE_MAX:
            return self._passed * 2
        self.confirming, self._times_passed = True, 1
        return self._passed

    def _confirmed(self, rate: float, passed: bool) -> None:
        """Accept a rate that passed twice; else try a slightly lower one."""
        if passed:
            self._times_passed += 1
            if self._times_passed == 2:
                self.found, self.rate = rate, None
            return
        self._times_passed = 0
        self._relapses += 1
        self.rate = rate / CLOSE_ENOUGH if self._relapses < RELAPSES_MAX else None


class Step(NamedTuple):
    """The result of one rate; `why` says what was wrong, empty if it passed."""

    rate: float
    confirming: bool
    answered_per_s: float
    latency_ms: dict[str, Any]
    committed_per_s: float | None
    cpu_share: float
    why: str


class FindMax:
    """A search. It calls `on_step` with every finished step. `stop` ends it, without a result."""

    def __init__(
        self, plan: LoadPlan, *, p99_ms: float, step_s: float, first_rate: float | None
    ) -> None:
        self.search = Search(first_rate or FIRST_RATE)
        self.steps: list[Step] = []
        self._plan = replace(plan, retry=None, measured_from_s=WARM_UP_S)
        self._p99_ms = p99_ms
        self._step_s = step_s
        self._load: Load | None = None
        self._stopped = False

    async def run(self, on_step: Callable[[Step], None]) -> None:
        """Try rates until one is found or none is left."""
        while self.search.rate is not None and not self._stopped:
            step = await self._try(self.search.rate, self.search.confirming)
            if self._stopped:
                return
            self.steps.append(step)
            on_step(step)
            self.search.took(not step.why)
            await asyncio.sleep(PAUSE_S)

    def stop(self) -> None:
        """End the step that runs, and the search."""
        self._stopped = True
        if self._load:
            self._load.stop()

    async def _try(self, rate: float, confirming: bool) -> Step:
        seconds = WARM_UP_S + self._step_s
        load = self._load = Load(replace(self._plan, shape=constant(rate), duration_s=seconds))
        guard = asyncio.create_task(self._end_if_hopeless(load))
        try:
            await load.run(SETTLE_S_MAX)
        finally:
            guard.cancel()
        scraper = load.scraper if load.scraper and load.scraper.seen else None
        return Step(
            rate,
            confirming,
            load.tally.through / load.took_s,
            latency_ms(load.tally.latency),
            scraper.committed / max(scraper.at_s, load.took_s) if scraper else None,
            load.cpu_share,
            self._why_not(load),
        )

    async def _end_if_hopeless(self, load: Load) -> None:
        """Stop a step that has failed: its backlog would take long to be sent."""
        while True:
            await asyncio.sleep(LOOK_S)
            if load.tally.wrong or load.driver.skipped or load.driver.behind_s > BEHIND_S_MAX:
                load.stop()
                return

    def _why_not(self, load: Load) -> str:
        tally, driver = load.tally, load.driver
        p99_ms = tally.latency.quantile(0.99) * 1e3
        refused = tally.refused + tally.not_whole + tally.undeserved
        reasons = (
            (refused, f"{refused:,} refused"),
            (tally.given_up, f"{tally.given_up:,} lost"),
            (driver.skipped, f"{driver.skipped:,} not sent"),
            (driver.unsent, f"more than {BEHIND_S_MAX:g} s behind"),
            (not tally.latency.count, "no answers"),
            (p99_ms > self._p99_ms, f"p99 above {self._p99_ms:g} ms"),
        )
        return next((why for is_so, why in reasons if is_so), "")

    def generator_was_limit(self) -> bool:
        """Whether a rate failed while the generator had no time left."""
        return any(step.why and step.cpu_share >= BUSY_CPU_SHARE for step in self.steps)

    def document(self, settings: dict[str, Any], *, interrupted: bool) -> dict[str, Any]:
        """Return the search as the JSON report has it."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "settings": {**settings, "p99_ms": self._p99_ms, "step_s": self._step_s},
            "seed": self._plan.recipe.seed,
            "interrupted": interrupted,
            "found_posts_per_s": self.search.found,
            "generator_was_limit": self.generator_was_limit(),
            "steps": [{**step._asdict(), "passed": not step.why} for step in self.steps],
        }
