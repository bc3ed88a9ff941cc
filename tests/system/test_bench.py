"""`./run bench` as a developer uses it: a measurement, a record, missing programs, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import benchmarks.__main__
from benchmarks.cases import CASES
from tests.support.commands import Here
from tests.system.service import REPOSITORY, Done, run_command


async def bench(*words: object, within_s: float = 60) -> Done:
    """Run it."""
    return await run_command("benchmarks", *words, within_s=within_s)


@pytest.mark.slow
async def test_one_case_is_measured_and_recorded(tmp_path: Path) -> None:
    """A real service is started; figures, verdict and machine are printed and written down."""
    done = await bench("--only", "start", "--runs", 1, "--results", tmp_path)
    assert done.code == 0, done.stderr
    assert "run 1/1 start" in done.stderr
    assert "=> start to commit:" in done.stdout
    (line,) = (tmp_path / "results.ndjson").read_text().splitlines()
    record = json.loads(line)
    (figures,) = record["runs"]["start"]
    assert 0.05 < figures["start_to_committed_s"] < 60
    assert record["cases"] == ["start"]
    assert record["environment"]["cores"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## Service start to the first committed reading, warm" in text
    assert str(REPOSITORY) not in line + text


@pytest.mark.slow
@pytest.mark.alone
async def test_tree_is_compared_with_a_commit(open_tmp_path: Path) -> None:
    """Both services run under loads in turn; one line a case, a record, and no file is left."""
    scratch, record = open_tmp_path / "scratch", open_tmp_path / "record.ndjson"
    scratch.mkdir()
    scratch.chmod(0o755)
    done = await run_command(
        *("benchmarks", "--against", "HEAD", "--only", "hundreds_durable", "--quick"),
        *("--write", record),
        env={"TMPDIR": str(scratch)},
    )
    assert done.code == 0, done.stderr
    told, quick = done.stdout.splitlines()
    assert re.match(r"hundreds_durable: (not slower|SLOWER in \w+.*): CPU \d\.\d{3} \(", told)
    assert "; 5 pairs" in told
    assert quick.startswith("quick: ")
    (line,) = record.read_text().splitlines()
    (case,) = json.loads(line)["cases"]
    assert f"hundreds_durable: {case['told']}" == told
    for side in ("this", "other"):
        assert [len(each) for each in case[side].values()] == [5] * 5
        assert all(0.1 < each < 100 for each in case[side]["cpu_us_per_reading"])
    assert list(scratch.iterdir()) == []


@pytest.fixture
def here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Done]]:
    """Give a way to run the command in this process, which has no wrk: for what ends at once."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("benchmarks.against.raise_open_files_limit", lambda: None)

    def main(words: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        return benchmarks.__main__.main()

    yield Here(capsys, main).ended
    signal.signal(signal.SIGTERM, before)


def test_what_the_machine_lacks_is_left_out_and_named(
    here: Callable[..., Done], tmp_path: Path
) -> None:
    """A case without wrk is left out with the reason, in RESULTS.md too; it is no error."""
    done = here("--only", "singles", "--runs", 2, "--results", tmp_path)
    assert done.code == 0, done.stderr
    assert "left out: singles: wrk is not on PATH" in done.stderr
    assert "(wanted: at least 0.85) left out" in done.stdout
    text = (tmp_path / "RESULTS.md").read_text()
    assert "iot-ingest, memory, ack=buffered: wrk is not on PATH" in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--only", "sinlges"), "argument --only: 'sinlges' is no case; there are singles, "),
        (("--quic",), "unrecognized arguments: --quic"),
        (("--runs", "0"), "argument --runs: must be at least 1"),
        (("--seconds", "0.5"), "argument --seconds: must be 1 to 3,600"),
        (
            ("--roles", "--only", "idle"),
            "argument --only: 'idle' is no case; there are up_singles, ",
        ),
        (("--against", "HEAD", "--only", "idle"), "argument --only: 'idle' is no case; there are "),
        (("--against", "no-such"), "./run bench: there is no commit no-such here"),
        (("--against=--all",), "./run bench: --all is no commit"),
    ],
)
def test_wrong_option_is_named_before_anything_runs(
    here: Callable[..., Done], words: tuple[str, ...], why: str
) -> None:
    """A misspelt option is an error before the parts run, which takes a minute."""
    done = here(*words)
    assert done.code == 2
    assert why in done.stderr


@pytest.mark.slow
@pytest.mark.alone
async def test_every_part_runs() -> None:
    """Each part runs once without measurement, with the service's functions as they are now."""
    parts = sorted(REPOSITORY.glob("benchmarks/bench_*.py"))
    options = ("-q", "--benchmark-disable", "-p", "no:cacheprovider")
    done = await run_command("pytest", *options, *parts, within_s=50)
    assert done.code == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d+ passed in ", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
async def test_quick_run_measures_every_case() -> None:
    """All contenders run, all data arrives, and no case is left out if nothing is missing.

    Needs wrk, and Debian's packages or the cache that holds them.
    """
    done = await bench("--quick", within_s=880)
    assert done.code == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout + done.stderr
    for case in CASES:
        assert case.title in done.stdout


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_roles_are_measured_beside_the_service(tmp_path: Path) -> None:
    """One gateway, and three brokers: the CPU of each role is told, all is in the table."""
    words = ("--roles", "--quick", "--only", "up_hundreds,three_singles", "--results", tmp_path)
    done = await bench(*words, within_s=170)
    assert done.code == 0, done.stdout + done.stderr
    up, three, start, _quick = done.stdout.splitlines()
    for line, roles in (
        (up, "gateway nats-server writer supervisor PostgreSQL"),
        (three, "gateway nats-server writer PostgreSQL"),
    ):
        told = line.partition("other: ")[2]
        assert re.findall(r"([a-zA-Z-]+) [\d.]+ \(", told) == roles.split()
    assert "; 5 pairs; CPU us a reading, serve: service " in up
    assert re.search(r"first 202: serve \d+\.\d\d s; up \d+\.\d\d s; idle: supervisor", start)
    assert list(tmp_path.iterdir()) == []
