"""A real Prometheus with the files of deploy/ on the admin ports of two machines with processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.deployment import panel_queries, queries
from tests.support.statuses import FakeProcess
from tests.support.tcp_ports import free_port
from tests.support.up_admin import UpRig, running_up
from tests.system.prometheus import Prometheus

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(120)]

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
