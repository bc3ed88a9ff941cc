"""`loadgen verify` against a real `ingest up`: one ledger over gateways, writers and a broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.system.service import Done, run_command
from tests.system.test_up import Up, children

CHECKS = (
    "not lost",
    "once",
    "only sent",
    "unaltered",
    "true answers",
    "replayed",
    "balance",
)


def verifying(service: Up, *words: object) -> asyncio.Task[Done]:
    """Start `loadgen verify` against the service."""
    options = ("--state-dir", service.state_dir, "--invalid", "3%", "--duplicates", "2%", *words)
    return asyncio.create_task(run_command("loadgen", "verify", *options, within_s=200))


async def committed(service: Up, rows: int) -> None:
    """Wait until the writers have stored so many readings."""
    async with asyncio.timeout(60):
        while True:
            samples = await service.metrics()
            name = "ingest_readings_committed_total{"
            if sum(value for key, value in samples.items() if key.startswith(name)) >= rows:
                return
            await asyncio.sleep(0.1)


def check(done: Done) -> None:
    """Check that every line of the verdict is `ok`."""
    assert done.code == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for each in CHECKS:
        assert [line for line in lines if line.startswith(each) and " ok  " in line], done.stdout


@pytest.mark.slow
async def test_readings_of_all_gateways_are_where_they_were_promised(open_tmp_path: Path) -> None:
    """A gateway is killed meanwhile; invalid items are in the stream, and discarded at the end."""
    report = open_tmp_path / "report.json"
    async with Up(open_tmp_path / "s", gateways=2) as service:
        await service.wait_state("accepting")
        verify = verifying(service, "--duration-s", 2, "--rate", 300, "--report", report)
        await committed(service, 300)
        os.kill(children(service.pid)[0], signal.SIGKILL)
        done = await verify
        check(done)
        summary = json.loads(report.read_text())["summary"]
        assert summary["quiet"]
        assert summary["law"]["has_stream"]
        assert summary["dead_letters"]["invalid"] > 10
        assert "dead letters: discarded" in done.stdout
        (rows,) = await service.query("select count(*) from readings")
        assert rows["count"] == summary["readings"]["in_table"] > 1_000
        assert not list((service.state_dir / "dead-letters").glob("*.jsonl"))
