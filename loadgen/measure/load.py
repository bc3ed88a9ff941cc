"""One run of load: a fleet, a driver, and its counts.

Promises: the same plan sends the same bodies at the same moments (open loop), except the start time
in their timestamps. Does not: print (see cli/run.py).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat

from loadgen.driver.driver import Driver
from loadgen.driver.retry import RETRY, Retry
from loadgen.driver.trust import context_of
from loadgen.measure.scrape import Scraper
from loadgen.measure.tally import Tally
from loadgen.traffic.post import Target, path_for
from loadgen.traffic.schedule import Arrivals, Shape, moments
from loadgen.traffic.traffic import Recipe, Traffic

SETTLE_S_MAX = 5.0
# With more than this the event loop cannot be on time.
BUSY_CPU_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What to send, where, and when.

    `shape` None is the closed loop. `duration_s` None: until `recipe.posts_max`. `retry` None:
    never. `measured_from_s`: posts due earlier are warm-up, their durations do not count.
    `others`: more addresses of the same service; a post goes to any of them.
    `behind_s_max` (open loop): posts that could not be sent for so long are skipped, which bounds
    the time of a run after its schedule.
    """

    target: Target
    recipe: Recipe
    shape: Shape | None
    arrivals: Arrivals = "constant"
    connections: int = 64
    duration_s: float | None = None
    ack: str | None = None
    retry: Retry | None = RETRY
    answer_s_max: float = 30.0
    behind_s_max: float = 30.0
    metrics_urls: tuple[str, ...] = ()
    measured_from_s: float = 0.0
    others: tuple[Target, ...] = ()

    def moments(self) -> Iterator[float] | None:
        """Return when posts are due, in seconds from the start; None in closed loop."""
        if self.shape is None:
            return None
        within_s = float("inf") if self.duration_s is None else self.duration_s
        live = moments(self.shape, arrivals=self.arrivals, seed=self.recipe.seed, within_s=within_s)
        # Skipped posts count in `posts_max`, so a slow service does not make the run longer.
        return islice(chain(repeat(0.0, self.recipe.backlog_posts), live), self.recipe.posts_max)

    def readings_a_post(self) -> float:
        """Return the mean of the mix."""
        weights = sum(weight for _, weight in self.recipe.mix)
        return sum(size * weight for size, weight in self.recipe.mix) / weights


class Load:
    """A run. `await Load(plan).run()`, once; its counts can be read at any time."""

    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan
        self.started_us = 0
        self.cpu_s = 0.0
        self.took_s = 0.0  # from the start to the last answer
        self.skipped_readings = 0.0
        query = f"?ack={plan.ack}" if plan.ack else ""
        target = plan.target
        self.traffic = Traffic(
            plan.recipe,
            f"{path_for(target, plan.recipe.format)}{query}",
            target.authority,
            self._clock(),
            target.token,
        )
        self.tally = Tally(self.traffic.bad_items, plan.measured_from_s)
        self.driver = self.tally.start = Driver(
            target.host,
            target.port,
            self.traffic,
            self.tally,
            connections=plan.connections,
            schedule=plan.moments(),
            retry=plan.retry,
            answer_s_max=plan.answer_s_max,
            behind_s_max=plan.behind_s_max,
            seed=plan.recipe.seed,
            others=plan.others,
            tls=context_of(target),
        )
        self.scraper = (
            Scraper(plan.metrics_urls, self.tally.timeline, self._since_start)
            if plan.metrics_urls
            else None
        )
        self._cpu_began_s = 0.0
        self._skipped_before = 0

    def _clock(self) -> Callable[[], int]:
        """Return a function that gives each post its moment: its due time; in closed loop, now."""
        due = self.plan.moments()
        if due is None:
            return lambda: time.time_ns() // 1000
        last_s = 0.0

        def next_due() -> int:
            nonlocal last_s
            last_s = next(due, last_s)
            return self.started_us + int(last_s * 1e6)

        return next_due

    def _since_start(self) -> float:
        return time.monotonic() - self.driver.started_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start; after the end, of the whole run."""
        return self.took_s or self._since_start()

    @property
    def cpu_share(self) -> float:
        """The share of one core that the driver's thread has used."""
        used_s = self.cpu_s or time.thread_time() - self._cpu_began_s
        return used_s / max(self.elapsed_s, 1e-9)

    @property
    def offered_posts(self) -> int:
        """How many posts were due, whether sent or not; complete at the end of the run."""
        return self.driver.taken + self.driver.skipped + self.driver.unsent

    def due_posts(self) -> float:
        """Return how many posts should have been sent by now, by the plan."""
        plan, elapsed_s = self.plan, self.elapsed_s
        if plan.shape is None:
            return self.driver.taken
        within_s = elapsed_s if plan.duration_s is None else min(elapsed_s, plan.duration_s)
        due = plan.recipe.backlog_posts + plan.shape.posts(within_s)
        return due if plan.recipe.posts_max is None else min(due, plan.recipe.posts_max)

    def stop(self) -> None:
        """Take no more posts; those in flight are finished. Safe to call twice."""
        self.driver.stop()

    async def run(self, settle_s_max: float = SETTLE_S_MAX) -> None:
        """Send everything and wait for the last answer, then until the service holds nothing.

        Cancelled, it drops all connections at once; what it has counted stays.
        """
        if self.scraper:
            await self.scraper.begin()
        self.started_us = time.time_ns() // 1000
        self.traffic.prepare(self.started_us)
        # The objects of the fleet stay: the garbage collector must not scan them while sending.
        gc.collect()
        gc.freeze()
        self._cpu_began_s = time.thread_time()
        helpers = [asyncio.create_task(self._watch_skipped())]
        if self.plan.shape is None and self.plan.duration_s is not None:
            helpers.append(asyncio.create_task(self._end_after(self.plan.duration_s)))
        if self.scraper:
            helpers.append(asyncio.create_task(self.scraper.watch()))
        try:
            await self.driver.run()
        finally:
            self.cpu_s = time.thread_time() - self._cpu_began_s
            self.took_s = self._since_start()
            self._note_skipped()
            for each in helpers:
                each.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            gc.unfreeze()
        if self.scraper and self.scraper.seen:
            await self.scraper.settle(settle_s_max)

    async def _end_after(self, duration_s: float) -> None:
        left_s = duration_s
        while left_s > 0:  # more than once if connecting took long
            await asyncio.sleep(left_s)
            left_s = duration_s - self._since_start()
        self.traffic.end()

    async def _watch_skipped(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._note_skipped()

    def _note_skipped(self) -> None:
        """Count the posts that were not sent as offered."""
        skipped = self.driver.skipped + self.driver.unsent - self._skipped_before
        self._skipped_before += skipped
        readings = skipped * self.plan.readings_a_post()
        self.skipped_readings += readings
        self.tally.timeline.at(self._since_start()).offered += readings
