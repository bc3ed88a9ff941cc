"""The command line: the places of flags, the messages of failures, the speed of help."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ingest import __version__
from ingest.cli import config
from ingest.cli.commands import COMMANDS, build_parser, main, split_psql
from ingest.config.settings import Settings, groups, metavar
from ingest.config.values import flag_name
from ingest.model.errors import IngestError

REPOSITORY = Path(__file__).parents[3]
NAMES = [each.name for each in fields(Settings)]


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail; return its message of one sentence."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ingest: ")
    assert err.count("\n") == 1
    return err.removeprefix("ingest: ").rstrip()


def interpreter(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the repository's code; return how it ended.

    Not measured for coverage, which would import more than the command does.
    """
    inherited = {name: text for name, text in os.environ.items() if "COVERAGE" not in name}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["mqtt", "--mqtt-url", "mqtt://127.0.0.1", "--topic", "a", "--name", "a"],
        ["forward", "--to", "http://127.0.0.1:9000/", "--name", "a"],
    ],
)
def test_command_that_takes_no_posts_refuses_their_port(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would do nothing; the page of the command has another name."""
    assert "--admin-listen" in failure(capsys, *words, "--listen", "127.0.0.1:0")


def test_every_setting_is_a_flag_of_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting is a flag of every command; `serve --help` lists all of them."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for title, members in groups():
        assert f"{title}:" in shown
        for each in members:
            assert f"{flag_name(each.name)} {metavar(each)} " in shown
            assert each.metadata["why"] in shown
    needed = {
        "schema": ["show"],
        "hold": ["show"],
        "dlq": ["stats"],
        "forward": ["--name", "x", "--to", "https://x.example/"],
        "mqtt": ["--mqtt-url", "mqtt://x.example", "--topic", "a"],
    }
    for word in set(COMMANDS) - {"psql"}:
        inner = needed.get(word, [])
        # With `up` the flag of this setting has another name: see test_help.py.
        more = ["--writer-connections", "1"] if word == "up" else []
        args = build_parser(word).parse_args([word, *inner, *every_flag(), *more])
        assert {name for name in vars(args) if name.startswith("setting.")} == {
            f"setting.{name}" for name in NAMES
        }


def every_flag() -> list[str]:
    """Return each setting's flag with a value."""
    return [part for name in NAMES for part in (flag_name(name), "1")]


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version of the package."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ingest {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sevre"], "there is no command 'sevre'; did you mean serve? (see ingest --help)"),
        (["xyzzy", "--help"], "there is no command 'xyzzy' (see ingest --help)"),
        ([""], "there is no command ''"),
        (["serve", "--bacth-rows", "5"], "no argument --bacth-rows; did you mean --batch-rows?"),
        (["serve", "--bacth-rows=5"], "no argument --bacth-rows=5; did you mean --batch-rows?"),
        (["serve", "--batch-row", "5"], "no argument --batch-row; did you mean --batch-rows?"),
        (["serve", "--batch-rows"], "expected one argument (see ingest serve --help)"),
        (["serve", "extra"], "there is no argument extra"),
        (["serve", "--batch-rows", "0"], "setting batch_rows (--batch-rows): '0' is too small"),
        (
            ["--listen", "h:1", "serve"],
            "write --listen after a command, as in: ingest serve --listen ..",
        ),
        (["config", "--config", "no.toml"], "no.toml cannot be read: No such file or directory"),
        (["config", "--print", "batch_row"], "no setting 'batch_row'; did you mean batch_rows?"),
        (["config", "--toml", "--env"], "not allowed with argument"),
        (["config", "--print", "database_url"], "no service runs on the state folder"),
        (["dlq", "lst"], "there is no 'lst' here; did you mean list? (see ingest dlq --help)"),
        (["hold", "x"], "there is no 'x' here: one of show, release (see ingest hold --help)"),
        (["schema", "show", "--database-url", "postgresql://u:pw@[x"], "cannot be read as a URL"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_two(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake gives one sentence with what was perhaps meant, no usage and no traceback."""
    told = failure(capsys, *words)
    assert said in told
    assert "pw" not in told


def test_message_names_commands_as_they_are_typed_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a command of a message would fail in a checkout or a container."""
    monkeypatch.setenv("INGEST_COMMAND", "./run")
    assert "(see ./run --help)" in failure(capsys, "xyzzy")
    assert "`./run up` runs an embedded one" in failure(capsys, "gateway")


@pytest.mark.parametrize(
    "words",
    [
        ["hold", "show"],
        ["hold", "release"],
        ["psql", "-c", "select 1"],
        ["schema", "show"],
        *(["dlq", *rest] for rest in (["list"], ["stats"], ["replay"], ["discard", "--all"])),
        ["dlq", "replay", "--file", "/dev/null"],
    ],
)
def test_state_folder_that_is_not_there_is_told_and_not_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state folder that does not exist is an error, and is not made."""
    told = failure(capsys, *words)
    assert str(tmp_path / "state") in told
    assert "--state-dir" in told
    assert list(tmp_path.iterdir()) == []


def test_state_folder_without_a_service_or_a_database_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without service or database is an error, and nothing is made in it."""
    here = ("--state-dir", str(tmp_path))
    assert "no service runs on the state folder" in failure(capsys, "hold", "show", *here)
    assert "no service runs on the state folder" in failure(capsys, "hold", "release", *here)
    assert "there is no database in" in failure(capsys, "psql", *here, "-c", "select 1")
    assert list(tmp_path.iterdir()) == []


def test_state_folder_that_is_a_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of the file system is reported with the path."""
    (tmp_path / "file").touch()
    told = failure(capsys, "hold", "show", "--state-dir", str(tmp_path / "file"))
    assert str(tmp_path / "file") in told


@pytest.mark.parametrize(
    ("words", "ours", "theirs"),
    [
        (["-c", "select 1"], [], ["-c", "select 1"]),
        (["--state-dir", "/x", "-c", "q"], ["--state-dir", "/x"], ["-c", "q"]),
        (["-c", "q", "--state-dir=/x"], ["--state-dir=/x"], ["-c", "q"]),
        (["--", "--state-dir", "/x"], [], ["--state-dir", "/x"]),
        (["-At", "--", "-h"], [], ["-At", "-h"]),
        (["--config", "f", "--csv"], ["--config", "f"], ["--csv"]),
        (["--help"], ["--help"], []),
        (["-h"], ["-h"], []),
        (["--csv", "-h", "db"], [], ["--csv", "-h", "db"]),
        (["--state-dir"], ["--state-dir"], []),
        (["--list"], [], ["--list"]),
        ([], [], []),
    ],
)
def test_psql_gets_what_is_not_ours(words: list[str], ours: list[str], theirs: list[str]) -> None:
    """Flags of settings are ours at any place; the rest is psql's, in its order."""
    assert split_psql(words) == (ours, theirs)


def test_flag_stands_before_or_after_a_word_of_a_word() -> None:
    """`schema --state-dir X apply` and `schema apply --state-dir X` are the same."""
    for words in (["schema", "--writers", "3", "apply"], ["schema", "apply", "--writers", "3"]):
        args = build_parser("schema").parse_args(words)
        assert vars(args)["setting.writers"] == "3"


@pytest.mark.parametrize("words", [["--help"], ["config"], ["config", "--print", "listen"]])
def test_quick_word_imports_no_driver(words: list[str]) -> None:
    """Help and config are quick, because no large library is imported for them."""
    code = (
        "import sys; from ingest.cli.commands import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'asyncio', 'aiohttp', 'asyncpg', 'uvloop', 'msgspec', 'structlog', 'orjson',"
        " 'prometheus_client', 'tomllib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = interpreter("-c", code)
    assert done.returncode == 0, done.stderr


def test_reader_that_goes_away_ends_the_command_quietly() -> None:
    """`ingest config | head -1` leaves no traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ingest", "config"],
        cwd=REPOSITORY,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "/x"), 2, "No space left on device: '/x'\n"),
        (IngestError("mend it"), 2, "ingest: mend it\n"),
    ],
)
def test_expected_end_of_a_command_has_no_traceback(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C prints nothing; a full disk and a mistake of the user give one line."""

    def ended(*_: object) -> int:
        raise error

    monkeypatch.setattr("ingest.cli.config.COMMAND", config.COMMAND._replace(run=ended))
    assert main(["config"]) == code
    assert capsys.readouterr().err.endswith(said)


def test_doctor_on_a_file_instead_of_a_folder_fails_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the database is out of reach, doctor still makes all other checks."""
    (tmp_path / "file").touch()
    words = ["--state-dir", str(tmp_path / "file"), "--json"]
    assert main(["doctor", *words, "--database-url", "postgresql://127.0.0.1:1/x"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["state folder"]["state"] == "FAIL"
    assert "--state-dir" in found["state folder"]["detail"]
    assert found["database"]["state"] == "FAIL"
    assert found["python"]["state"] == "ok"


def test_serve_freezes_what_is_imported_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported objects are frozen, so that the garbage collector does not check them again."""
    frozen = []

    async def serve(*_args: object, **_flags: object) -> int:
        frozen.append(gc.get_freeze_count())
        return 0

    monkeypatch.setattr("ingest.app.service.serve", serve)
    gc.unfreeze()  # what was there before the first test
    assert main(["serve", "--buffer", "memory"]) == 0
    assert frozen[0] > 10_000
