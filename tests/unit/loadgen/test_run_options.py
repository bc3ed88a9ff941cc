"""Options of `loadgen run` become the right plan, or an error that names the option."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from loadgen.cli import main as cli
from loadgen.cli.run_options import plan_of, settings_of
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


def test_storm_brings_a_backlog_of_each_device_and_a_connection_for_it() -> None:
    """A storm has a backlog for each device and a connection for each, then the rate."""
    plan = _plan("--shape", "storm:5", "--devices", "200", "--rate", "10", "--duration-s", "2")
    assert (plan.recipe.backlog_minutes, plan.recipe.backlog_posts, plan.connections) == (
        5,
        200,
        200,
    )
    times = list(plan.moments() or ())
    assert times[:201] == [0.0] * 201, "200 of the backlog, and the first live one"
    assert len(times) == 220
    assert _plan("--shape", "storm", "--devices", "9000").connections == 1000
    assert _plan("--shape", "storm", "--connections", "3").connections == 3


def test_posts_without_a_duration_have_no_end_in_time() -> None:
    """With --posts alone the run has no end in time."""
    plan = _plan("--posts", "50")
    assert (plan.duration_s, plan.recipe.posts_max) == (None, 50)


def test_shares_and_mixes_are_read_in_both_spellings() -> None:
    """1% is 0.01; sizes have weights, or equal ones."""
    recipe = _plan("--late", "1%", "--broken", "0.5", "--batch", "1x80,100x20").recipe
    assert (recipe.late, recipe.broken, recipe.duplicates) == (0.01, 0.5, 0.0)
    assert recipe.mix == ((1, 80.0), (100, 20.0))
    assert _plan("--batch", "5,10").recipe.mix == ((5, 1.0), (10, 1.0))
    assert _plan("--batch", "1x80,100x20").readings_a_post() == pytest.approx(20.8)


def test_metrics_are_not_guessed_for_a_port_of_ones_own() -> None:
    """For another port no metrics URL is guessed, since it may be of another service."""
    assert _plan("--url", "http://127.0.0.1:9000").metrics_urls == ()
    assert _plan("--url", "http://[::1]:8080").metrics_urls == ("http://[::1]:8081/metrics",)
    for option, url in (
        ("--admin-url", "http://h:9001"),
        ("--admin-url", "http://h:9001/metrics"),
        ("--metrics-url", "http://h:9001/metrics"),  # its name before
    ):
        given = _plan("--url", "http://h:9000", option, url)
        assert given.metrics_urls == ("http://h:9001/metrics",)


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


def test_settings_of_a_report_are_what_was_chosen(tmp_path: Path) -> None:
    """The report has all settings, with defaults."""
    chosen = _chosen("--shape", "ramp:1..9", "--seed", "7", "--gzip", "--json", f"{tmp_path}/a")
    settings = settings_of(chosen, plan_of(chosen))
    wanted = {
        "url": "http://127.0.0.1:8080/v1/readings",
        "loop": "open",
        "shape": "ramp:1..9",
        "rate_posts_per_s": None,
        "duration_s": 10.0,
        "seed": 7,
        "gzip": True,
        "batch": "1x1",
        "late": 0.0,
    }
    assert settings.items() >= wanted.items()
    chosen = _chosen("--closed", "--no-retry")
    settings = settings_of(chosen, plan_of(chosen))
    assert (settings["loop"], settings["shape"], settings["retry"]) == ("closed", None, False)


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option has a help text."""
    (words,) = [
        each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)
    ]
    for name, parser in words.choices.items():
        silent = [
            each.option_strings for each in parser._actions if each.option_strings and not each.help
        ]
        assert not silent, f"{name}: {silent}"


def test_several_urls_are_addresses_of_one_service() -> None:
    """Posts go to all of them; without --admin-url no port is guessed."""
    words = ("--url", "http://a:8080", "--url", "http://b:8080")
    plan = _plan(*words)
    assert [each.authority for each in (plan.target, *plan.others)] == ["a:8080", "b:8080"]
    assert plan.metrics_urls == ()
    plan = _plan(*words, "--admin-url", "http://a:1", "--admin-url", "http://b:1/metrics")
    assert plan.metrics_urls == ("http://a:1/metrics", "http://b:1/metrics")
    said = settings_of(_chosen(*words), plan)
    assert said["other_urls"] == ["http://b:8080/v1/readings"]
    assert said["metrics_url"] == "http://a:1/metrics, http://b:1/metrics"
    with pytest.raises(ValueError, match="--url: all must have the same path"):
        _plan("--url", "http://a:8080", "--url", "http://b:8080/x")


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
        (["run", "--zzz"], "loadgen run: there is no --zzz (see loadgen run --help)"),
        (["run", "--dev", "3"], "loadgen run: there is no --dev; did you mean --devices?"),
        (["run", "--metrics-url", "h:1"], "h:1 does not begin with http://"),
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


def test_each_help_has_two_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    """Each help shows two examples that the parser takes; without a command it is printed."""
    for command in ([], *([each] for each in cli.COMMANDS)):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        shown = capsys.readouterr().out
        found = re.findall(r"^  (loadgen .*)$", shown, re.MULTILINE)
        assert len(found) == 2
        for example in found:
            words = shlex.split(example)[1:]
            assert cli.parser().parse_args(words).command == (command or words)[0]
    assert cli.main([]) == 2
    assert "verify" in capsys.readouterr().err


def test_token_goes_to_each_target() -> None:
    """Of a list of gateways too; no report shows it."""
    chosen = _chosen("--token", "iot_x", "--url", "http://a:1", "--url", "http://b:1")
    plan = plan_of(chosen)
    assert [each.token for each in (plan.target, *plan.others)] == ["iot_x"] * 2
    assert "iot_x" not in json.dumps(settings_of(chosen, plan))
    assert _plan().target.token == ""
    for wrong in ("a b", "x\r\nHost: y", "ü"):
        with pytest.raises(SystemExit):
            _chosen("--token", wrong)
