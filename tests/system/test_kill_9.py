"""A 202 survives kill -9: the real service, its journal, a database that stops and starts."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

import pytest

from ingest.buffers.journal.segments import segment_files
from tests.path.recorded.app import RunningApp
from tests.system.database import Database
from tests.system.fleet import FIRST_US, TABLE_SQL, Fleet, check_table, reading
from tests.system.service import PLAIN, Service, run_command

QUICK: dict[str, Any] = {
    "command_s_max": 1,
    "wait_s_max": 0.2,
}


@pytest.mark.parametrize("program", [PLAIN, RunningApp.program], ids=["serve", "app of aiohttp"])
async def test_killed_service_recovers_exactly_what_it_had_acknowledged(
    open_tmp_path: Path, free_port: int, program: tuple[str, ...]
) -> None:
    """Database down and kill -9, twice: acknowledged readings are recovered and stored once."""
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(
            open_tmp_path / "state",
            program=program,
            database_url=database.url,
            buffer_rows_max=5_000,
            journal_segment_bytes=100_000,
            **QUICK,
        )
        async with service:
            await service.wait_state("accepting")
            async with Fleet(service.url, connections=4, rows=20, ack="durable") as fleet:
                await asyncio.sleep(0.5)
            stored = int((await service.wait_quiet())["ingest_readings_committed_total"])
            assert stored == len(fleet.acknowledged)
            await database.kill()
            # More than memory may take: a part of it is on the disk only.
            async with Fleet(
                service.url, connections=4, rows=200, pause_s=0, ack="durable"
            ) as more:
                more._next_us = FIRST_US + 10_000_000
                while len(more.acknowledged) < 12_000:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert more.statuses() == {"202"}
            samples = await service.metrics()
            assert samples["ingest_readings_held"] == len(more.acknowledged)
            assert samples["ingest_buffer_rows"] > samples["ingest_buffer_rows_max"]
            assert samples["ingest_ledger_imbalance_rows"] == 0
            for _ in range(2):
                await service.kill()
                await service.start()
                await service.wait_sample("ingest_readings_recovered_total", len(more.acknowledged))
                assert await service.imbalance() == 0
                assert (await service.metrics())["ingest_readings_held"] == len(more.acknowledged)
            await database.start()
            samples = await service.wait_quiet()
            assert samples["ingest_readings_committed_total"] == len(more.acknowledged)
            assert samples["ingest_readings_dropped_total"] == 0
            assert samples["ingest_journal_damaged_total"] == 0
            fleet.acknowledged |= more.acknowledged
            check_table(fleet, await database.run(TABLE_SQL))
            code, output = await service.stop()
            assert code == 0, output
            assert segment_files(open_tmp_path / "state" / "journal") == []


async def test_disk_that_takes_nothing_is_disk_low_until_it_does(
    open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """With a limit of file sizes: 503 `disk_low` and not ready; then ready again by itself."""
    service = Service(open_tmp_path / "state", journal_segment_bytes=4096, **at_hand)
    async with service:
        await service.wait_state("accepting")
        kept = [(await service.post([reading(FIRST_US)])).status]
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        refused = [await service.post([reading(FIRST_US + n) for n in range(1, 100)])]
        refused.append(await service.post([reading(FIRST_US + 100)]))
        assert [(each.status, each.document["code"]) for each in refused] == [(503, "disk_low")] * 2
        assert all(int(each.headers["Retry-After"]) >= 1 for each in refused)
        found = await service.readyz()
        assert (found.status, found.document["state"]) == (503, "disk_low")
        assert "journal" in found.document["reason"]
        resource.prlimit(
            service.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        await service.wait_state("accepting")
        kept.append((await service.post([reading(FIRST_US + 101)])).status)
        assert kept == [202, 202]
        samples = await service.wait_quiet()
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert samples["ingest_readings_committed_total"] == 2
        # The second post was refused before it was decoded.
        assert samples['ingest_readings_rejected_total{code="disk_low"}'] == 99


@pytest.mark.slow
async def test_journal_left_behind_is_named_and_not_touched(
    open_tmp_path: Path, free_port: int
) -> None:
    """`--buffer memory` after a crash: start and doctor name the journal; it is stored later."""
    state = open_tmp_path / "state"
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(state, database_url=database.url, **QUICK)
        async with service:
            await service.wait_state("accepting")
            await database.kill()
            await service.post([reading(FIRST_US + n) for n in range(7)])
            await service.kill()
        before = [file.path.read_bytes() for file in segment_files(state / "journal")]
        assert len(before) == 1
        await database.start()
        async with Service(state, database_url=database.url, buffer="memory", **QUICK) as other:
            await other.wait_state("accepting")
            assert "is NOT read with --buffer memory" in other.output
            answer = await other.post([reading(FIRST_US + 50)])
            assert answer.document["ack"] == "buffered"
            refused = await other.post([reading(FIRST_US + 51)], ack="durable")
            assert refused.document["code"] == "ack_unavailable"
        assert [file.path.read_bytes() for file in segment_files(state / "journal")] == before
        done = await run_command(
            "ingest", "doctor", "--state-dir", state, "--buffer", "memory",
            "--listen", "127.0.0.1:0", "--admin-listen", "[::1]:0",
            "--database-url", database.url,
        )  # fmt: skip
        (line,) = [each for each in done.stdout.splitlines() if " journal " in each]
        assert line.startswith("warn")
        assert "start once with --buffer journal" in line
        async with service:
            await service.wait_state("accepting")
            await service.wait_sample("ingest_readings_committed_total", 7)
