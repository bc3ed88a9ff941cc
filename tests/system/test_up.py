"""The command `ingest up` with small processes of its own: restarts, secrets, and its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ingest.roles.embedded_broker import running_broker
from tests.support.receiver import Client, head, until
from tests.support.supervisors import NO_DATABASE, Devices
from tests.system.manager import Manager
from tests.system.service import Service, is_alive, wait_gone

TOKEN = "a-token-that-is-secret"


class Up(Service):
    """One `ingest up`."""

    command = "up"


def tiny_up(folder: Path, env: dict[str, str] | None = None, **settings: Any) -> Up:
    """Return an `ingest up` with the small processes, not started."""
    program = ("-m", "tests.support.up_with_tiny")
    return Up(folder / "s", env=env, program=program, **{"database_url": NO_DATABASE, **settings})


def children(supervisor: int) -> list[int]:
    """Return the processes that serve for it: those with a channel."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == supervisor and b"--control-fd" in (each / "cmdline").read_bytes():
                found.append(int(each.name))
    return found


async def restart(service: Service, times: int) -> None:
    """Restart all processes so often, one after the other."""
    for _ in range(times):
        service.lines.clear()
        os.kill(service.pid, signal.SIGHUP)
        await service.wait_line("restart_done", 120)


async def check_secrets(service: Service) -> None:
    """Each child gets its own ones by its channel, and none is in its environment or words.

    Its environment says only how a person types a command.
    """
    client = await Client.connect(service.url.removeprefix("http://"))
    await client.send(head("GET", "/config"))
    configuration = (await client.reply()).body.decode()
    await client.close()
    broker = running_broker(service.state_dir / "broker")
    assert broker is not None
    passwords = broker.endpoints.passwords
    assert "'body_bytes_max': 4096" in configuration
    assert passwords["gateway"] in configuration
    for secret in (TOKEN, passwords["admin"], passwords["writer"], NO_DATABASE):
        assert secret not in configuration
    pids = children(service.pid)
    assert len(pids) == 2
    for pid in (*pids, service.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert not [each for each in (*passwords.values(), TOKEN) if each in words]
    for pid in pids:
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        ours = [each for each in variables if each.startswith("INGEST_")]
        assert ours == ["INGEST_COMMAND=./run"]


@pytest.mark.slow
async def test_rolling_restarts_reset_and_refuse_nobody(open_tmp_path: Path) -> None:
    """Ten times all processes are new; each post of new and old connections gets its 202.

    The process manager hears of start, restart and stop. Secrets reach the processes alone.
    """
    with Manager(f"@iot-ingest-up-{os.getpid()}-{open_tmp_path.name}") as manager:
        env = manager.environment(
            WATCHDOG_USEC="400000",
            INGEST_ADMIN_TOKEN=TOKEN,
            INGEST_BODY_BYTES_MAX="4KiB",
            INGEST_COMMAND="./run",
        )
        async with tiny_up(open_tmp_path, env) as service:
            await check_secrets(service)
            await manager.wait("READY", "1")
            await manager.wait("STATUS", "accepting")
            await manager.wait_more("WATCHDOG", 2)
            devices = Devices(service.url)
            first = set(children(service.pid))
            assert len(first) == 2
            async with devices.posting():
                for number in range(1, 11):
                    await until(lambda number=number: len(devices.served) == number, 20)
                    await restart(service, 1)
                    manager.read()  # its queue is short
                await until(lambda: len(devices.served) == 11, 20)
            assert devices.faults == []
            assert not first & set(children(service.pid))
            code, output = await service.stop()
        assert code == 0, output
        total = sum(devices.served.values())
        assert f"drained: committed={total} dead_lettered=0 held=0 lost=0" in output
        told = ("READY", "RELOADING", "STOPPING")
        names = [name for name, _value in manager.read() if name in told]
        assert names == ["READY", *["RELOADING", "READY"] * 10, "STOPPING"]


@pytest.mark.slow
async def test_children_of_a_killed_supervisor_end_and_a_new_one_starts(
    open_tmp_path: Path,
) -> None:
    """No orphan stays, not even a frozen one, which would get a part of the connections."""
    service = tiny_up(open_tmp_path, {"UP_ORPHANS_S": "0.5"}, gateways=2)
    async with service:
        listen = service.url.removeprefix("http://")
        frozen, *others = children(service.pid)
        assert len(others) == 2
        os.kill(frozen, signal.SIGSTOP)
        os.kill(service.pid, signal.SIGKILL)
        for each in others:
            await wait_gone(each, 5)
        assert is_alive(frozen)
        env = {"UP_ORPHANS_S": "0.5"}
        async with tiny_up(open_tmp_path, env, gateways=2, listen=listen) as again:
            assert not is_alive(frozen)
            assert f'"pid":{frozen}' in await again.wait_line("orphan_killed")
            devices = Devices(again.url)
            async with devices.posting():
                await asyncio.sleep(0.3)
            assert devices.faults == []
            assert set(devices.served) <= set(children(again.pid))
            assert (await again.stop())[0] == 0
