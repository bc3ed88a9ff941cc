"""SIGTERM: each acknowledged reading is in the table, or a dead letter that is replayed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from tests.support.faulty_proxy import FaultyProxy
from tests.support.receiver import until
from tests.system.database import Database
from tests.system.fleet import FIRST_US, TABLE_SQL, Fleet, check_table, reading
from tests.system.manager import Manager
from tests.system.service import Service, wait_gone


async def test_sigterm_answers_draining_until_it_ends(open_tmp_path: Path, free_port: int) -> None:
    """During a drain the data port answers `draining`; /readyz answers 503.

    The watchdog gets its messages, so that no manager ends the drain.
    """
    times: dict[str, Any] = {
        "command_s_max": 1,
        "drain_s_max": 2,
        "buffer": "memory",  # with a journal such a stop does not wait
    }
    with Manager(str(open_tmp_path / "notify")) as manager:
        env = manager.environment(WATCHDOG_USEC="400000")
        async with (
            Database(open_tmp_path / "db", free_port) as database,
            Service(
                open_tmp_path / "state", env=env, database_url=database.url, **times
            ) as service,
        ):
            await service.wait_state("accepting")
            await database.kill()
            assert (await service.post(reading(FIRST_US))).status == 202
            ending = asyncio.create_task(service.stop())
            await manager.wait("STOPPING", "1")
            fed = len(manager.values("WATCHDOG"))
            await service.wait_state("draining", within_s=5)
            assert (await service.readyz()).status == 503
            refused = await service.post(reading(FIRST_US + 1))
            assert (refused.status, refused.document["code"]) == (503, "draining")
            assert refused.headers["Connection"] == "close"
            assert int(refused.headers["Retry-After"]) >= 1
            await until(lambda: len(manager.values("WATCHDOG")) >= fed + 5, 20)
            assert manager.values("STATUS")[-1].startswith("draining")
            code, output = await ending
        assert code == 0, output
        assert "lost=0" in output.splitlines()[-1], output


async def test_drain_without_database_sets_aside_what_comes_back_at_the_next_start(
    open_tmp_path: Path, free_port: int
) -> None:
    """Readings in memory at the deadline become dead letters, and are stored after the restart."""
    settings: dict[str, Any] = {"command_s_max": 1}
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(
            open_tmp_path / "state",
            database_url=database.url,
            dlq_replay_pause_s=0.2,
            wait_s_max=0.5,
            drain_s_max=1.5,
            buffer="memory",
            **settings,
        )
        async with service:
            await service.wait_state("accepting")
            await database.kill()
            async with Fleet(service.url, connections=2, rows=10) as fleet:
                await asyncio.sleep(0.4)
            samples = await service.metrics()
            held = int(samples["ingest_readings_held"])
            assert held == len(fleet.acknowledged)
            code, output = await service.stop()
            assert code == 0, output
            assert f"dead_lettered={held} held=0 lost=0" in output.splitlines()[-1]
            await database.start()
            await service.start()
            await service.wait_state("accepting")
            await service.wait_sample("ingest_dlq_readings", 0)
            samples = await service.wait_quiet()
            assert samples["ingest_readings_replayed_total"] == held
            assert samples["ingest_ledger_imbalance_rows"] == 0
            check_table(fleet, await database.run(TABLE_SQL))


async def test_signals_after_the_drain_change_nothing(
    open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """After `drained:` is printed, further signals do not change exit code 0."""
    async with Service(open_tmp_path / "state", buffer="memory", **at_hand) as service:
        await service.wait_state("accepting")
        first = asyncio.create_task(service.stop())
        await service.wait_line("drained:")
        while service.running:
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service.pid, number)
            await asyncio.sleep(0.001)
        code, output = await first
        assert code == 0, output
        assert output.splitlines()[-1].endswith("lost=0"), output


async def test_stop_does_not_wait_for_a_server_that_says_nothing(
    open_tmp_path: Path, free_port: int
) -> None:
    """The stop does not wait for a silent server: neither at the start nor later."""
    async with (
        Database(open_tmp_path / "db", free_port) as database,
        FaultyProxy("127.0.0.1", free_port) as proxy,
    ):
        url = database.url.replace(f":{free_port}/", f":{proxy.port}/")
        service = Service(open_tmp_path / "state", database_url=url, connect_s_max=20)
        proxy.stall()
        starting = asyncio.create_task(service.start())  # no log line comes before the first try
        try:
            await _stop_while_connecting(service, proxy)
            await asyncio.gather(starting, return_exceptions=True)
            proxy.resume()
            await service.start()
            await service.wait_state("accepting")
            proxy.stall()
            await proxy.cut()
            await _stop_while_connecting(service, proxy)
        finally:
            await service.kill()


async def _stop_while_connecting(service: Service, proxy: FaultyProxy) -> None:
    await until(
        lambda: proxy.connections_open, 20
    )  # an idle writer checks its connection every 2 s
    async with asyncio.timeout(5):
        code, output = await service.stop()
    assert code == 0, output
    assert "lost=0" in output.splitlines()[-1], output
    assert "database_away" not in output


async def test_killed_service_leaves_no_database_and_starts_again(open_tmp_path: Path) -> None:
    """After SIGKILL the embedded server ends too; the next start has all committed readings."""
    service = Service(open_tmp_path / "state")
    async with service:
        await service.wait_state("accepting")
        answer = await service.post([reading(FIRST_US + n) for n in range(10)], ack="committed")
        assert answer.status == 200
        (row,) = await service.query("select pg_backend_pid() as pid")
        postmaster = int(
            (service.state_dir / "postgres/data/postmaster.pid").read_text().split()[0]
        )
        await service.kill()
        await wait_gone(postmaster)
        assert row["pid"] != postmaster
        await service.start()
        await service.wait_state("accepting")
        assert len(await service.query(TABLE_SQL)) == 10
