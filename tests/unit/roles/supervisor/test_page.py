"""The one admin port of several processes: probes, metrics, hold release, and the page's data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.receiver import Client, until
from tests.support.statuses import FakeProcess
from tests.support.up_admin import UpRig, running_up


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[UpRig]:
    """The port, without any process."""
    async with running_up(tmp_path) as rig:
        yield rig


def _busy(rig: UpRig) -> None:
    gateway, writer = FakeProcess("gateway"), FakeProcess("writer")
    gateway.takes(5)
    writer.takes(5)
    writer.broker = {
        "broker_up": 1,
        "stream_bytes": 10,
        "stream_bytes_max": 100,
        "stream_skipped_total": 0,
        "stream_unforwarded_total": 0,
        "consumer_pending": {"writer": 0, "forward-a": 3},
        "consumer_ack_pending": {"writer": 2},
    }
    rig.hear("gateway-1", gateway)
    rig.hear("writer-1", writer)


async def test_every_series_has_the_label_of_its_process(rig: UpRig) -> None:
    """Also those of Python and of the process. No series is there twice."""
    _busy(rig)
    text = (await rig.ask("/metrics")).body.decode()
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert all('instance="' in line for line in lines)
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    metrics = await rig.metrics()
    assert metrics['ingest_consumer_pending{consumer="forward-a",instance="writer-1"}'] == 3
    assert 'ingest_db_up{instance="gateway-1"}' not in metrics
    assert metrics['ingest_db_up{instance="writer-1"}'] == 1
    with_folder = {line for line in lines if line.startswith("ingest_dlq_bytes{")}
    assert with_folder == {'ingest_dlq_bytes{instance="up"}'}
    assert metrics['ingest_state{instance="up",state="accepting"}'] == 1


async def test_hold_release_goes_to_the_writers_that_wait(rig: UpRig) -> None:
    """To no gateway, and to no writer that writes. Without a token to nobody."""
    names = ("gateway-1", "writer-1", "writer-2", "writer-3")
    processes = {name: FakeProcess(name.rpartition("-")[0]) for name in names}
    processes["writer-2"].hold_reason = "schema"
    processes["writer-3"].database_up = False
    for name, process in processes.items():
        rig.hear(name, process)
    assert (await rig.ask("/hold/release", **{"Content-Length": "0"})).status == 405
    reply = await rig.ask("/hold/release", {"dead_letter": True})
    assert json.loads(reply.body) == {"released": True}
    message = {"do": "release_hold", "dead_letter": True}
    assert rig.told == [("writer-2", message), ("writer-3", message)]
    for name in ("writer-2", "writer-3"):
        rig.up.instances.gone(name, processes[name].pid)
    reply = await rig.ask("/hold/release", {"dead_letter": False})
    assert json.loads(reply.body) == {"released": False}
    assert len(rig.told) == 2


async def test_feed_shows_what_the_processes_send(rig: UpRig) -> None:
    """The sample of a second, of one device too; the processes; the figures of the broker."""

    client = await Client.connect(rig.address)
    try:
        head = f"GET /feed?tail=true&device_id=d2 HTTP/1.1\r\nHost: {rig.address}\r\n\r\n"
        await client.send(head.encode())
        await client.reply()
        await until(lambda: rig.admin.dashboard.feed.clients == 1)
        _busy(rig)
        sent = FakeProcess("gateway").sent()
        sent["tail"] |= {"posts": 4, "readings": [[1, "d1", "m", 2.5], [2, "d2", "m", 3.5]]}
        rig.up.status("gateway-2", sent)
        seen: dict[str, Any] = {}
        async with asyncio.timeout(5):
            while not seen.get("tail", {}).get("posts"):
                event = (await client.reader.readuntil(b"\n\n")).decode()
                lines = dict(line.split(": ", 1) for line in event.strip().split("\n"))
                if "data" in lines:
                    seen[lines.get("event", "")] = json.loads(lines["data"])
        assert seen["tail"] == {"posts": 4, "readings": [[2, "d2", "m", 3.5]]}
        names = [each["instance"] for each in seen[""]["ready"]["instances"]]
        assert names == ["gateway-1", "gateway-2", "writer-1"]
        assert seen[""]["sum"]["broker"]["stream_bytes"] == 10
        assert seen[""]["level"] == "ok"
    finally:
        await client.close()
