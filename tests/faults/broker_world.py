"""A BrokerWorld: two gateways, two writers, one or three nats-servers, PostgreSQL, one ledger.

Posts go to both gateways. Gateways connect to a single server through a proxy (`line`), to three
directly. Writers connect to PostgreSQL through a proxy (`proxy`). A single server is on one machine
with all the others: with `lazy_disk` PostgreSQL is on that disk, too. Three are three machines.
Promises: at the end of the block the harm of a fault is undone, and no process or file is left.
Does not: judge a fault; `conclude` returns what was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import FORWARD, STREAM
from ingest.roles.nats.streams import (
    WantedStream,
    changed,
    for_tables,
    wanted_letters,
    wanted_readings,
)
from ingest.roles.nats.watch import ask
from loadgen.proof.balance import STREAM_LATE_S, Settled, read_balance
from loadgen.proof.conclude import Evidence
from loadgen.proof.letter_sources import Program
from tests.faults.lazy_disk import LazyDisk
from tests.faults.matrix import Fault
from tests.faults.role_process import RoleProcess
from tests.faults.server import Server
from tests.faults.trial import Found, Trial
from tests.faults.world import PATCHED, PLAIN, PROMPT
from tests.support.brokers import LOCAL, MIB, Cluster, Member, api, joined, members_in, running
from tests.support.faulty_proxy import FaultyProxy
from tests.support.tcp_ports import free_port
from tests.system.database import copy_data
from tests.system.service import run_command

STREAM_BYTES_MAX = 64 * MIB
EACH = 2  # gateways, and writers
TOLD_S_MAX = 10.0  # after so long a loss must have been told
ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)


class BrokerWorld(Trial):
    """`async with BrokerWorld(fault, seed, folder, template, quick=False) as world:`, once."""

    answer_s_max = 20.0  # longer than a gateway lets a post wait (PUBLISH_WAIT_S_MAX)
    recovery_s_max = 90.0  # 30 s until a killed writer's messages come again, some for elections

    def __init__(
        self, fault: Fault, seed: int, folder: Path, template: Path, *, quick: bool = False
    ) -> None:
        super().__init__(fault, seed, folder, quick=quick)
        base = folder / "disk" if fault.lazy_disk else folder
        self.disk = LazyDisk(folder / "backing", base) if fault.lazy_disk else None
        self.single = fault.brokers == 1
        self._template = template
        home = base if self.single else folder
        self.server = Server(home / "db", free_port(), template, fault.database)
        self.proxy = FaultyProxy(LOCAL, self.server.port)
        self.gateways: list[RoleProcess] = []
        self.writers: list[RoleProcess] = []
        self.settings: dict[str, object] = {
            **PROMPT,
            "stream_bytes_max": STREAM_BYTES_MAX,
            "dlq_bytes_max": 4 * STREAM_BYTES_MAX,
            "stream_replicas": fault.brokers,
            **fault.settings,
        }
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        members = members_in(folder / "servers", (LOCAL,) * fault.brokers, stores=base / "stores")
        self.servers = FaultyServers(members, self.settings, fault.broker_words)
        self.line = FaultyProxy(LOCAL, members[0].at.port)
        self.undo = AsyncExitStack()  # undone after all else has ended
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self.folder.chmod(0o755)
            enter = self._open.enter_async_context
            await enter(self.undo)
            if self.disk is not None:
                self.disk.backing.mkdir(parents=True)
                if self.single:
                    await copy_data(self._template, self.disk.backing / "db")
                await enter(self.disk)
            await enter(self.server)
            await enter(self.proxy)
            await enter(self.line)
            if self.fault.before is not None:
                await self.fault.before(self)
            await enter(running(self.servers, *self.servers.wanted))
            if self.fault.stream:
                await self.servers.remake_stream(self.fault.stream)
            await self._start_roles()
            urls = tuple(each.url for each in self.gateways)
            self.begin_traffic(urls, self.admin_urls)
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
        self.proxy.resume()
        self.line.resume()
        await self._open.aclose()

    async def _start_roles(self) -> None:
        for number in range(EACH):
            self.gateways.append(self.role("gateway", f"gateway-{number + 1}"))
            self.writers.append(self.role("writer", f"writer-{number + 1}"))
        every = (*self.gateways, *self.writers)
        for each in every:
            self._open.push_async_callback(each.kill)
        await asyncio.gather(*(each.start() for each in every))
        await asyncio.gather(*(each.wait_state("accepting", within_s=40) for each in every))

    # What it is made of

    def broker_url(self, role: str) -> str:
        """Return the URL with which a role connects."""
        ports = [each.at.port for each in self.servers.members]
        if self.single and role == "gateway":
            ports = [self.line.port]
        password = self.servers.members[0].at.passwords[role]
        return f"nats://{role}:{password}@" + ",".join(f"{LOCAL}:{port}" for port in ports)

    def env(self, role: str, mutant: str = "", **more: object) -> dict[str, str]:
        """Return the environment of a role; the passwords are not on its command line."""
        return {
            "INGEST_BROKER_URL": self.broker_url(role),
            "INGEST_BROKER_MONITOR_URL": ",".join(self.servers.monitors),
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_MUTANT": mutant or self.fault.mutant,
            **{key: str(value) for key, value in more.items()},
        }

    def role(self, role: str, folder: str, **more: object) -> RoleProcess:
        """Return a process of a role, not started."""
        place: dict[str, object] = {}
        if role == "gateway":
            place = {**self.settings, "listen": f"{LOCAL}:{free_port()}"}
        if role == "writer":
            place = {**self.settings, "database_url": self.server.url_over(self.proxy.port)}
        return RoleProcess(
            role,
            self.folder / folder,
            env=self.env(role),
            program=PATCHED if self.fault.mutant else PLAIN,
            admin_listen=f"{LOCAL}:{free_port()}",
            **{**place, **more},
        )

    @property
    def admin_urls(self) -> tuple[str, ...]:
        """The admin ports of all gateways and writers."""
        return tuple(each.admin_at for each in (*self.gateways, *self.writers))

    @property
    def letters(self) -> Program:
        """What prints the dead letters."""
        words = ("-m", "ingest", "dlq", "list", "--json", "--store", "stream", "--state-dir")
        url = f"INGEST_BROKER_URL={self.broker_url('admin')}"
        return Program(("env", url, sys.executable, *words, str(self.folder / "admin")))

    # What a fault needs

    async def hit(self, number: int, *members: Member) -> None:
        """End servers and start them again, or freeze them for a while; wait until all is well."""
        if number == signal.SIGSTOP:
            for each in members:
                each.send(signal.SIGSTOP)
            await self.sleep(4, 7)
            for each in members:
                each.send(signal.SIGCONT)
        else:
            await asyncio.gather(*(each.end(signal.Signals(number)) for each in members))
            await self.sleep(0.5, 1.5)
            await asyncio.gather(*(each.start() for each in members))
        self.fixed()
        self.count()
        await self.all_well()

    async def all_well(self) -> None:
        """Wait until all servers are well, and all copies current."""
        await asyncio.gather(*(each.is_well(40) for each in self.servers.members))
        await self.servers.leads()

    async def again(self, *roles: RoleProcess, stop: bool = False) -> None:
        """Start roles again, as a supervisor would; with `stop` stop them in order first."""
        if stop:
            await asyncio.gather(*(each.stop() for each in roles))
        self.fixed()
        await asyncio.gather(*(each.start() for each in roles))

    async def apply(self, within_s: float = 40.0) -> None:
        """Run `ingest stream apply` until it succeeds. Raises TimeoutError."""
        settings = (
            *("stream_bytes_max", "stream_replicas", "dlq_bytes_max", "broker_unsafe"),
            "tables_file",
        )
        env = {
            f"INGEST_{each.upper()}": str(self.settings[each])
            for each in settings
            if each in self.settings
        }
        env["INGEST_STATE_DIR"] = str(self.folder / "admin")
        async with asyncio.timeout(within_s):
            while True:
                done = await run_command(
                    "ingest", "stream", "apply", env={**self.env("admin"), **env}
                )
                if not done.code:
                    return
                await asyncio.sleep(0.3)

    async def total(self, name: str) -> float:
        """Return the sum of a metric over all processes that answer."""
        samples = [await self._metrics(each) for each in (*self.gateways, *self.writers)]
        return sum(
            value
            for each in samples
            for key, value in each.items()
            if key == name or key.startswith(name + "{")
        )

    async def _metrics(self, role: RoleProcess) -> dict[str, float]:
        if not role.running or not role.admin_url:
            return {}
        return await role.metrics()

    async def expect_told(self, since_s: float, metric: str, event: str) -> float:
        """Expect that a loss is counted and logged within 10 s; return the metric's largest value.

        The alerts of deploy/alerts.yml look at such a metric.
        """
        every = (*self.gateways, *self.writers)
        most, named = 0.0, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * TOLD_S_MAX):
                while not (most and named):
                    await asyncio.sleep(0.1)
                    samples = [await self._metrics(each) for each in every]
                    most = max(each.get(metric, 0.0) for each in samples)
                    named = any(event in each.output for each in every)
        took_s = self.now_s() - since_s
        self.expect(most, f"{metric} is 0: the loss was not counted")
        self.expect(named, f"no {event} in a log: the loss was not named")
        self.expect(took_s < TOLD_S_MAX, f"told after {took_s:.1f} s")
        self.found.figures.append(f"{metric} {most:g} and `{event}` after {took_s:.1f} s")
        return most

    async def kill_all(self) -> None:
        """Kill every process of the machines at one moment."""
        roles = [each for each in (*self.gateways, *self.writers) if each.running]
        members = [each.process for each in self.servers.members if each.process is not None]
        pids = [each.pid for each in roles] + [each.pid for each in members]
        pids += self.server.pids() if self.single else []
        for number in (signal.SIGSTOP, signal.SIGKILL):  # one moment for all
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if self.single:
            await self.server.kill_all()
        await asyncio.gather(*(each.ended() for each in roles), *(each.wait() for each in members))

    # The end

    async def conclude(self) -> Found:
        """Finish the traffic, wait until all is quiet, compare, stop all roles."""
        await self.compare(Evidence(self.server.url, self.letters, self.admin_urls))
        for each in (*self.gateways, *self.writers):
            status = Path(f"/proc/{each.pid}/status").read_text()
            rss_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
            self.found.rss_mb = max(self.found.rss_mb, rss_mb)
        for each in (*self.gateways, *self.writers):
            code, output = await each.stop()
            last = output.splitlines()[-1:]
            orderly = code == 0 and "lost=0" in "".join(last)
            name = each.state_dir.name
            self.expect(orderly, f"I7: {name} did not end in order: exit {code}, {last}")
        return self.found

    async def settle(self, where: Evidence, within_s: float) -> Settled:
        """Wait until nothing is left to do.

        After a loss the balance between the roles stays other than 0, as it should.
        """
        if not self.fault.breaks:
            return await super().settle(where, within_s)
        began_s = self.now_s()
        balance: Any = None
        while self.now_s() - began_s < within_s:
            asked_s = self.now_s()
            balance = await read_balance(*where.admin_urls) or balance
            if balance is not None and balance.is_done and asked_s - began_s > STREAM_LATE_S:
                return Settled(quiet=True, balance=balance)
            await asyncio.sleep(0.2)
        return Settled(quiet=False, balance=balance)

    def write_logs(self) -> None:
        """Write what the processes have said into the folder."""
        for each in (*self.gateways, *self.writers):
            (self.folder / f"{each.state_dir.name}.log").write_text(each.output)


class FaultyServers(Cluster):
    """One server or three. `settings` are those of the roles; `words` replace words of a config."""

    def __init__(
        self, members: list[Member], settings: Mapping[str, object], words: Mapping[str, str]
    ) -> None:
        super().__init__(members)
        self._settings = settings
        for each in members:
            text = each.config.read_text()
            for old, new in words.items():
                assert old in text, f"{old} is not in the configuration"
                text = text.replace(old, new)
            each.config.write_text(text)

    @property
    def wanted(self) -> tuple[WantedStream, WantedStream]:
        """What the streams must be."""
        copies = len(self.members)
        size, letters = (int(str(self._settings[f"{of}_bytes_max"])) for of in ("stream", "dlq"))
        forwards = tuple(FORWARD + each for each in str(self._settings.get("forwards", "")).split())
        readings = wanted_readings(copies, size, forwards)
        if "tables_file" in self._settings:
            readings = for_tables(readings)
        return readings, wanted_letters(copies, letters)

    def admin(self) -> contextlib.AbstractAsyncContextManager[BrokerConnection]:
        """Give a connection of the admin."""
        return joined(lambda: self.address("admin"), "admin")

    async def leads(self) -> Member:
        """Return the server that leads the stream, once all copies are current."""
        async with self.admin() as admin:
            return await self.leader(admin)

    def that_serve(self, role: str) -> list[Member]:
        """Return the servers that a role is connected to. Blocks."""
        found = []
        for each in self.members:
            lines = ask(each.monitor_url, "/connz?auth=1").get("connections") or ()
            if any(line.get("authorized_user") == role for line in lines):
                found.append(each)
        return found

    async def remake_stream(self, settings: Mapping[str, object]) -> None:
        """Make the empty stream anew with some other settings: not all can be changed."""
        stream, _ = self.wanted
        async with self.admin() as admin:
            assert "error" not in await api(admin, f"STREAM.DELETE.{STREAM}")
            config = changed({**stream.stream, **settings}, {})
            made = await api(admin, f"STREAM.CREATE.{STREAM}", config)
            assert "error" not in made, made
        await self.make_consumers()

    async def make_consumers(self) -> None:
        """Make the consumers of the stream."""
        stream, _ = self.wanted
        async with self.admin() as admin:
            for name, each in stream.consumers.items():
                body = {"stream_name": STREAM, "config": changed(each, {}), "action": "create"}
                made = await api(admin, f"CONSUMER.CREATE.{STREAM}.{name}", body)
                assert "error" not in made, made
