"""`ingest up` with its real processes: what was acknowledged is in the table, whatever ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.roles.embedded_broker import find_program, running_broker
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER
from ingest.system.clock import monotonic_s
from tests.support.brokers import LOCAL, api, joined
from tests.support.deployment import DEPLOY
from tests.support.supervisors import Devices
from tests.support.tcp_ports import free_port
from tests.system.roles import running
from tests.system.service import Done, Service, run_command
from tests.system.test_up import Up, children, restart

BEGIN_MS = 1_750_000_000_000
NUMBERS = "select device_id || ' ' || value::int as reading, count(*) from readings group by 1"
WAITING = 100  # messages


class Counters(Devices):
    """Clients that post numbers; `kept` are those with a 202."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.kept: set[str] = set()
        self.longest_s = 0.0  # of a post that got its 202
        self._last = 0
        self._sent_s: dict[bytes, float] = {}

    def body(self) -> bytes:
        """Return a post with the next number."""
        self._last += 1
        number = self._last
        body = b'{"device_id":"d","metric":"m","ts":%d,"value":%d}' % (BEGIN_MS + number, number)
        self._sent_s[body] = monotonic_s()
        return body

    def answered(self, status: int, body: bytes, posted: bytes) -> None:
        """Note what became of it."""
        took_s = monotonic_s() - self._sent_s.pop(posted)
        if status == 202:
            self.longest_s = max(self.longest_s, took_s)
            self.kept.add("d " + posted.rpartition(b":")[2].rstrip(b"}").decode())
        else:
            self.faults.append(f"{status} {body!r}")


def real_up(folder: Path, url: str, **settings: Any) -> Up:
    """Return an `ingest up`, not started."""
    given = {"database_url": url, "database_unsafe": True, **settings}
    return Up(folder / "s", **given)


async def stored(service: Service) -> dict[str, int]:
    """Return how often each number is in the table, which a writer makes."""
    try:
        return {row["reading"]: row["count"] for row in await service.query(NUMBERS)}
    except asyncpg.UndefinedTableError:
        return {}


async def all_stored(service: Service, kept: set[str]) -> None:
    """Wait until all that was acknowledged is in the table, and nothing twice."""
    found: dict[str, int] = {}
    async with asyncio.timeout(40):
        while kept - (found := await stored(service)).keys():  # noqa: ASYNC110  other processes
            await asyncio.sleep(0.1)
    assert set(found.values()) == {1}


async def test_killed_processes_lose_nothing_that_was_acknowledged(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Gateway and writer are killed under load; commands find the service all the time."""
    async with real_up(open_tmp_path, readings_url) as service:
        devices = Counters(service.url)
        async with devices.posting(100):
            for pid in children(service.pid):
                await asyncio.sleep(0.3)
                os.kill(pid, signal.SIGKILL)
            shown: Done = await run_command(
                "ingest", "hold", "show", "--state-dir", service.state_dir
            )
            async with asyncio.timeout(20):
                while len(children(service.pid)) < 2:  # noqa: ASYNC110  other processes
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        assert shown.code == 0, shown.stderr
        refused = [each for each in devices.faults if each[:1].isdigit()]
        assert refused == [], "who is killed refuses nobody: his clients are reset"
        await all_stored(service, devices.kept)
        assert (await service.stop())[0] == 0


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
async def test_fifty_rolling_restarts_of_real_processes_at_500_new_connections_a_second(
    open_tmp_path: Path, readings_url: str
) -> None:
    """0 resets, 0 refused, 0 lost, with two gateways on one port."""
    async with real_up(open_tmp_path, readings_url, gateways=2) as service:
        devices = Counters(service.url)
        first = set(children(service.pid))
        async with devices.posting(500, kept=20):
            await restart(service, 50)
        assert devices.faults == []
        assert not first & set(children(service.pid))
        await all_stored(service, devices.kept)
        code, output = await service.stop()
        assert code == 0, output
        last = re.search(r"drained: committed=(\d+) dead_lettered=0 held=0 lost=0$", output)
        assert last, output
        # What a writer had when it or the broker was replaced may be written again.
        assert int(last[1]) >= len(devices.kept)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_frozen_broker_is_replaced_and_the_posts_wait_for_it(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Each post gets its 202 within 10 s, and all of them are in the table."""
    async with real_up(open_tmp_path, readings_url) as service:
        devices = Counters(service.url)
        async with devices.posting(20):
            await asyncio.sleep(0.5)
            (server,) = servers_of(service.pid)
            os.kill(server, signal.SIGSTOP)
            await service.wait_line("broker_frozen")
            await service.wait_line("server_restarted")
            await asyncio.sleep(1)
        assert devices.faults == []
        assert devices.longest_s < 10
        await all_stored(service, devices.kept)
        assert (await service.stop())[0] == 0


def servers_of(supervisor: int) -> list[int]:
    """Return the nats-servers of a supervisor."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == supervisor and b"server.conf" in (each / "cmdline").read_bytes():
                found.append(int(each.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_killed_supervisor_loses_nothing_that_was_acknowledged(open_tmp_path: Path) -> None:
    """All of its own servers end with it; a new `up` on the same folder stores the rest."""
    service = Up(open_tmp_path / "s", gateways=2)
    async with service:
        devices = Counters(service.url)
        listen = service.url.removeprefix("http://")
        async with devices.posting(50):
            await asyncio.sleep(2)
            os.kill(service.pid, signal.SIGKILL)
        assert len(devices.kept) > 20
        async with Up(open_tmp_path / "s", gateways=2, listen=listen) as again:
            await all_stored(again, devices.kept)
            await devices.one()
            await all_stored(again, devices.kept)
            code, output = await again.stop()
            assert code == 0, output


@pytest.mark.slow
async def test_up_uses_a_broker_of_yours_with_its_one_user(
    open_tmp_path: Path, readings_url: str
) -> None:
    """up.conf in place of roles.conf: streams, all processes of `up`, and the commands."""
    port, monitor = free_port(), free_port()
    text = (DEPLOY / "nats" / "single.conf").read_text().replace("roles.conf", "up.conf")
    text = text.replace("0.0.0.0:4222", f"{LOCAL}:{port}").replace(
        "0.0.0.0:8222", f"{LOCAL}:{monitor}"
    )
    text = text.replace("/var/lib/iot-ingest/nats", str(open_tmp_path / "store"))
    (open_tmp_path / "nats.conf").write_text(text)
    shutil.copy(DEPLOY / "nats" / "up.conf", open_tmp_path)
    (open_tmp_path / "passwords.conf").write_text('UP_PASSWORD: "one"\n')
    broker = {
        "broker_url": f"nats://up:one@{LOCAL}:{port}",
        "broker_monitor_url": f"http://{LOCAL}:{monitor}",
        "stream_bytes_max": "64MiB",
    }
    env = {f"INGEST_{name.upper()}": value for name, value in broker.items()}
    words = (str(find_program()), "--config", str(open_tmp_path / "nats.conf"))
    async with running(open_tmp_path / "nats.log", *words, env={}) as nats:
        await nats.line_with("Server is ready")
        for word in ("apply", "check"):
            done = await run_command("ingest", "stream", word, env=env)
            assert done.code == 0, done.stderr
        async with real_up(open_tmp_path, readings_url, gateways=2, **broker) as service:
            devices = Counters(service.url)
            for _ in range(20):
                await devices.one()
            assert devices.faults == []
            await all_stored(service, devices.kept)
            assert (await service.stop())[0] == 0


async def fill(service: Up, admin: BrokerConnection) -> None:
    """Post until messages wait that no writer was given.

    A writer is given 1,000 messages at most. Posts that come one after the other are one each.
    """
    ts = 1_760_000_000_000
    async with asyncio.timeout(60):
        while True:
            for _ in range(100):
                readings = [reading(ts), reading(ts + 1)]
                await service.post(readings)
                ts += 2
            info = await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}")
            if info["num_pending"] >= WAITING:
                return


def reading(ts: int) -> dict[str, object]:
    """Return a reading of that time."""
    return {"device_id": "d", "metric": "m", "ts": ts, "value": 1}


async def of_all(service: Up, name: str) -> list[float]:
    """Return a metric of all processes."""
    found = await service.metrics()
    return [value for key, value in found.items() if key.startswith(f"{name}{{")]


async def most_removed(service: Up) -> float:
    """Return how many messages are lost, by the process that knows of most."""
    return max(await of_all(service, "ingest_stream_removed"), default=0)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_purged_stream_is_a_loss_and_killed_processes_are_none(
    open_tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The messages that somebody removed are counted, as soon as the writer looks for them."""
    settings: dict[str, Any] = {
        "database_url": readings_url,
        "database_unsafe": True,
    }
    async with Up(open_tmp_path / "s", gateways=2, writers=1, **settings) as service:
        assert (await service.post(reading(1_750_000_000_000))).status == 202
        await service.wait_sample('ingest_readings_committed_total{instance="writer-1"}', 1)
        await readings_connection.execute("alter table readings rename column value to was")
        broker = running_broker(service.state_dir / "broker")
        assert broker is not None
        async with joined(lambda: broker.address("admin"), "admin") as admin:
            await fill(service, admin)
            await service.wait_state("on_hold")
            waits = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["num_pending"]
            assert (await api(admin, f"STREAM.PURGE.{STREAM}"))["success"]
        await readings_connection.execute("alter table readings rename column was to value")
        await service.wait_state("accepting")
        async with asyncio.timeout(60):
            while await most_removed(service) < waits:  # noqa: ASYNC110  other processes
                await asyncio.sleep(0.5)
        lost = await most_removed(service)

        for pid in children(service.pid):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(2)
        await service.wait_state("accepting")
        assert (await service.post(reading(1_755_000_000_000))).status == 202
        await asyncio.sleep(5)
        assert await most_removed(service) == lost, "also after the end of those that saw it"
        assert not any(await of_all(service, "ingest_ledger_imbalance_rows"))
