"""A World: one service, one PostgreSQL, a proxy between them, and traffic with a ledger.

Promises: at the end of the block the harm of a fault is undone, and no process or file is left.
Does not: judge a fault; `conclude` returns what was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from loadgen.proof.balance import read_balance
from loadgen.proof.conclude import Evidence
from loadgen.proof.letter_sources import Local
from tests.faults.lazy_disk import LazyDisk
from tests.faults.machine import SmallDisk
from tests.faults.matrix import Fault
from tests.faults.own import Item, Own
from tests.faults.pooler import Pooler
from tests.faults.server import DEBIAN, Server
from tests.faults.trial import Found, Trial
from tests.support.faulty_proxy import FaultyProxy
from tests.support.tcp_ports import free_port
from tests.system.database import copy_data
from tests.system.service import Reply, Service

PLAIN = ("-m", "ingest")
PATCHED = ("-m", "tests.faults.patched")

# Deadlines of some seconds instead of tens of seconds, so that they pass often.
PROMPT: dict[str, object] = {
    "connect_s_max": 2,
    "command_s_max": 3,
    "wait_s_max": 0.5,
    "retries_max": 60,  # pauses are short, so there are more of them; F8 has none
    "schema_check_s": 0.5,
    "put_wait_s_max": 0.3,
    "dlq_replay_pause_s": 0.3,
    "drain_s_max": 5,
    "journal_segment_bytes": 64 * 1024,
    "log_level": "warning",
}


class World(Trial):
    """`async with World(fault, seed, folder, template, quick=False) as world:`, once."""

    def __init__(
        self, fault: Fault, seed: int, folder: Path, template: Path, *, quick: bool = False
    ) -> None:
        super().__init__(fault, seed, folder, quick=quick)
        base = folder / "disk" if fault.lazy_disk else folder
        self.disk = LazyDisk(folder / "backing", base) if fault.lazy_disk else None
        self.state = base / "state"
        self._template = template
        binaries = DEBIAN if fault.debian else None
        self.server = Server(base / "db", free_port(), template, fault.database, binaries)
        self.proxy = FaultyProxy("127.0.0.1", self.server.port)
        self.service: Service = None  # type: ignore[assignment]  # made when the proxy has its port
        self.own = Own()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.front = FaultyProxy("127.0.0.1", int(self.url.rpartition(":")[2]))
        self.admin_url = f"http://127.0.0.1:{free_port()}"
        self.settings: dict[str, object] = {**PROMPT, **fault.settings}
        self.env = {"FAULTS_FOLDER": str(folder), "FAULTS_MUTANT": fault.mutant}
        self._watch: Watch | None = None
        self.small: SmallDisk | None = None
        self.pooler: Pooler | None = None
        self.undo = AsyncExitStack()  # undone after all else has ended
        self._open = AsyncExitStack()

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
            await self.prepare()
            self.service = self.make_service()
            await self._open.enter_async_context(self.service)
            self._watch = Watch(self)
            self._open.push_async_callback(self._watch.stop)
            await self.service.wait_state("accepting", within_s=40)
            self.begin()
            await self.opened()
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
        await self.cancel_traffic()
        with suppress(AssertionError, ProcessLookupError):
            await self.server.thaw()
        self.proxy.resume()
        self.front.resume()
        await self._open.aclose()

    async def prepare(self) -> None:
        """Do what the fault wants before the service starts."""
        if self.fault.before is not None:
            await self.fault.before(self)

    async def opened(self) -> None:
        """Do what this kind of world wants when traffic has begun."""

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
        url = f"http://127.0.0.1:{self.front.port}" if self.fault.front else self.url
        self.begin_traffic((url,), (self.admin_url,))

    # What a fault needs

    async def post(self, *items: Item) -> Reply:
        """Post items of a fault, with `ts` in microseconds; accepted ones are on record."""
        return await self.own.post(self.service, items)

    async def restart(self) -> None:
        """Start the killed service again, as a supervisor would: the recovery time begins now."""
        self.fixed()
        await self.service.start()

    def wall_s(self) -> float:
        """Return the wall time, in seconds."""
        return time.time()

    def clock(self, offset_s: float) -> None:
        """Move the wall clock of a service that was started with the patch `clock`."""
        path = self.folder / "clock.new"
        path.write_text(str(offset_s))
        path.replace(self.folder / "clock")

    async def expect_none_set_aside(self, *may_be: str) -> None:
        """Expect no dead letters but bad items, refused rows, and those of the reasons `may_be`."""
        samples = await self.service.metrics()
        for reason in {"retries_exhausted", "drained"}.difference(may_be):
            name = f'ingest_readings_dead_lettered_total{{reason="{reason}"}}'
            count = samples.get(name, 0)
            self.expect(not count, f"{self.fault.name}: {count:g} dead letters {reason}")

    # The end

    async def conclude(self) -> Found:
        """Finish the traffic, wait until the service is quiet, compare, stop the service."""
        found = self.found
        await self.compare(Evidence(self.server.url, Local(self.state), (self.admin_url,)))
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

    def write_logs(self) -> None:
        """Write what the service has said into the folder."""
        (self.folder / "service.log").write_text(self.service.output)

    async def _take_own(self) -> None:
        """Account for the readings that the fault itself has posted."""
        missing, twice = await self.own.look(self.server)
        found = self.found
        found.acknowledged += len(self.own.accepted)
        if "lost" in self.may_come:
            self.note_missing(len(missing), "of the fault's own")
            missing = set()
        for what, rows in (("lost", missing), ("twice", twice)):
            self.expect(not rows, f"{what} x {len(rows)} of the fault's own: {sorted(rows)[:1]}")
        found.lost += len(missing)
        found.doubled += len(twice)


LOOK_S = 0.3
RSS_MB_MAX = 300.0  # 64 MiB of buffer, 64 MiB of bodies, and Python
DLQ_MB_MAX = 64.0


class Watched(Protocol):
    """What a Watch needs to know; a World is one."""

    service: Service
    state: Path
    fault: Fault

    @property
    def admin_url(self) -> str:
        """Where the service's admin port is."""


class Watch:
    """Watches until `stop`."""

    def __init__(self, world: Watched) -> None:
        self.rss_mb = 0.0
        self.fds = 0
        self.broken: list[str] = []
        self._world = world
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Stop watching. May be called again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                self.broken.append(f"the watch ended: {task.exception()!r}")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            service = self._world.service
            if not service.running:
                continue
            with contextlib.suppress(OSError, AssertionError, ValueError, IndexError):
                self._sizes(service.pid)
            balance = await read_balance(self._world.admin_url)
            if balance is None or balance.held:
                continue
            if not balance.is_zero:
                self._say(f"I9: at a quiet moment the balance left {balance.left_over:g} over")
            if balance.dropped:
                self._say("I9: the service says that it dropped readings")

    def _sizes(self, pid: int) -> None:
        status = Path(f"/proc/{pid}/status").read_text()
        rss_kb = int(status.split("VmRSS:")[1].split()[0])
        self.rss_mb = max(self.rss_mb, rss_kb / 1024)
        self.fds = max(self.fds, len(list(Path(f"/proc/{pid}/fd").iterdir())))
        if self.rss_mb > RSS_MB_MAX:
            self._say(f"I8: {RSS_MB_MAX:g} MB of memory exceeded")
        files_max = self._world.fault.files_max
        if self.fds > files_max:
            self._say(f"I8: {files_max} open files exceeded: {self.fds}")
        folder = self._world.state / "dead-letters"
        size = sum(each.stat().st_size for each in folder.glob("*")) / 1e6
        if size > DLQ_MB_MAX:
            self._say(f"I8: {DLQ_MB_MAX:g} MB of dead letters exceeded")

    def _say(self, said: str) -> None:
        if said not in self.broken:
            self.broken.append(said)
