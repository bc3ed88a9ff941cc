"""A real Prometheus on the real service, and on two machines with processes.

Every panel has data, and alerts fire in time. The files are those of deploy/: all intervals, and
`for:` of every alert, are one second; the rest is unchanged.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest
import yaml  # type: ignore[import-untyped]

from tests.printing.documents import METRICS
from tests.support.deployment import (
    DEPLOY,
    concrete,
    document,
    exported,
    panel_queries,
    program,
    queries,
)
from tests.support.statuses import FakeProcess
from tests.support.tcp_ports import free_port
from tests.support.up_admin import UpRig, running_up
from tests.system.database import Database
from tests.system.service import Service

# Alone: a test beside it that writes much would make the alarm about the disk ring.
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]

QUICK: dict[str, Any] = {"wait_s_max": 0.5, "schema_check_s": 0.3}
IN_PARTITIONS: dict[str, Any] = {"partition_span": "day", "housekeeping_pause_s": 1}
LOAD_S = 15
FIRST_US = 1_760_000_000_000_000
# Only with the embedded database the room on its disk is known.
OF_EMBEDDED = {"ingest_table_full_in_seconds"}
# Panels that have no data while there is no fault.
EMPTY_AT_PEACE = {"ingest_hold"} | OF_EMBEDDED
# This service has no certificate, and no token that ends.
UNUSED = {"ingest_certificate_ends_seconds", "ingest_tokens_end_seconds"} | OF_EMBEDDED
OF_BROKER = re.compile(r"ingest_(broker|stream|consumer|redeliveries|instance|roles|forward|mqtt)")
SCRAPE_S = 1
RATE_INTERVAL = "10s"


def hurried(*targets: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prometheus.yml and alerts.yml with short times, on other targets."""
    config: dict[str, Any] = document(DEPLOY / "prometheus.yml")
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_S}s")
    (job,) = config["scrape_configs"]
    job["scrape_timeout"] = f"{SCRAPE_S}s"
    job["static_configs"] = [{"targets": list(targets)}]
    rules: dict[str, Any] = document(DEPLOY / "alerts.yml")
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return config, rules


class Prometheus:
    """One server. `async with Prometheus(folder, port, *targets) as prometheus:`."""

    def __init__(self, folder: Path, port: int, *targets: str) -> None:
        self._folder = folder
        self._url = f"http://127.0.0.1:{port}"
        self._words = [
            *(program("prometheus", "prometheus"), f"--config.file={folder}/prometheus.yml"),
            *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"),
            "--scrape.discovery-reload-interval=100ms",  # 5 s by default
        ]
        folder.mkdir(parents=True)
        config, rules = hurried(*targets)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()
        if self._process is not None:
            if self._process.returncode is None:
                self._process.terminate()
            await self._process.wait()

    async def _get(self, path: str, **query: str) -> Any:
        async with self._session.get(f"{self._url}/api/v1/{path}", params=query) as reply:
            document = json.loads(await reply.text())
            assert document["status"] == "success", f"{query}: {document}"
            return document["data"]

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """Evaluate an expression of deploy/ now; return its series, those of NaN left out."""
        found = await self._get("query", query=concrete(expr, interval=RATE_INTERVAL))
        assert found["resultType"] == "vector", expr
        return [each for each in found["result"] if each["value"][1] != "NaN"]

    async def wait_target(self, within_s: float = 30) -> None:
        """Wait until Prometheus has scraped the service."""
        async with asyncio.timeout(within_s):
            while True:
                try:
                    if any(each["value"][1] == "1" for each in await self.query("up")):
                        return
                except (aiohttp.ClientError, ValueError):  # not there yet, or not ready
                    pass
                await asyncio.sleep(0.1)

    async def firing(self) -> dict[str, dict[str, str]]:
        """Return the alerts that fire: their labels by name."""
        found = (await self._get("alerts"))["alerts"]
        return {
            each["labels"]["alertname"]: each["labels"]
            for each in found
            if each["state"] == "firing"
        }

    async def wait_firing(self, name: str, within_s: float = 30) -> dict[str, str]:
        """Wait until an alert fires; return its labels."""
        async with asyncio.timeout(within_s):
            while True:
                if labels := (await self.firing()).get(name):
                    return labels
                await asyncio.sleep(0.2)

    async def wait_silent(self, name: str, within_s: float = 30) -> None:
        """Wait until an alert does not fire any more."""
        async with asyncio.timeout(within_s):
            while name in await self.firing():  # noqa: ASYNC110  another process
                await asyncio.sleep(0.2)


def _reading(number: int, **changed: Any) -> dict[str, Any]:
    made = {"device_id": f"d{number % 50}", "metric": "m", "ts": FIRST_US + number, "value": 1.5}
    return made | changed


@asynccontextmanager
async def load(service: Service) -> AsyncIterator[None]:
    """Post all the time: new readings, some sent twice, a few with a fault, a few refused."""
    numbers = itertools.count()
    stopping = asyncio.Event()

    async def post() -> None:
        for number in itertools.count():
            if stopping.is_set():
                return
            post = [_reading(next(numbers)) for _ in range(50)]
            await service.post(post)
            if number % 4 == 0:
                await service.post(post, ack="committed")
            if number % 20 == 0:
                await service.post([*post, _reading(0, value="x")])
                await service.post([_reading(0, value="x")])
            await asyncio.sleep(0.02)

    task = asyncio.create_task(post())
    try:
        yield
    finally:
        stopping.set()
        await task


async def _empty_panels(prometheus: Prometheus) -> set[str]:
    """Evaluate the queries of panels without a broker; return the metrics without data."""
    return {
        each.expr.partition("{")[0]
        for each in panel_queries()
        if not OF_BROKER.search(each.expr) and not await prometheus.query(each.expr)
    }


async def _check_exported(service: Service) -> None:
    text = (await service.request("GET", f"{service.admin_url}/metrics")).text
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ingest_")}
    assert families <= {f"ingest_{each.name}" for each in METRICS[""]}
    samples = {each.partition("{")[0] for each in await service.metrics()}
    ours = {each for each in exported() if each.startswith("ingest_")}
    assert {each for each in ours if not OF_BROKER.match(each)} - UNUSED <= samples


async def test_panels_show_the_service_and_alerts_fire_when_it_breaks(open_tmp_path: Path) -> None:
    """No alert fires under load; renamed column, dead database, dead service each fire one."""
    async with (
        Database(open_tmp_path / "db", free_port()) as database,
        Service(
            open_tmp_path / "s", database_url=database.url, **QUICK, **IN_PARTITIONS
        ) as service,
        Prometheus(
            open_tmp_path / "p", free_port(), service.admin_url.removeprefix("http://")
        ) as prometheus,
    ):
        await service.wait_state("accepting")
        async with load(service):
            await prometheus.wait_target()
            await asyncio.sleep(LOAD_S)
            assert await _empty_panels(prometheus) <= EMPTY_AT_PEACE
            for each in queries():
                await prometheus.query(each.expr)  # evaluates without an error
            assert await prometheus.firing() == {}

            await database.run("alter table readings rename column value to was")
            labels = await prometheus.wait_firing("IngestOnHold")
            assert labels["reason"] == "schema"
            await _check_exported(service)
            assert await _empty_panels(prometheus) == OF_EMBEDDED
            await database.run("alter table readings rename column was to value")
            await prometheus.wait_silent("IngestOnHold")

            await database.kill()
            labels = await prometheus.wait_firing("IngestDatabaseDown")
            assert labels["severity"] == "critical"
            await database.start()
            await prometheus.wait_silent("IngestDatabaseDown")
        code, output = await service.stop()
        assert code == 0, output
        await prometheus.wait_firing("IngestDown")


NAMES = ("gateway-1", "gateway-2", "writer-1")
FIGURES = {
    "broker_up": 1,
    "stream_altered": 0,
    "stream_bytes": 10,
    "stream_bytes_max": 1000,
    "stream_messages": 4,
    "stream_oldest_age_seconds": 1,
    "consumer_pending": {"writer": 0},
    "consumer_ack_pending": {"writer": 1},
    "consumer_redelivered": {"writer": 0},
    "stream_removed": 0,
    "stream_skipped_total": 0,
    "stream_unforwarded_total": 0,
    "redeliveries_total": 0,
}


class Machine:
    """The port of one machine, and its processes, which report each second."""

    def __init__(self, rig: UpRig) -> None:
        self.rig = rig
        self.processes = {name: FakeProcess(name.rpartition("-")[0]) for name in NAMES}
        for process in self.processes.values():
            process.broker = dict(FIGURES)

    async def run(self) -> None:
        """Let the processes work."""
        while True:
            for name, process in self.processes.items():
                process.takes(100 if process.role == "gateway" else 200)
                self.rig.hear(name, process)
            await asyncio.sleep(1)


@asynccontextmanager
async def machine(folder: Path) -> AsyncIterator[Machine]:
    """Run one."""
    async with running_up(folder) as rig:
        machine = Machine(rig)
        working = asyncio.create_task(machine.run())
        try:
            yield machine
        finally:
            working.cancel()


async def test_two_machines_with_processes_of_the_same_names(open_tmp_path: Path) -> None:
    """Each process has its own series; no alert fires at peace; a fault names one process."""
    async with (
        machine(open_tmp_path / "a") as one,
        machine(open_tmp_path / "b") as other,
        Prometheus(
            open_tmp_path / "p", free_port(), one.rig.address, other.rig.address
        ) as prometheus,
    ):
        await prometheus.wait_target()
        await asyncio.sleep(6)
        everyone = {
            f"{each.rig.address}/{name}" for each in (one, other) for name in ("up", *NAMES)
        }
        for metric in ("ingest_instance_up", "ingest_build_info"):
            found = [each["metric"] for each in await prometheus.query(metric)]
            assert {each["instance"] for each in found} == everyone
            assert len(found) == len(everyone)
            assert not any("exported_instance" in each for each in found)
        targets = {each["metric"]["instance"] for each in await prometheus.query("up")}
        assert targets == {one.rig.address, other.rig.address}
        (total,) = await prometheus.query("sum(rate(ingest_readings_received_total[5s]))")
        assert float(total["value"][1]) == pytest.approx(400, rel=0.5)
        for each in queries():
            await prometheus.query(each.expr)  # evaluates without an error
        of_broker = [each for each in panel_queries() if "ingest_stream" in each.expr]
        assert len(of_broker) >= 5
        for each in of_broker:
            assert await prometheus.query(each.expr), each.where
        assert await prometheus.firing() == {}

        other.processes["writer-1"].broker["broker_up"] = 0
        labels = await prometheus.wait_firing("IngestBrokerAway")
        assert labels["instance"] == f"{other.rig.address}/writer-1"
        other.processes["writer-1"].broker["broker_up"] = 1
        await prometheus.wait_silent("IngestBrokerAway")
        del one.processes["gateway-2"]
        labels = await prometheus.wait_firing("IngestInstanceDown")
        assert labels["instance"] == f"{one.rig.address}/gateway-2"
