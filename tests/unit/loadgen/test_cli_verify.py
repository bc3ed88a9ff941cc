"""The command line of `loadgen verify`: wrong use is exit code 2, and names the option."""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import re
import runpy
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import asyncpg
import pytest

from loadgen.cli.main import main, parser
from loadgen.cli.verify_options import job_of, where_of
from loadgen.demo import __main__ as demo
from loadgen.proof.conclude import CannotCheck, Evidence, check_ahead
from loadgen.proof.ledger import Final
from loadgen.proof.letter_sources import Files, Local, Program
from loadgen.proof.local_service import NoHome, find, state_folder
from loadgen.proof.table import refuses
from loadgen.proof.table_names import TableNames
from loadgen.traffic.post import target_of
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


def test_interrupt_while_the_parts_are_loaded_is_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C while modules are loaded (a third of a second) ends without a traceback."""

    class Interrupted:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "loadgen.cli.main", cast("ModuleType", Interrupted()))
    with pytest.raises(SystemExit) as end:
        runpy.run_module("loadgen", run_name="__main__")
    assert end.value.code == 130


def test_script_that_is_installed_is_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script in pyproject.toml can be imported, and is that of `python -m loadgen`."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    run = pkgutil.resolve_name(project["scripts"]["loadgen"])
    monkeypatch.setattr(sys, "argv", ["loadgen", "--help"])
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 0
    assert "verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        (">&-", b"loadgen: the standard output is closed"),
        ("<&-", b"loadgen run: cannot connect to 127.0.0.1:9"),
        ("2>&-", b""),
    ],
)
async def test_closed_standard_file_is_no_crash(closed: str, said: bytes) -> None:
    """A daemon's child may have no standard files; other files must not get their numbers."""
    words = f"exec '{sys.executable}' -m loadgen run --url http://127.0.0.1:9 {closed}"
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", words),
        cwd=Path(__file__).parents[3],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 2
    assert out == b""
    assert err.startswith(said)
    assert err.count(b"\n") == bool(said)


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


@pytest.mark.parametrize(
    "words",
    [
        ("--duplicates", "2"),
        ("--refused-by-check", "x"),
        ("--batch", "0"),
        ("--posts", "0"),
        ("--rate", "-1"),
        ("--rate", "1000001"),
        ("--dlq-dir", ""),
        ("--dlq-command", ""),
        ("--dlq-command", "it's"),
        ("--ledger", ""),
        ("--connections", "0"),
        ("--settle-s", "0"),
        ("--report", "/no/where/file"),
        ("--url", "ftp://x"),
        ("--admin-url", "there"),
        ("--ack", "never"),
    ],
)
def test_wrong_value_is_said_with_the_option(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong value is an error of argparse, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["verify", *words])
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--duration-s", "10"),
        ("--posts", "5"),
        ("--rate", "3"),
        ("--connections", "16"),
        ("--batch", "1x8,10,100"),
        ("--ack", "buffered"),
        ("--seed", "1"),
        ("--duplicates", "1%"),
        ("--invalid", "0.5%"),
        ("--refused-by-check", "0"),
        ("--give-up-s", "300"),
        ("--answer-s", "30"),
        ("--keep",),
        ("--ledger-fsync",),
    ],
)
def test_reconcile_only_refuses_what_it_would_ignore(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """An option without effect is an error, also with its default value."""
    again = ("--reconcile-only", "--ledger", "/dev/null")
    assert main(["verify", *SOMEWHERE, *again, *words]) == 2
    assert f"leave out {words[0]}\n" in capsys.readouterr().err


def test_options_of_what_is_sent_reach_the_job(tmp_path: Path) -> None:
    """Each option reaches the job under its own name."""
    words = ["--answer-s", "7", "--give-up-s", "9", "--connections", "3", "--seed", "4"]
    words += ["--ledger", str(tmp_path / "ledger"), "--ack", "committed", "--posts", "5"]
    chosen = parser().parse_args(["verify", *SOMEWHERE, *words])
    job = job_of(chosen, None, where_of(chosen, None))
    assert (job.answer_s_max, job.give_up_s, job.connections, job.posts) == (7, 9, 3, 5)
    assert (job.plan.seed, job.query, job.duration_s) == (4, "?ack=committed", None)


def test_several_urls_reach_the_job_and_the_proof(tmp_path: Path) -> None:
    """Gateways and writers that run alone: posts to all of them, one balance over all ports."""
    words = ["--ledger", str(tmp_path / "ledger"), "--database-url", NOWHERE]
    words += ["--url", "http://a:1", "--url", "http://b:2", "--url", "http://a:1"]
    words += ["--admin-url", "http://a:3/metrics", "--admin-url", "http://c:4"]
    chosen = parser().parse_args(["verify", *words, "--dlq-command", "list 'a b' --json"])
    where = where_of(chosen, None)
    assert where.letters == Program(("list", "a b", "--json"))
    assert where.admin_urls == ("http://a:3", "http://c:4")
    job = job_of(chosen, None, where)
    assert (job.target, job.others) == (target_of("http://a:1"), (target_of("http://b:2"),))
    assert job.admin_urls == where.admin_urls


def test_help_says_what_each_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    """The help can be printed, also with percent signs."""
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--help"])
    assert caught.value.code == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "sent again in a later post (1%)" in said
    assert "in various ways (0.5%)" in said
    assert "check (metric <> 'refused')" in said


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


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/b"}, "/var/lib/a"),
        ({"INGEST_STATE_DIR": "/x", "STATE_DIRECTORY": "/y"}, "/x"),
    ],
)
def test_state_folder_is_the_one_that_the_service_uses(
    environ: dict[str, str], folder: str
) -> None:
    """The state folder is found in the same order as by the service."""
    assert state_folder(None, environ) == Path(folder)


def test_missing_home_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` and the demo name the missing home; the demo's help works all the same."""
    assert main(["verify", "--state-dir", "~no_such_user/x"]) == 2
    assert "~no_such_user/x: no such user" in capsys.readouterr().err
    monkeypatch.setenv("HOME", "~no_such_user")
    monkeypatch.delenv("INGEST_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(NoHome, match="--state-dir"):
        state_folder(None, {"HOME": "~no_such_user"})
    for words, code in ((["--help"], 0), ([], 2), (["--state-dir", "~no_such_user/x"], 2)):
        with pytest.raises(SystemExit) as ended:
            demo.main(words)
        assert ended.value.code == code
        assert ("no such user" in capsys.readouterr().err) == bool(code)


def test_service_of_this_machine_is_not_asked_about_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For another --url the database of the local service is not used."""
    _publish(tmp_path / "state", pid=os.getpid())
    assert main(["verify", "--url", "http://10.0.0.1:8080"]) == 2
    assert "--database-url" in capsys.readouterr().err


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
