"""`loadgen verify` against a real `ingest up`: one ledger over gateways, writers and a broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
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


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_while_all_parts_are_killed_and_frozen(
    open_tmp_path: Path, seed: int
) -> None:
    """kill -9, SIGTERM and SIGSTOP of children, rolling restarts, and the death of the broker."""
    choice = random.Random(seed)
    async with Up(open_tmp_path / "s", gateways=2, writers=2) as service:
        await service.wait_state("accepting")
        ledger = open_tmp_path / "ledger"
        words = ("--duration-s", 20, "--rate", 200, "--seed", seed, "--settle-s", 120)
        verify = verifying(service, *words, "--ledger", ledger)
        await committed(service, 300)
        numbers = [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]
        for number in choice.sample([*numbers, signal.SIGHUP, None], 5):
            if number == signal.SIGHUP:
                os.kill(service.pid, number)
            elif number is None:
                await kill_broker(service)
            else:
                os.kill(choice.choice(children(service.pid)), number)
            await asyncio.sleep(choice.uniform(1, 4))
        check(await verify)

        await service.query("delete from readings where ts = (select max(ts) from readings)")
        discard = ("dlq", "discard", "--where", "reason=invalid", "--yes", "--state-dir")
        assert (await run_command("ingest", *discard, service.state_dir)).code == 0
        again = ("--reconcile-only", "--ledger", ledger, "--state-dir", service.state_dir)
        done = await run_command("loadgen", "verify", *again, within_s=200)
        assert done.code == 1, "a row of the table is gone, and so are the dead letters"
        lost = re.search(r"^not lost +([\d,]+) BROKEN", done.stdout, re.MULTILINE)
        assert lost is not None, done.stdout
        assert int(lost[1].replace(",", "")) > 100
        assert "a live letter" not in done.stdout


async def kill_broker(service: Up) -> None:
    """Kill nats-server, which the supervisor starts again."""
    folder = os.fsencode(service.state_dir / "broker")
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().split(b"\0")
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == service.pid and any(word.startswith(folder) for word in words):
                os.kill(int(each.name), signal.SIGKILL)
                return
    raise AssertionError("there is no broker")
