"""The command line of `loadgen verify`: wrong use is exit code 2, and names the option."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from loadgen.cli.main import main, parser
from loadgen.cli.verify_options import job_of, where_of
from loadgen.proof.conclude import CannotCheck, Evidence, check_ahead
from loadgen.proof.ledger import Final
from loadgen.proof.letter_sources import Files, Local
from loadgen.proof.local_service import find, state_folder
from loadgen.proof.table import refuses
from loadgen.proof.table_names import TableNames
from tests.support.embedded import running
from tests.support.proofs import PLAN, World

NOWHERE = "postgresql://nobody:secret@127.0.0.1:9/x"


@pytest.fixture(autouse=True)
def _no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find only the service that the test makes."""
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("INGEST_DATABASE_URL", raising=False)


def _publish(folder: Path, *, pid: int, listen: str = "0.0.0.0:8080") -> None:
    folder.mkdir(exist_ok=True)
    info = {
        "pid": pid,
        "listen": listen,
        "admin_listen": "[::]:8081",
        "database_url": NOWHERE,
    }
    (folder / "service.json").write_text(json.dumps(info))


SOMEWHERE = ("--url", "http://127.0.0.1:9", "--dlq-dir", "/", "--database-url", NOWHERE)

WRONG = {
    "no service": ((), "--database-url"),
    "no dead letters": (("--database-url", NOWHERE), "--dlq-dir"),
    "no url": (("--database-url", NOWHERE, "--dlq-dir", "/"), "--url"),
    "no database": (SOMEWHERE, "cannot connect to the database"),
    "another service": (
        ("--url", "http://10.0.0.1:8080"),
        "another --url, so where its proof lies is not known: say --database-url",
    ),
    "two places of dead letters": (
        (*SOMEWHERE, "--dlq-command", "true"),
        "--dlq-dir and --dlq-command",
    ),
    "a program that fails": (
        ("--url", "http://127.0.0.1:9", "--dlq-command", "false", "--database-url", NOWHERE),
        "false: exit code 1",
    ),
    "urls that do not go together": (
        (*SOMEWHERE, "--url", "http://127.0.0.1:9/other"),
        "--url: all must have the same path",
    ),
    "no such folder": ((*SOMEWHERE, "--dlq-dir", "/no/where"), "/no/where"),
    "too large posts": ((*SOMEWHERE, "--batch", "5000"), "--batch"),
    "too odd": ((*SOMEWHERE, "--invalid", "95%"), "--invalid"),
    "a ledger that exists": ((*SOMEWHERE, "--ledger", "/dev/null"), "--ledger"),
    "nothing to compare": ((*SOMEWHERE, "--reconcile-only"), "--ledger"),
    "nothing is sent": (
        (*SOMEWHERE, "--reconcile-only", "--ledger", "/dev/null", "--rate", "3"),
        "--rate",
    ),
    "no ledger": (
        (*SOMEWHERE, "--reconcile-only", "--ledger", "/dev/null"),
        "is not a ledger",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_said_with_the_option(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong use prints one line without a secret and no verdict; exit code 2."""
    words, told = WRONG[case]
    assert main(["verify", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("loadgen verify: ")
    assert told in err
    assert "secret" not in err
    assert out == ""


def test_options_of_what_is_sent_reach_the_job(tmp_path: Path) -> None:
    """Each option reaches the job under its own name."""
    words = ["--answer-s", "7", "--give-up-s", "9", "--connections", "3", "--seed", "4"]
    words += ["--ledger", str(tmp_path / "ledger"), "--ack", "committed", "--posts", "5"]
    words += ["--new-connections", "30%", "--devices", "9", "--days-old", "2"]
    chosen = parser().parse_args(["verify", *SOMEWHERE, *words])
    job = job_of(chosen, None, where_of(chosen, None))
    assert (job.new_connections, job.plan.devices) == (0.3, 9)
    assert time.time() - job.plan.first_us / 1e6 == pytest.approx(2 * 86_400, abs=60)
    assert (job.answer_s_max, job.give_up_s, job.connections, job.posts) == (7, 9, 3, 5)
    assert (job.plan.seed, job.query, job.duration_s) == (4, "?ack=committed", None)


@pytest.mark.parametrize(("known", "code"), [(4, 2), (6, 0)])
def test_verdict_without_most_of_the_answers_is_no_success(
    readings_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: int, code: int
) -> None:
    """Without most of the answers the exit code is not 0."""
    plan = replace(PLAN, invalid=0.0, refused=0.0, duplicates=0.0, sizes=((1, 1.0),))
    world = World(10, plan=plan)
    for post in range(known, 10):
        world.finals[post] = (Final(503, doubt=True), None)

    async def prepare() -> None:
        await world.write(tmp_path / "ledger")
        line = await asyncpg.connect(readings_url)
        await line.executemany(
            "insert into readings (ts, device_id, metric, value) values "
            "(timestamptz 'epoch' + $1::bigint * interval '1 microsecond', $2, $3, $4)",
            world.rows,
        )
        await line.close()

    asyncio.run(prepare())
    words = ("--ledger", str(tmp_path / "ledger"), "--database-url", readings_url)
    again = ("verify", "--reconcile-only", *words, "--dlq-dir", str(tmp_path))
    assert main([*again, "--settle-s", "0.1"]) == code
    assert ("NO PROOF" in capsys.readouterr().out) == (code == 2)


# The service of this machine


def test_service_of_this_machine_is_found_while_it_lives(tmp_path: Path) -> None:
    """The file of an ended process is ignored; listen addresses become URLs to connect to."""
    state = state_folder(None)
    assert state == tmp_path / "state"
    assert state_folder(Path("other")) == Path.cwd() / "other"
    assert find(state) is None
    _publish(state, pid=2**22 + 1)
    assert find(state) is None
    _publish(state, pid=os.getpid())
    found = find(state)
    assert found is not None
    assert (found.url, found.admin_url) == ("http://127.0.0.1:8080", "http://[::1]:8081")
    assert (found.database_url, found.letters) == (NOWHERE, Local(state))
    (state / "service.json").write_text("{torn")
    assert find(state) is None


# The database


async def test_standby_is_no_place_to_look(made: Path, tmp_path: Path) -> None:
    """A standby may lag behind, so it is refused."""
    (made / "data" / "standby.signal").touch()
    async with running(made) as (_, url):
        with pytest.raises(CannotCheck, match="standby"):
            await check_ahead(Evidence(url, Files(tmp_path)), "verify-00000000-")


async def test_refused_readings_need_a_constraint(
    readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Without a constraint the run is refused; the try leaves no row."""
    assert await refuses(readings_url, TableNames(), 1_764_000_000_000_000, "d") is False
    assert await readings_connection.fetchval("select count(*) from readings") == 0
    await readings_connection.execute(
        "alter table readings add constraint no_such check (metric <> 'refused')"
    )
    assert await refuses(readings_url, TableNames(), 1_764_000_000_000_000, "d") is True
    await readings_connection.execute("create role reader login")
    await readings_connection.execute("grant select on readings to reader")
    reader_url = readings_url.replace("postgres@", "reader@", 1)
    assert await refuses(reader_url, TableNames(), 1_764_000_000_000_000, "d") is None
    await readings_connection.execute("drop owned by reader; drop role reader")
