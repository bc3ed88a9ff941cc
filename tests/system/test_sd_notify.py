"""The real service under a process manager: when it reports ready, alive and stopping."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from tests.system.manager import Manager
from tests.system.service import Service

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
