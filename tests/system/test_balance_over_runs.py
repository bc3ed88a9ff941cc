"""The balance over restarts: `recovered` = acknowledged, and neither stored nor set aside.

The real service is killed by kill -9 again and again, and has dead letters of all kinds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.buffers.journal.reader import SegmentScan, segment_files
from tests.system.database import Database
from tests.system.fleet import FIRST_US, TABLE_SQL, Fleet, reading
from tests.system.service import Service

QUICK: dict[str, Any] = {
    "wait_s_max": 0.2,
    "schema_check_s": 0.2,
    "command_s_max": 1,
    "dlq_replay_pause_s": 0.1,
}
BREAK, FIX = "rename metric to metrik", "rename metrik to metric"
REFUSED_VALUE = 666.0
EXHAUSTED = 'ingest_readings_dead_lettered_total{reason="retries_exhausted"}'


def rows_left(folder: Path) -> int:
    """Count the rows in a journal that are not noted as done."""
    rows = 0
    for file in segment_files(folder):
        try:
            scan = SegmentScan(file, file.path.stat().st_size)
            while scan.step():
                pass
        except FileNotFoundError:  # the segment was done and removed meanwhile
            continue
        rows += scan.rows
        scan.close()
    return rows


async def wait_rows_left(service: Service, rows: int) -> None:
    """Wait until `rows` rows in the service's journal are not noted as done."""
    async with asyncio.timeout(20):
        while rows_left(service.state_dir / "journal") != rows:  # noqa: ASYNC110  files
            await asyncio.sleep(0.02)


class Posted:
    """The promises to this test's posts, run by run: the other side of the balance."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._next_us = FIRST_US
        self.kept = 0  # acknowledged for the table, over all runs
        self.refusable = 0  # of these: rows that the table will refuse
        self.invalid = 0

    async def post(self, rows: int, *, refusable: int = 0, invalid: int = 0) -> None:
        """Post good, refused and invalid items; all are acknowledged, durable or dead-lettered."""
        items = [reading(self._next_us + number) for number in range(rows)]
        for item in items[:refusable]:
            item["value"] = REFUSED_VALUE
        items += [
            {**reading(self._next_us + rows + each), "value": None} for each in range(invalid)
        ]
        self._next_us += len(items)
        answer = await self._service.post(items, ack="durable")
        outcome = (answer.status, answer.document["accepted"], answer.document["dead_lettered"])
        assert outcome == (202, rows, invalid)
        self.kept += rows
        self.refusable += refusable
        self.invalid += invalid

    async def kill(self, *, leaves: int) -> None:
        """Kill the service once the list of done blocks, for which no answer waits, is written."""
        await wait_rows_left(self._service, leaves)
        await self._service.kill()

    async def next_run(self, *, recovers: int) -> dict[str, float]:
        """Kill the service, start it, and compare what it recovers with the promises."""
        await self.kill(leaves=recovers)
        await self._service.start()
        await self._service.wait_state("on_hold", "accepting")
        await self._service.wait_sample("ingest_readings_recovered_total", recovers)
        samples = await self._service.metrics()
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert samples["ingest_readings_received_total"] == 0
        return samples


@pytest.mark.slow
async def test_recovered_is_acknowledged_and_not_yet_stored_in_every_run(
    open_tmp_path: Path, free_port: int
) -> None:
    """Five runs end by kill -9; readings in the table or in dead letters are never recovered."""
    async with Database(open_tmp_path / "db", free_port) as database:

        async def alter(how: str) -> None:
            await database.run(f"alter table readings {how}")

        service = Service(
            open_tmp_path / "state", database_url=database.url, retries_max=0, **QUICK
        )
        async with service:
            posted = Posted(service)
            await service.wait_state("accepting")
            await alter(f"add constraint sane check (value <> {REFUSED_VALUE})")
            # 1: some stored, some refused, some invalid; then writes are paused (on hold).
            await posted.post(60, refusable=5, invalid=2)
            samples = await service.wait_quiet()
            assert samples["ingest_readings_committed_total"] == 55
            await alter(BREAK)
            await posted.post(30, refusable=2, invalid=1)
            await service.wait_state("on_hold")
            assert await service.imbalance() == 0
            # 2: no row can be written; more posts come; recovered rows stay recovered.
            samples = await posted.next_run(recovers=30)
            assert samples["ingest_readings_held"] == 30
            assert samples["ingest_dlq_readings"] == 8
            await posted.post(20)
            # 3: the backlog of two runs is written, its refused rows are set aside.
            await posted.next_run(recovers=50)
            await alter(FIX)
            samples = await service.wait_quiet()
            assert samples["ingest_readings_committed_total"] == 48
            assert samples['ingest_readings_dead_lettered_total{reason="refused_by_database"}'] == 2
            assert samples["ingest_ledger_imbalance_rows"] == 0
            # 4: without retries a lock is enough for `retries_exhausted`; nothing of that is left
            # in the journal, and the dead letters come back by themselves.
            async with _locked(free_port):
                await posted.post(7)
                await service.wait_sample(EXHAUSTED, 7)
                await posted.kill(leaves=0)
                # A replay of the killed run may wait for the lock, and commit after its release.
                await _nobody_writes(database)
            samples = await posted.next_run(recovers=0)
            await service.wait_sample("ingest_readings_committed_total", 7)
            samples = await service.wait_quiet()
            assert samples["ingest_readings_replayed_total"] == 7
            assert samples["ingest_ledger_imbalance_rows"] == 0
            # 5: replayed readings are not recovered again.
            await service.wait_sample("ingest_dlq_readings", posted.refusable + posted.invalid)
            samples = await posted.next_run(recovers=0)
            assert samples["ingest_readings_replayed_total"] == 0
        rows = await database.run(TABLE_SQL)
        assert len(rows) == len({row["ts_us"] for row in rows}) == posted.kept - posted.refusable


@asynccontextmanager
async def _locked(port: int) -> AsyncIterator[None]:
    """Lock the table, so that no client can write."""
    line = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}/fleet")
    try:
        async with line.transaction():
            await line.execute("lock table readings in exclusive mode")
            yield
    finally:
        await line.close()


async def _nobody_writes(database: Database) -> None:
    """Wait until the database has noticed that the service is gone."""
    busy = "select count(*) as busy from pg_stat_activity where usename = 'fleet'"
    async with asyncio.timeout(10):
        while (await database.run(busy))[0]["busy"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _table(database: Database) -> set[int]:
    """Return the readings in the table, once no client writes to it any more."""
    await _nobody_writes(database)
    rows = await database.run(TABLE_SQL)
    assert len(rows) == len({row["ts_us"] for row in rows})
    return {row["ts_us"] for row in rows}


@pytest.mark.slow
async def test_service_killed_at_any_moment_recovers_what_was_not_stored(
    open_tmp_path: Path, free_port: int
) -> None:
    """A kill at any moment under load loses no promised reading, and adds none."""
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(open_tmp_path / "state", database_url=database.url, **QUICK)
        async with service:
            for run in range(3):
                await service.wait_state("accepting")
                async with Fleet(
                    service.url, connections=6, rows=10, pause_s=0, ack="durable"
                ) as fleet:
                    fleet._next_us = FIRST_US + run * 100_000_000
                    await asyncio.sleep(0.5)
                    await service.kill()
                before = await _table(database)
                await service.start()
                await service.wait_state("accepting")
                await wait_rows_left(service, 0)  # until all is scanned, `held` is not all
                samples = await service.wait_quiet()
                assert samples["ingest_ledger_imbalance_rows"] == 0
                committed = samples["ingest_readings_committed_total"]
                recovered = samples["ingest_readings_recovered_total"]
                assert recovered == committed + samples["ingest_readings_duplicate_total"]
                after = {row["ts_us"] for row in await database.run(TABLE_SQL)}
                assert len(after - before) == committed
                assert after >= fleet.acknowledged
                promised, sent = fleet.acknowledged, fleet.acknowledged | fleet.unknown
                assert len(promised - before) <= committed <= len(sent - before)
                assert len(promised) > 100
