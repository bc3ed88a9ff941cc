"""Rows of declared tables on their whole way, with kills: each reading stands once over all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from ingest.buffers.journal.segments import segment_files
from ingest.system.clock import rfc3339, unix_us
from tests.system.database import Database
from tests.system.service import Reply, Service
from tests.system.test_kill_9 import QUICK
from tests.system.test_up import Up, children

SINCE_US = unix_us() - 60_000_000
TABLES = f"""
[[table]]
name = "climate"
metrics = ["temperature", "humidity", "co2"]
since = {rfc3339(SINCE_US)}
[[table]]
preset = "telegraf_cpu"
since = {rfc3339(SINCE_US)}
"""
FACTS = """select (extract(epoch from ts) * 1000000)::int8, device_id, metric, value
from all_readings"""
Fact = tuple[int, str, str, float]


class Sender:
    """Posts moments of four metrics, and lines of `cpu`; `facts` are those acknowledged."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.facts: set[Fact] = set()
        self.posted = 0

    async def moments(self, device: str, first: int, count: int, add: float = 0.0) -> None:
        """Post moments as JSON: most in one post, the last one as a single item."""
        items: list[dict[str, Any]] = [
            {
                "device_id": device,
                "ts": SINCE_US + number,
                "values": {
                    "temperature": number + add,
                    "humidity": number / 8,
                    "co2": float(number),
                    "noise": 1.5,
                },
            }
            for number in range(first, first + count)
        ]
        for body in (items[:-1], items[-1]):
            async with asyncio.timeout(30):
                while (answer := await self._answer(body)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert answer.status == 202, answer.text
        self._keep(
            {(item["ts"], device, *value) for item in items for value in item["values"].items()}
        )

    async def _answer(self, body: object) -> Reply | None:
        """Return the answer; None if the connection was one of a gateway that was killed."""
        try:
            return await self._service.post(body, precision="us")
        except aiohttp.ClientConnectionError:
            return None

    async def lines(self, host: str, first: int, count: int) -> None:
        """Post lines of two series."""
        lines, facts = [], set[Fact]()
        for number in range(first, first + count):
            for cpu in ("cpu=cpu0", "cpu=cpu1"):
                ts_us = SINCE_US + number
                lines.append(f"cpu,host={host},{cpu} usage_idle={number}.5,usage_user=2 {ts_us}")
                facts.add((ts_us, host, f"cpu.usage_idle,{cpu}", number + 0.5))
                facts.add((ts_us, host, f"cpu.usage_user,{cpu}", 2.0))
        url = f"{self._service.url}/write?precision=u"
        answer = await self._service.request("POST", url, body="\n".join(lines).encode())
        assert answer.status == 204, answer.text
        self._keep(facts)

    def _keep(self, facts: set[Fact]) -> None:
        self.posted += len(facts)
        self.facts |= facts


def check(facts: set[Fact], rows: list[asyncpg.Record]) -> None:
    """Check that the view of all tables has each fact once, and no other."""
    found = [tuple(row) for row in rows]
    assert len(found) == len(set(found))
    assert set(found) == facts


def settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a service with tables."""
    (folder / "tables.toml").write_text(TABLES)
    return {**QUICK, "tables_file": folder / "tables.toml", "ack_default": "durable"}


async def test_kill_9_loses_and_doubles_no_row_of_a_declared_table(
    open_tmp_path: Path, free_port: int
) -> None:
    """What the journal alone has is stored once, also if it was posted and stored before."""
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(
            open_tmp_path / "state", database_url=database.url, **settings(open_tmp_path)
        )
        async with service:
            await service.wait_state("accepting")
            sender = Sender(service)
            await sender.moments("d", -3, 40)  # three are from before `since`
            await sender.lines("h", 0, 20)
            await service.wait_quiet()
            await database.kill()
            await sender.moments("d", 30, 40)  # seven of them again
            await sender.moments("d", 60, 5, add=0.25)  # other temperatures
            await sender.lines("h", 10, 20)
            segments = segment_files(open_tmp_path / "state" / "journal")
            assert {file.path.read_bytes()[8:12] for file in segments} == {b"\0\0\0\2"}
            await service.kill()
            await service.start()
            await database.start()
            samples = await service.wait_quiet()
            assert samples["ingest_ledger_imbalance_rows"] == 0
            assert samples["ingest_readings_dropped_total"] == 0
            assert (await service.stop())[0] == 0
        check(sender.facts, await database.run(FACTS))
        (counts,) = await database.run(
            "select (select count(*) from climate), (select count(*) from cpu), "
            "(select count(*) from readings)"
        )
        moments, others = 70, 73  # from `since` on; all of `noise`
        assert tuple(counts) == (moments, 60, others + 3 * 3 + 5)


async def test_up_carries_rows_of_declared_tables_through_its_stream(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Gateway and writer are killed; the writer makes the tables."""
    service = Up(
        open_tmp_path / "s",
        database_url=readings_url,
        database_unsafe=True,
        **settings(open_tmp_path),
    )
    async with service:
        sender = Sender(service)
        await sender.moments("d", 0, 30)
        for pid in children(service.pid):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while len(children(service.pid)) < 2:  # noqa: ASYNC110  other processes
                await asyncio.sleep(0.05)
        await sender.moments("d", 20, 30)
        await sender.lines("h", 0, 20)
        rows: list[asyncpg.Record] = []
        async with asyncio.timeout(40):
            while len(rows) < len(sender.facts):
                await asyncio.sleep(0.1)
                with contextlib.suppress(asyncpg.UndefinedTableError):  # a writer makes them
                    rows = await service.query(FACTS)
        assert (await service.stop())[0] == 0
        check(sender.facts, rows)
