"""Options of `loadgen run` become the right plan, or an error that names the option."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from loadgen.cli import main as cli
from loadgen.cli.run_options import plan_of
from loadgen.cli.service_options import local_of, targets_for
from loadgen.measure.load import LoadPlan
from loadgen.traffic.schedule import burst, constant, ramp, steps


@pytest.fixture(autouse=True)
def _no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find only the service that the test makes."""
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))


def _chosen(*words: str) -> argparse.Namespace:
    return cli.parser().parse_args(["run", *words])


def _plan(*words: str) -> LoadPlan:
    return plan_of(_chosen(*words))


def test_run_without_options_is_an_open_loop_of_ten_seconds() -> None:
    """Without options the run is an open loop of ten seconds."""
    plan = _plan()
    assert plan.shape == constant(1000)
    assert (plan.duration_s, plan.connections, plan.recipe.posts_max) == (10.0, 64, None)
    assert plan.metrics_urls == ("http://127.0.0.1:8081/metrics",)
    assert plan.retry is not None
    assert (plan.behind_s_max, _plan("--behind-s", "5").behind_s_max) == (30.0, 5.0)
    times = plan.moments()
    assert times is not None
    assert len(list(times)) == 10_000


@pytest.mark.parametrize(
    ("words", "shape", "duration_s"),
    [
        (["--rate", "5"], constant(5), 10),
        (["--shape", "ramp:100..2000", "--duration-s", "30"], ramp(100, 2000, 30), 30),
        (["--shape", "ramp:5..1"], ramp(5, 1, 10), 10),
        (["--shape", "steps:100,500,1000:7"], steps([100, 500, 1000], 7), 21),
        (["--shape", "steps:1,2", "--duration-s", "8"], steps([1, 2], 4), 8),
        (["--shape", "burst:100,5000,20,2"], burst(100, 5000, 20, 2), 10),
        (["--closed"], None, 10),
    ],
)
def test_shapes_are_read_as_the_help_shows_them(
    words: list[str], shape: object, duration_s: float
) -> None:
    """Shapes are read as the help shows them: rates, times and their order."""
    plan = _plan(*words)
    assert (plan.shape, plan.duration_s) == (shape, duration_s)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "x"], "--rate: 'x' is not a number"),
        (["--rate", "0"], "--rate: 0 must be above 0"),
        (["--rate", "inf"], "--rate: 'inf' is not a number"),
        (["--rate", "1000001"], "--rate: 1,000,001 posts a second: at most 1,000,000"),
        (["--shape", "ramp:1..1e9"], "--shape: 'ramp:1..1e9': 1,000,000,000 posts a second"),
        (["--shape", "steps:1,1e9:2"], "'steps:1,1e9:2': 1,000,000,000 posts a second: at most"),
        (["--duration-s", "nan"], "--duration-s: 'nan' is not a number"),
        (["--connections", "0"], "--connections: 0 must be at least 1"),
        (["--posts", "1.5"], "--posts: '1.5' is not a whole number"),
        (["--devices", "2000000"], "--devices: 2000000 must be at least 1 and at most 100,000"),
        (["--batch", "0"], "--batch: 0 must be at least 1"),
        (["--batch", "1x"], "--batch: '' is not a number"),
        (["--batch", "1x-2"], "--batch: -2 must be above 0"),
        (["--late", "120%"], "--late: '120%' is not a share"),
        (["--poison", "-0.1"], "--poison: '-0.1' is not a share"),
        (["--shape", "wave"], "--shape: 'wave' is no shape; may be constant, ramp:"),
        (["--shape", "burst:1,2,3"], "--shape: 'burst:1,2,3': a burst has four numbers"),
        (["--shape", "burst:1,2,3,4"], "a burst must be shorter than"),
        (["--shape", "steps:"], "--shape: 'steps:': '' is not a number"),
        (["--shape", "ramp:0..0"], "a shape needs a rate above 0"),
        (["--shape", "storm:9999"], "9999 must be at least 1 and at most 1,440"),
        (["--url", "ftp://h"], "--url: 'ftp://h' does not begin with http:// or https://"),
        (["--json", "/nowhere/x"], "--json: there is no folder /nowhere"),
        (["--json", "/"], "--json: / is a folder"),
        (["--arrivals", "never"], "--arrivals: there is no 'never': one of constant, poisson"),
    ],
)
def test_value_that_cannot_be_is_an_error_that_names_its_option(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong value has exit code 2; the message names the option; no post is sent."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--closed", "--rate", "5"], "--closed goes without --rate"),
        (["--closed", "--find-max"], "--closed goes without --find-max"),
        (["--closed", "--behind-s", "5"], "--closed goes without --behind-s"),
        (["--find-max", "--behind-s", "5"], "--find-max goes without --behind-s"),
        (["--closed", "--shape", "ramp:1..2"], "--closed goes without --shape and --arrivals"),
        (["--closed", "--arrivals", "poisson"], "--closed goes without --shape and --arrivals"),
        (["--rate", "5", "--shape", "ramp:1..2"], "--shape ramp:1..2 says the rates"),
        (["--shape", "ramp:1..2", "--posts", "5"], "a ramp needs --duration-s"),
        (["--shape", "steps:1,2", "--posts", "5"], "say how long a step is"),
        (["--url", "http://h", "--url", "https://h"], "--url: all must begin with https://"),
        (["--url", "http://h", "--ca", "x.crt"], "--ca is for a --url that begins with https://"),
        (["--find-max", "--posts", "5"], "--find-max goes without --posts"),
        (["--find-max", "--no-retry"], "--find-max goes without --no-retry"),
        (["--find-max", "--shape", "storm"], "--find-max tries constant rates"),
        (["--connections", "100000"], "`ulimit -Hn` allows 1000 open files"),
    ],
)
def test_options_that_do_not_go_together_are_an_error_that_names_them(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options that contradict each other are an error that names them."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 1000))
    assert cli.main(["run", *words]) == 2
    assert said in capsys.readouterr().err


def test_every_command_talks_to_the_service_of_this_machine(tmp_path: Path) -> None:
    """`run`, `csv` and `verify` find the running service in the same way; --url wins."""
    state = tmp_path / "other"
    state.mkdir()
    info = {"pid": os.getpid(), "listen": "127.0.0.1:7", "admin_listen": "127.0.0.1:8"}
    (state / "service.json").write_text(json.dumps({**info, "database_url": "x"}))
    at = ("--state-dir", str(state))
    for command in (["run"], ["verify"], ["csv", "f", "--device", "d", "--metric", "m"]):
        chosen = cli.parser().parse_args([*command, *at])
        local = local_of(chosen)
        assert local is not None
        assert [each.authority for each in targets_for(chosen, local)] == ["127.0.0.1:7"]
        chosen = cli.parser().parse_args([*command, *at, "--url", "http://127.0.0.1:9"])
        assert local_of(chosen) is None
        assert [each.authority for each in targets_for(chosen, None)] == ["127.0.0.1:9"]
        chosen = cli.parser().parse_args(command)
        assert targets_for(chosen, local_of(chosen))[0].authority == "127.0.0.1:8080"
    assert _plan().metrics_urls == ("http://127.0.0.1:8081/metrics",)
    chosen = _chosen(*at)
    assert plan_of(chosen, local_of(chosen)).metrics_urls == ("http://127.0.0.1:8/metrics",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "loadgen: there is no 'rnu'; did you mean run? (see loadgen --help)"),
        (["run", "--dvices", "3"], "loadgen run: there is no --dvices; did you mean --devices?"),
        (
            ["run", "--url", "http://a", "http://b"],
            "loadgen run: repeat an option for each value: there is no http://b "
            "(see loadgen run --help)",
        ),
        (["run", "--zzz"], "loadgen run: there is no --zzz (see loadgen run --help)"),
        (["run", "--dev", "3"], "loadgen run: there is no --dev; did you mean --devices?"),
        (["run", "--admin-url", "h:1"], "h:1 does not begin with http://"),
        (["run", "--ack", "durabel"], "did you mean durable?"),
    ],
)
def test_mistake_is_one_line_with_what_was_meant(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt command, option or value gives one line with a suggestion, and exit code 2."""
    try:
        code: object = cli.main(words)
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
