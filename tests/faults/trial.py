"""A Trial: what every world of a fault has: traffic with a ledger, choices, and what was found.

The seed decides what is sent and each random choice of a fault (`random`); the operating system
decides the exact moments.
Does not: start a process, or judge a fault.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from pathlib import Path

from loadgen.driver.ports import Loss
from loadgen.driver.retry import Retry
from loadgen.proof.balance import Settled, settle
from loadgen.proof.conclude import LATE, Evidence, Result, conclude
from loadgen.proof.readings import Plan
from loadgen.proof.run import Job, Run
from loadgen.traffic.post import Post, target_of
from tests.faults.matrix import Fault

RECOVERY_S_MAX = 60.0
QUIET_S_MAX = 180.0  # on a busy machine; before it nobody can say that a reading is lost
SLOW_S = 10.0  # a longer recovery gets a note
AFTER_S = 0.4  # the traffic goes on for this time after the last fault


@dataclass
class Found:
    """The result of one fault. `broken` is empty if all was as promised.

    `kinds` are the kinds of broken promises; those that a control or a mutant must break are not in
    `broken`. `figures` are printed and have no limit.
    """

    acknowledged: int = 0
    unknown: int = 0
    lost: int = 0
    doubled: int = 0
    recovery_s: float = 0.0
    count: int = 0
    broken: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    rss_mb: float = 0.0


class Trial:
    """The base of a world."""

    answer_s_max = 4.0  # then a client gives up its try
    recovery_s_max = RECOVERY_S_MAX

    def __init__(self, fault: Fault, seed: int, folder: Path, *, quick: bool = False) -> None:
        self.fault = fault
        self.random = random.Random(f"{seed} {fault.name}")
        self.folder = folder
        self.times = fault.quick_times if quick else fault.times
        self.found = Found()
        self.ledger = folder / "ledger"
        self.quiet = True  # nothing was on its way when the readings were compared
        self.run: Traffic = None  # type: ignore[assignment]  # made by `begin_traffic`
        self.last_s: float | None = None
        self.traffic: asyncio.Task[None] | None = None
        self.run_id = f"{self.random.getrandbits(32):08x}"

    def begin_traffic(self, urls: tuple[str, ...], admin_urls: tuple[str, ...]) -> None:
        """Start the traffic: a post goes to any of `urls`."""
        fault = self.fault
        plan = Plan(
            run=self.run_id,
            seed=self.random.getrandbits(32),
            first_us=int(time.time() * 1_000_000) - 3_600_000_000,
            sizes=((1, 6.0), (10, 3.0), (60, 1.0)),
            duplicates=fault.duplicates,
            invalid=fault.invalid,
            refused=0.003,
            devices=50,
        )
        target, *others = map(target_of, urls)
        job = Job(
            target=target,
            others=tuple(others),
            plan=plan,
            ledger=self.ledger,
            query=f"?ack={fault.asks}",
            connections=CROWD,
            rate=fault.rate,
            retry=Retry(150.0, pause_s_max=0.5, patience_s=1.0),
            answer_s_max=self.answer_s_max,
            admin_urls=admin_urls,
        )
        self.run = Traffic(job)
        self.traffic = asyncio.create_task(self.run.go())

    async def cancel_traffic(self) -> None:
        """End the traffic, if it has not ended by itself."""
        if self.traffic is not None and not self.traffic.done():
            self.run.stop()
            self.traffic.cancel()
            await asyncio.wait([self.traffic])

    # What a fault needs

    async def sleep(self, least_s: float, most_s: float | None = None) -> None:
        """Wait for a random time between both, which the seed decides."""
        await asyncio.sleep(self.random.uniform(least_s, most_s or least_s))

    async def answered(self, count: int, within_s: float = 30.0) -> None:
        """Wait until `count` more posts have their answer."""
        wanted = self.run.answers.total() + count
        async with asyncio.timeout(within_s):
            while self.run.answers.total() < wanted:
                await asyncio.sleep(0.01)
                self._look_after()

    def _look_after(self) -> None:
        if self.traffic is not None and self.traffic.done():
            self.traffic.result()  # raises what ended it
            raise AssertionError("the traffic has ended")

    def expect(self, holds: object, said: str) -> None:
        """If `holds` is false, note in `broken` what is not as promised."""
        if not holds and said not in self.found.broken:
            self.found.broken.append(said)

    @property
    def quiet_s_max(self) -> float:
        """How long to wait until all is quiet; after some losses it never is."""
        return self.recovery_s_max if self.fault.breaks else QUIET_S_MAX

    def expect_quiet(self, quiet: bool, said: str) -> None:
        """Expect that nothing is on its way; else what is missing then is not called lost."""
        self.expect(quiet, said)
        self.quiet = self.quiet and quiet

    @property
    def may_come(self) -> frozenset[str]:
        """The kinds of faults that are none, if what is on its way arrives."""
        return frozenset() if self.quiet or self.fault.breaks else LATE

    def note_missing(self, count: int, what: str) -> None:
        """Note readings that may still be on their way; the run is red since it is not quiet."""
        if count:
            self.found.notes.append(f"not quiet: {count} readings {what}, perhaps not there yet")

    def count(self) -> None:
        """Count one harm that was done."""
        self.found.count += 1

    def fixed(self) -> None:
        """Note that the last fault is over: the recovery time begins now."""
        self.last_s = time.monotonic()

    def now_s(self) -> float:
        """Return the monotonic time, in seconds."""
        return time.monotonic()

    # The end

    async def compare(self, where: Evidence) -> None:
        """Finish the traffic, wait until the service is quiet, compare."""
        if self.last_s is None:
            self.fixed()
        found, last_s = self.found, self.last_s or 0.0
        await asyncio.sleep(AFTER_S)
        before = self.run.answers.total()
        with suppress(TimeoutError):
            await self.answered(3, within_s=self.recovery_s_max)
        self.expect(self.run.answers.total() > before, "I7: no answer after the fault")
        first_s = time.monotonic() - last_s
        self.run.finish()
        assert self.traffic is not None, "begun"
        await asyncio.wait([self.traffic], timeout=self.recovery_s_max)
        if not self.traffic.done():
            self.run.stop()
        await self.traffic
        all_s = time.monotonic() - last_s
        left_s = max(1.0, self.quiet_s_max - (time.monotonic() - last_s))
        settled = await self.settle(where, left_s)
        found.recovery_s = time.monotonic() - last_s
        if found.recovery_s > SLOW_S:
            found.notes.append(f"answers after {first_s:.1f} s, to all posts after {all_s:.1f} s")
        if settled.quiet:
            late = f"I7: {found.recovery_s:.0f} s from the last fault to quiet"
            self.expect(found.recovery_s < self.recovery_s_max, late)
        said = f"I7: not quiet {self.quiet_s_max:g} s after the last fault"
        self.expect_quiet(settled.quiet, said)
        result = await conclude(self.ledger, where, settle_s=15.0 if settled.quiet else 5.0)
        self.take(result)

    async def settle(self, where: Evidence, within_s: float) -> Settled:
        """Wait until nothing is left to do."""
        return await settle(where.admin_urls, where.letters, f"verify-{self.run_id}-", within_s)

    def take(self, result: Result) -> None:
        """Note what the comparison has found."""
        found, may_come = self.found, self.may_come
        counts, faults = result.counts, result.faults
        found.acknowledged = counts["acknowledged"]
        found.unknown = counts["unknown"]
        for kind in may_come & set(faults):
            self.note_missing(faults[kind], kind)
        found.lost = sum(faults[each] for each in {"lost", "not_replayed"} - may_come)
        found.doubled = sum(faults[each] for each in {"twice", "in_both"} - may_come)
        found.kinds |= set(faults) - may_come
        for kind, each in result.first.items():
            if kind in may_come:
                continue
            one = each[0]
            self.expect(
                kind in self.fault.breaks | self.fault.follows,
                f"{kind} x {faults[kind]}: {one.reading} promised {one.promised}; found "
                f"{one.found}",
            )
        self.expect(result.is_proof, "no proof: too few acknowledged readings")
        if result.balance is not None:
            self.expect(not result.balance.dropped, "I9: ingest_readings_dropped_total is not 0")


CROWD = 12  # posts, and connections for them


class Traffic(Run):
    """A Run in crowds, that also keeps the times of answers, and has two more counters.

    `kept` counts the readings of posts that a 2xx answered; `cut_off` the tries that were sent and
    got no answer at all (a refused connection is no try that was sent; a 503 is an answer).
    `refused` counts the tries that got a 503; `longest_s` is the longest that a 2xx took from the
    begin of its try. A fault may set both to 0.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.kept = self.cut_off = self.refused = 0
        self.longest_s = 0.0
        self._sent: dict[int, float] = {}  # posts in flight, and since when
        self._took_s: list[float] = []

    def due(self) -> Iterator[float]:
        """Return when posts are due: by turns one by one, and a crowd at one moment."""
        rate = self.job.rate
        assert rate is not None, "faults have an open loop"
        for number in count():
            crowd = number // CROWD
            yield (crowd * CROWD if crowd % 2 else number) / rate

    def p99_ms(self) -> float:
        """Return the p99 of the answer times since the last call, from the intended moment on."""
        took, self._took_s = sorted(self._took_s), []
        return took[ceil(len(took) * 0.99) - 1] * 1_000 if took else 0.0

    def sending(self, post: Post) -> None:
        """Note that a try begins."""
        self._sent[post.number] = time.monotonic()

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Note an answer; note its time if it is the last one of its post."""
        began_s = self._sent.pop(post.number, now_s)
        self.refused += status == 503
        if 200 <= status < 300:
            self.kept += post.readings
            self.longest_s = max(self.longest_s, now_s - began_s)
        if final:
            self._took_s.append(now_s - intended_s)
        super().answered(post, status, body, intended_s, now_s, final=final)

    def lost(self, loss: Loss) -> None:
        """Note a try without an answer."""
        self.cut_off += loss.post.number in self._sent
        self._sent.pop(loss.post.number, None)
        super().lost(loss)
