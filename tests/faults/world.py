"""A World: one service, one PostgreSQL, a proxy between them, and traffic with a ledger.

Promises: at the end of the block the harm of a fault is undone, and no process or file is left.
The seed decides what is sent and each random choice of a fault (`random`); the operating system
decides the exact moments.
Does not: judge a fault; `conclude` returns what was found.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from loadgen.driver.retry import Retry
from loadgen.proof.balance import settle
from loadgen.proof.conclude import Evidence, Result, conclude
from loadgen.proof.letter_sources import Local
from loadgen.proof.readings import Plan
from loadgen.proof.run import Job
from loadgen.traffic.post import target_of
from tests.faults.lazy_disk import LazyDisk
from tests.faults.machine import SmallDisk
from tests.faults.matrix import Fault
from tests.faults.own import Item, Own
from tests.faults.pooler import Pooler
from tests.faults.server import DEBIAN, Server
from tests.faults.traffic import CROWD, Traffic
from tests.faults.watch import Watch
from tests.support.faulty_proxy import FaultyProxy
from tests.support.tcp_ports import free_port
from tests.system.database import copy_data
from tests.system.service import Reply, Service

RECOVERY_S_MAX = 60.0
SLOW_S = 10.0  # a longer recovery gets a note
AFTER_S = 0.4  # the traffic goes on for this time after the last fault
PLAIN = ("-m", "ingest")
PATCHED = ("-m", "tests.faults.patched")

# Deadlines of some seconds instead of tens of seconds, so that they pass often.
PROMPT: dict[str, object] = {
    "connect_s_max": 2,
    "lock_s_max": 0.5,
    "statement_s_max": 2,
    "command_s_max": 3,
    "wait_s_max": 0.5,
    "retry_s_max": 1,
    "retries_max": 60,  # pauses are short, so there are more of them; F8 has none
    "hold_probe_s": 0.3,
    "schema_check_s": 0.5,
    "put_wait_s_max": 0.3,
    "dlq_replay_pause_s": 0.3,
    "drain_s_max": 5,
    "journal_segment_bytes": 64 * 1024,
    "log_level": "warning",
}


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
    forgotten_bytes: int = 0


class World:
    """`async with World(fault, seed, folder, template, quick=False) as world:`, once."""

    def __init__(
        self, fault: Fault, seed: int, folder: Path, template: Path, *, quick: bool = False
    ) -> None:
        self.fault = fault
        self.random = random.Random(f"{seed} {fault.name}")
        self.folder = folder
        base = folder / "disk" if fault.lazy_disk else folder
        self.disk = LazyDisk(folder / "backing", base) if fault.lazy_disk else None
        self.state = base / "state"
        self._template = template
        self.times = fault.quick_times if quick else fault.times
        self.found = Found()
        binaries = DEBIAN if fault.debian else None
        self.server = Server(base / "db", free_port(), template, fault.database, binaries)
        self.proxy = FaultyProxy("127.0.0.1", self.server.port)
        self.service: Service = None  # type: ignore[assignment]  # made when the proxy has its port
        self.run: Traffic = None  # type: ignore[assignment]  # the same
        self.own = Own()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.front = FaultyProxy("127.0.0.1", int(self.url.rpartition(":")[2]))
        self.admin_url = f"http://127.0.0.1:{free_port()}"
        self.settings: dict[str, object] = {**PROMPT, **fault.settings}
        self.env = {"FAULTS_FOLDER": str(folder), "FAULTS_MUTANT": fault.mutant}
        self.ledger = folder / "ledger"
        self._traffic: asyncio.Task[None] | None = None
        self._watch: Watch | None = None
        self.small: SmallDisk | None = None
        self.pooler: Pooler | None = None
        self.undo = AsyncExitStack()  # undone after all else has ended
        self._open = AsyncExitStack()
        self._run_id = f"{self.random.getrandbits(32):08x}"
        self.last_s: float | None = None

    async def __aenter__(self) -> Self:
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.folder.chmod(0o755)
            await self._open.enter_async_context(self.undo)
            if self.disk is not None:
                await copy_data(self._template, self.disk.backing / "db")
                await self._open.enter_async_context(self.disk)
            await self._open.enter_async_context(self.server)
            await self._open.enter_async_context(self.proxy)
            await self._open.enter_async_context(self.front)
            if self.fault.before is not None:
                await self.fault.before(self)
            self.service = self.make_service()
            await self._open.enter_async_context(self.service)
            self._watch = Watch(self)
            self._open.push_async_callback(self._watch.stop)
            await self.service.wait_state("accepting", within_s=40)
            self.begin()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._traffic is not None and not self._traffic.done():
            self.run.stop()
            self._traffic.cancel()
            await asyncio.wait([self._traffic])
        with suppress(AssertionError, ProcessLookupError):
            await self.server.thaw()
        self.proxy.resume()
        self.front.resume()
        await self._open.aclose()

    def make_service(self) -> Service:
        """Return the service of this world, not started."""
        mutant = self.env["FAULTS_MUTANT"]
        place = {"database_url": self.server.url_over(self.proxy.port)}
        if self.settings.keys() & {"database_url", "database_url_file"}:
            place = {}  # `before` has another way
        return Service(
            self.state,
            env=self.env,
            program=PATCHED if mutant else PLAIN,
            listen=self.url.removeprefix("http://"),
            admin_listen=self.admin_url.removeprefix("http://"),
            **place,
            **self.settings,
        )

    def patch(self, name: str, **env: object) -> None:
        """Give the service a patch of patched.py from its next start on; "" gives none."""
        words = {key: str(value) for key, value in env.items()}
        self.service.change(
            {**self.env, **words, "FAULTS_MUTANT": name}, PATCHED if name else PLAIN
        )

    def begin(self) -> None:
        """Start the traffic."""
        fault = self.fault
        plan = Plan(
            run=self._run_id,
            seed=self.random.getrandbits(32),
            first_us=int(time.time() * 1_000_000) - 3_600_000_000,
            sizes=((1, 6.0), (10, 3.0), (60, 1.0)),
            duplicates=fault.duplicates,
            invalid=fault.invalid,
            refused=0.003,
            devices=50,
        )
        job = Job(
            target=target_of(f"http://127.0.0.1:{self.front.port}" if fault.front else self.url),
            plan=plan,
            ledger=self.ledger,
            query=f"?ack={fault.asks}",
            connections=CROWD,
            rate=fault.rate,
            retry=Retry(150.0, pause_s_max=0.5, patience_s=1.0),
            answer_s_max=4.0,
            admin_urls=(self.admin_url,),
        )
        self.run = Traffic(job)
        self._traffic = asyncio.create_task(self.run.go())

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
        if self._traffic is not None and self._traffic.done():
            self._traffic.result()  # raises what ended it
            raise AssertionError("the traffic has ended")

    def expect(self, holds: object, said: str) -> None:
        """If `holds` is false, note in `broken` what is not as promised."""
        if not holds and said not in self.found.broken:
            self.found.broken.append(said)

    async def post(self, *items: Item) -> Reply:
        """Post items of a fault, with `ts` in microseconds; accepted ones are on record."""
        return await self.own.post(self.service, items)

    def count(self) -> None:
        """Count one harm that was done."""
        self.found.count += 1

    def fixed(self) -> None:
        """Note that the last fault is over: the recovery time begins now."""
        self.last_s = time.monotonic()

    async def restart(self) -> None:
        """Start the killed service again, as a supervisor would: the recovery time begins now."""
        self.fixed()
        await self.service.start()

    def now_s(self) -> float:
        """Return the monotonic time, in seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Return the wall time, in seconds."""
        return time.time()

    def clock(self, offset_s: float) -> None:
        """Move the wall clock of a service that was started with the patch `clock`."""
        path = self.folder / "clock.new"
        path.write_text(str(offset_s))
        path.replace(self.folder / "clock")

    async def expect_none_set_aside(self) -> None:
        """Expect that the fault made no dead letter: only bad items and refused rows are there."""
        samples = await self.service.metrics()
        for reason in ("retries_exhausted", "drained"):
            name = f'ingest_readings_dead_lettered_total{{reason="{reason}"}}'
            count = samples.get(name, 0)
            self.expect(not count, f"{self.fault.name}: {count:g} dead letters {reason}")

    # The end

    async def conclude(self) -> Found:
        """Finish the traffic, wait until the service is quiet, compare, stop the service."""
        if self.last_s is None:
            self.fixed()
        found, last_s = self.found, self.last_s or 0.0
        await asyncio.sleep(AFTER_S)
        before = self.run.answers.total()
        with suppress(TimeoutError):
            await self.answered(3, within_s=RECOVERY_S_MAX)
        self.expect(self.run.answers.total() > before, "I7: no answer after the fault")
        first_s = time.monotonic() - last_s
        self.run.finish()
        assert self._traffic is not None, "begun"
        await asyncio.wait([self._traffic], timeout=RECOVERY_S_MAX)
        if not self._traffic.done():
            self.run.stop()
        await self._traffic
        all_s = time.monotonic() - last_s
        where = Evidence(self.server.url, Local(self.state), (self.admin_url,))
        left_s = max(1.0, RECOVERY_S_MAX - (time.monotonic() - last_s))
        settled = await settle(where.admin_urls, where.letters, f"verify-{self._run_id}-", left_s)
        found.recovery_s = time.monotonic() - last_s
        if found.recovery_s > SLOW_S:
            found.notes.append(f"answers after {first_s:.1f} s, to all posts after {all_s:.1f} s")
        late = f"I7: {found.recovery_s:.0f} s from the last fault to quiet"
        self.expect(found.recovery_s < RECOVERY_S_MAX, late)
        self.expect(settled.quiet, f"I7: not quiet {RECOVERY_S_MAX:g} s after the last fault")
        result = await conclude(self.ledger, where, settle_s=15.0 if settled.quiet else 5.0)
        self._take(result)
        await self._take_own()
        if self._watch is not None:
            await self._watch.stop()
            found.rss_mb = self._watch.rss_mb
            for said in self._watch.broken:
                self.expect(False, said)
        code, output = await self.service.stop()
        last = output.splitlines()[-1:]
        orderly = code == 0 and "lost=0" in "".join(last)
        self.expect(orderly, f"I7: did not end in order: exit {code}, {last}")
        return found

    def _take(self, result: Result) -> None:
        found = self.found
        counts, faults = result.counts, result.faults
        found.acknowledged = counts["acknowledged"]
        found.unknown = counts["unknown"]
        found.lost = faults["lost"] + faults["not_replayed"]
        found.doubled = faults["twice"] + faults["in_both"]
        found.kinds |= set(faults)
        for kind, each in result.first.items():
            one = each[0]
            self.expect(
                kind in self.fault.breaks | self.fault.follows,
                f"{kind} x {faults[kind]}: {one.reading} promised {one.promised}; found "
                f"{one.found}",
            )
        self.expect(result.is_proof, "no proof: too few acknowledged readings")
        if result.balance is not None:
            self.expect(not result.balance.dropped, "I9: ingest_readings_dropped_total is not 0")

    async def _take_own(self) -> None:
        """Account for the readings that the fault itself has posted."""
        missing, twice = await self.own.look(self.server)
        found = self.found
        found.acknowledged += len(self.own.accepted)
        for what, rows in (("lost", missing), ("twice", twice)):
            self.expect(not rows, f"{what} x {len(rows)} of the fault's own: {sorted(rows)[:1]}")
        found.lost += len(missing)
        found.doubled += len(twice)
