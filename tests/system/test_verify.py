"""`loadgen verify` against the real service: green with faults, red if readings are lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from loadgen.proof.conclude import Evidence, Result, conclude
from loadgen.proof.letter_sources import Local
from loadgen.proof.readings import REFUSED_METRIC, Plan
from loadgen.proof.run import Job, Run
from loadgen.report.verdict import text
from loadgen.traffic.post import target_of
from tests.support.documents import DOCUMENTS, fences
from tests.support.locks import table_locked
from tests.system.database import Database
from tests.system.service import Done, Service, run_command, started
from tests.system.test_database_faults import QUICK
from tests.system.test_up import Up, children

HASTY: dict[str, Any] = {
    "connect_s_max": 1,
    "command_s_max": 1,
    "drain_s_max": 1.2,
}
NUMBERS = re.compile(r" *\b[0-9a-f]{8}\b| *\d[\d,.]*")
TABLES = """[[table]]
name = "power"
metrics = ["humidity", "power", "temperature"]
since = 2026-01-01T00:00:00Z"""
CHECK = f"alter table readings add constraint no_such check (metric <> '{REFUSED_METRIC}')"


async def _verify(*words: object, within_s: float = 60) -> Done:
    return await run_command("loadgen", "verify", *words, within_s=within_s)


async def _committed(service: Service, rows: int) -> None:
    """Wait until `count` readings are in the table."""
    async with asyncio.timeout(30):
        while (await service.metrics())["ingest_readings_committed_total"] < rows:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("view", ["readings", "all_readings"])
async def test_all_is_as_promised_though_the_database_dies_in_the_middle(
    open_tmp_path: Path, free_port: int, view: str
) -> None:
    """With duplicates, invalid items, refused rows and every ack no reading is lost.

    Also if three of four metrics have columns of a declared table.
    """
    tables = open_tmp_path / "tables.toml"
    tables.write_text(TABLES if view == "all_readings" else "")
    state, report = open_tmp_path / "state", open_tmp_path / "report.json"
    async with (
        Database(open_tmp_path / "db", free_port) as database,
        Service(state, database_url=database.url, tables_file=tables, **QUICK) as service,
    ):
        await service.wait_state("accepting")
        await database.run(CHECK)
        words = (
            *("--state-dir", state, "--duration-s", 3, "--connections", 8, "--seed", 7),
            *("--batch", "1x20,30,100", "--duplicates", "3%", "--invalid", "2%"),
            *("--refused-by-check", "0.5%", "--ack", "committed", "--report", report),
        )
        async with started("loadgen", "verify", *words) as process:
            await _committed(service, 1_000)
            await database.kill()
            await asyncio.sleep(0.5)
            await database.start()
            stdout, stderr = await process.communicate()
        said = stdout.decode()
        assert process.returncode == 0, said + stderr.decode()
        assert "BROKEN" not in said
        for name in (
            "not lost",
            "once",
            "only sent",
            "unaltered",
            "true answers",
            "replayed",
            "balance",
        ):
            assert re.search(rf"^{name} +ok ", said, re.MULTILINE), said
        summary = json.loads(report.read_text())["summary"]
        assert summary["readings"]["acknowledged"] > 1_000
        assert summary["dead_letters"]["refused_by_database"] > 0
        assert summary["dead_letters"]["invalid"] > 0
        assert summary["quiet"]
        (rows,) = await database.run(f"select count(*) from {view}")
        assert rows["count"] == summary["readings"]["in_table"]


@pytest.mark.parametrize(
    "form",
    [
        "msgpack",
        pytest.param("ndjson", marks=pytest.mark.slow),
        pytest.param("lines", marks=pytest.mark.slow),
        pytest.param("mapped", marks=pytest.mark.slow),
    ],
)
async def test_formats_are_proven_as_json_is(
    open_tmp_path: Path, at_hand: dict[str, Any], form: str
) -> None:
    """With invalid items where answers name them, and with each kind of time and value."""
    sources = open_tmp_path / "sources.toml"
    text = DOCUMENTS["docs/reference/loadgen.md"]
    (source,) = (each.text for each in fences(text) if each.text.startswith("[[source]]"))
    sources.write_text(source)
    async with Service(open_tmp_path / "state", sources_file=sources, **at_hand) as service:
        await service.wait_state("accepting")
        words = ("--state-dir", open_tmp_path / "state", "--posts", 200, "--batch", "1,30")
        fleet = ("--new-connections", "50%", "--devices", 200_000, "--days-old", 2)
        done = await _verify(*words, *fleet, "--format", form)
        assert done.code == 0, done.stdout + done.stderr
        run = await run_command(
            *("loadgen", "run", "--url", service.url, "--format", form, "--posts", 50),
            *("--rate", 500, "--batch", "3", "--poison", "2%", "--broken", "2%", "--gzip"),
        )
        assert run.code == 0, run.stdout + run.stderr


# A service that is killed


async def _ended_while_it_holds(
    folder: Path, url: str, port: int, ack: str, *, kill: bool = True, buffer: str = "memory"
) -> Result:
    """End the service while no row can be written, start it again, and compare all readings."""
    state = folder / "state"
    async with Service(
        state,
        database_url=url,
        database_unsafe=True,
        listen=f"127.0.0.1:{port}",
        dlq_replay_pause_s=0.2,
        buffer=buffer,
        **HASTY,
    ) as service:
        await service.wait_state("accepting")
        plan = Plan("0badcafe", 1, int(time.time() * 1_000_000), ((20, 1.0),), 0.01, 0.01)
        run = Run(
            Job(
                target=target_of(service.url),
                plan=plan,
                ledger=folder / "ledger",
                query=f"?ack={ack}",
                connections=4,
                admin_urls=(service.admin_url,),
            )
        )
        traffic = asyncio.create_task(run.go())
        await _committed(service, 2_000)
        async with table_locked(url):
            before = run.answers.total()
            if ack != "committed":
                while run.answers.total() < before + 50:  # noqa: ASYNC110  counted by callbacks
                    await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(0.2)
            if kill:
                await service.kill()
            else:
                await service.stop()
        await service.start()
        await service.wait_state("accepting")
        before = run.answers.total()
        while run.answers.total() < before + 50:  # noqa: ASYNC110  counted by callbacks
            await asyncio.sleep(0.01)
        run.finish()
        await traffic
        where = Evidence(url, Local(state), (service.admin_url,))
        return await conclude(folder / "ledger", where, settle_s=20)


@pytest.mark.slow
async def test_kill_of_a_service_that_acknowledged_too_early_is_red(
    open_tmp_path: Path, readings_url: str, free_port: int
) -> None:
    """`buffered` readings in memory are lost; the verdict names them and the promise."""
    result = await _ended_while_it_holds(open_tmp_path, readings_url, free_port, "buffered")
    assert set(result.faults) == {"lost"}, text(result)
    assert result.faults["lost"] >= 500
    assert result.first["lost"][0].promised == "accepted: 202, ack buffered"
    assert "the service was started anew during the run" in result.notes


# A generator that is interrupted or killed


@pytest.mark.slow
async def test_generator_interrupted_or_killed_still_leads_to_a_verdict(
    open_tmp_path: Path, readings_url: str
) -> None:
    """After Ctrl-C the verdict covers all sent posts; after SIGKILL the ledger gives it."""
    state = open_tmp_path / "state"
    async with Service(
        state, database_url=readings_url, database_unsafe=True, buffer="memory"
    ) as service:
        await service.wait_state("accepting")
        ledger = open_tmp_path / "ledger"
        words = ("--state-dir", state, "--duration-s", 60, "--connections", 4)
        async with started("loadgen", "verify", *words, "--ledger", ledger) as process:
            await _committed(service, 500)
            process.send_signal(signal.SIGINT)
            stdout, stderr = await process.communicate()
        assert process.returncode == 130, stderr.decode()
        assert "as promised" in stdout.decode()

        done = await _verify("--state-dir", state, "--ack", "durable", "--ledger", f"{ledger}2")
        assert done.code == 2, "nothing was acknowledged: neither good nor bad"
        assert "nothing is proven: valid readings refused with 400 ack_unavailable" in done.stderr

        done = await _verify(
            *("--state-dir", state, "--ack", "committed", "--connections", 1),
            *("--rate", 100_000, "--duration-s", 0.3),
        )
        assert done.code == 0, done.stderr
        assert "% of --rate" in done.stderr, "one connection does not do 100,000 a second"
        done = await _verify("--state-dir", state, "--refused-by-check", "1%")
        assert done.code == 2, "without the constraint nothing would be refused"
        assert "alter table readings add constraint" in done.stderr

        killed = open_tmp_path / "killed"
        committed = (await service.metrics())["ingest_readings_committed_total"]
        async with started("loadgen", "verify", *words, "--ledger", killed) as process:
            await _committed(service, int(committed) + 500)
            process.kill()
            await process.wait()
        for path, note in ((ledger, ""), (killed, "its generator was killed")):
            done = await _verify("--reconcile-only", "--ledger", path, "--state-dir", state)
            assert done.code == 0, done.stdout + done.stderr
            assert note in done.stdout

        await service.query("delete from readings where ts = (select min(ts) from readings)")
        done = await _verify("--reconcile-only", "--ledger", ledger, "--state-dir", state)
        assert done.code == 1, "the first reading of the first run is gone"
        assert "lost: 1\n  reading 0 " in done.stdout


# What docs/reference/loadgen.md shows


def _shown_section() -> str:
    text_ = DOCUMENTS["docs/reference/loadgen.md"]
    return text_.split("## Proving that nothing was lost\n")[1].split("\n## ")[0]


@pytest.mark.slow
async def test_readme_commands_prove_what_the_readme_says(open_tmp_path: Path) -> None:
    """With a service of `./run` on the same machine the command needs no option."""
    commands = re.findall(r"^\./run loadgen verify(.*)$", _shown_section(), re.MULTILINE)
    assert len(commands) >= 3
    ledger = open_tmp_path / "ledger"
    state = open_tmp_path / "state"
    async with Service(state) as service:
        await service.wait_state("accepting")
        env = {"INGEST_STATE_DIR": str(state)}
        said = ""
        for command in commands:
            words = command.replace("run.ledger", str(ledger)).split()
            if "--duration-s" in words:
                words[words.index("--duration-s") + 1] = "0.5"
            elif "--reconcile-only" not in words:
                words += ["--posts", "200"]
            if "--refused-by-check" in words:
                sql = re.search(r'`./run psql -c "(alter .*?)"`', _shown_section())
                assert sql is not None
                done = await run_command("ingest", "psql", "-c", sql[1], env=env)
                assert done.code == 0, done.stderr
            done = await run_command("loadgen", "verify", *words, env=env)
            assert done.code == 0, done.stdout + done.stderr
            assert "as promised" in done.stdout
            if not command:  # the command whose output is shown
                said = done.stdout
            if "--ledger" not in words:
                stats = await run_command("ingest", "dlq", "stats", "--json", env=env)
                assert json.loads(stats.stdout)["live"] == 0, "it has discarded its own"
        # The first words of each line are those of the document; numbers differ.
        shown = _shown_section().split("./run loadgen verify\n")[1].split("```")[0]
        assert [re.sub(NUMBERS, "#", line) for line in shown.splitlines()] == [
            re.sub(NUMBERS, "#", line) for line in said.splitlines()
        ]


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
