"""The real service under a service manager: what it reports, and the socket that it is given."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from ingest.http.listener import BACKLOG
from tests.support.certificates import make_certificate, trusting
from tests.system.manager import Manager
from tests.system.service import Service
from tests.system.test_tls import Secret

WATCHDOG_S = 0.4


async def test_service_reports_its_states_and_a_frozen_one_sends_no_watchdog(
    open_tmp_path: Path, readings_url: str
) -> None:
    """READY when the ports listen, the state as text, WATCHDOG while it runs, STOPPING at drain."""
    with Manager(f"@iot-ingest-{os.getpid()}-{open_tmp_path.name}") as manager:
        env = manager.environment(WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)))
        async with Service(
            open_tmp_path / "s", env=env, database_url=readings_url, database_unsafe=True
        ) as service:
            await manager.wait("READY", "1")
            await manager.wait("STATUS", "accepting")
            await manager.wait_more("WATCHDOG", 2)
            os.kill(service.pid, signal.SIGSTOP)
            await asyncio.sleep(WATCHDOG_S / 2)  # messages that were on their way arrive
            fed = len(manager.values("WATCHDOG"))
            await asyncio.sleep(2 * WATCHDOG_S)
            assert len(manager.values("WATCHDOG")) == fed
            os.kill(service.pid, signal.SIGCONT)
            await manager.wait_more("WATCHDOG", 2)
            assert manager.values("STOPPING") == []
            code, output = await service.stop()
        assert code == 0, output
        names = [name for name, _value in manager.read()]
        assert names.count("READY") == names.count("STOPPING") == 1
        assert names.index("READY") < names.index("STOPPING")


async def test_service_that_waits_for_its_database_is_ready_and_says_why(
    open_tmp_path: Path, free_port: int
) -> None:
    """The service is ready without its database, so no manager kills it; the status says why."""
    with Manager(str(open_tmp_path / "notify")) as manager:
        url = f"postgresql://nobody@127.0.0.1:{free_port}/nothing"
        env = manager.environment()
        flags = {"database_url": url, "buffer": "memory"}
        async with Service(open_tmp_path / "s", env=env, **flags) as service:
            await manager.wait("READY", "1")
            await manager.wait("STATUS", "starting: posts are not taken until")
            code, output = await service.stop()
        assert code == 0, output
        assert manager.values("WATCHDOG") == []


# Does what systemd does between its fork and the start of the program.
GIVEN = """
import os, runpy
os.dup2({fd}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="it.socket")
runpy.run_module("ingest", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("with_tls", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_restarts_refuse_and_reset_nobody(
    open_tmp_path: Path, at_hand: dict[str, Any], with_tls: bool
) -> None:
    """100 posts a second, each on a new connection, and kept ones: all are answered and stored.

    Who connects after a kill -9 waits for the next process, which has all that was acknowledged.
    """
    context = None
    if with_tls:
        cert_file, key_file = make_certificate(open_tmp_path)
        at_hand |= {"tls_cert_file": cert_file, "tls_key_file": key_file}
        context = trusting(cert_file)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        program = ("-c", GIVEN.format(fd=listening.fileno()))
        service = Service(open_tmp_path / "state", program=program, **at_hand)
        service.pass_fds = (listening.fileno(),)
        async with service:
            await service.wait_state("accepting")
            devices = Secret("{}:{}".format(*listening.getsockname()), context)
            async with devices.posting(100):
                for _ in range(3 if with_tls else 2):
                    assert "lost=0" in (await service.stop())[1]
                    await service.start()
            await service.kill()
            await asyncio.gather(devices.one(), service.start())
            assert devices.faults == []
            assert devices.acknowledged == devices.posted > 50
            await service.wait_rows(devices.posted)
