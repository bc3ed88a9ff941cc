"""Laws of the command line: where flags may stand, how a failure is told, how quick it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from ingest import __version__
from ingest.cli import WORDS, Parser, build_parser, main, split_psql
from ingest.config import Settings, load
from ingest.config_text import bounds_text, env_example, groups, metavar, toml_example
from ingest.config_values import env_name, flag_name

REPOSITORY = Path(__file__).parent.parent.parent
NAMES = [each.name for each in fields(Settings)]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away what the machine sets; the state folder is the test's own."""
    for name in list(os.environ):
        if name.startswith("INGEST_") or name == "STATE_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail; return its one sentence."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ingest: ")
    assert err.count("\n") == 1
    return err.removeprefix("ingest: ").rstrip()


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must succeed; return what it printed."""
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def interpreter(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the repository's code; return how it ended."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_every_setting_is_a_flag_of_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag stands after the word; --help of serve names them all, with bounds and reason."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for title, members in groups():
        assert f"{title}:" in shown
        for each in members:
            assert f"{flag_name(each.name)} {metavar(each)} " in shown
            assert each.metadata["why"] in shown
    for word in set(WORDS) - {"psql"}:
        inner = {"schema": ["show"], "hold": ["show"], "dlq": ["stats"]}.get(word, [])
        args = build_parser(word).parse_args([word, *inner, *every_flag()])
        assert {name for name in vars(args) if name.startswith("setting.")} == {
            f"setting.{name}" for name in NAMES
        }


def every_flag() -> list[str]:
    """Return each setting's flag with a value."""
    return [part for name in NAMES for part in (flag_name(name), "1")]


def test_help_lists_each_word_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    """`ingest --help` is the map of the command line."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word, purpose in WORDS.items():
        assert f"{word} {purpose}" in shown


@pytest.mark.parametrize("word", WORDS)
def test_help_of_a_word_is_short_but_for_the_settings(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words that use few settings show few; none fails to describe itself."""
    with pytest.raises(SystemExit):
        main([word, "--help"])
    shown = capsys.readouterr().out
    assert WORDS[word][1:30] in " ".join(shown.split())
    assert ("--dlq-bytes-max" in shown) == (word in {"serve", "config"})


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """One number, in one place."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ingest {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: WORD (see ingest --help)"),
        (["sevre"], "there is no word 'sevre'; did you mean serve? (see ingest --help)"),
        (["xyzzy", "--help"], "there is no word 'xyzzy' (see ingest --help)"),
        ([""], "there is no word ''"),
        (["serve", "--bacth-rows", "5"], "no argument --bacth-rows; did you mean --batch-rows?"),
        (["serve", "--bacth-rows=5"], "no argument --bacth-rows=5; did you mean --batch-rows?"),
        (["serve", "--batch-row", "5"], "no argument --batch-row; did you mean --batch-rows?"),
        (["serve", "--batch-rows"], "expected one argument (see ingest serve --help)"),
        (["serve", "extra"], "there is no argument extra"),
        (["serve", "--batch-rows", "0"], "setting batch_rows (--batch-rows): '0' is too small"),
        (
            ["--listen", "h:1", "serve"],
            "--listen stands after a word, as in: ingest serve --listen ..",
        ),
        (["config", "--config", "no.toml"], "cannot read no.toml: No such file or directory"),
        (["config", "--print", "batch_row"], "no setting 'batch_row'; did you mean batch_rows?"),
        (["config", "--toml", "--env"], "not allowed with argument"),
        (["config", "--print", "database_url"], "no service runs on the state folder"),
        (["hold", "show"], "no service runs on the state folder"),
        (["hold", "release"], "no service runs on the state folder"),
        (["hold"], "the following arguments are required: show | release"),
        (["schema", "show", "--database-url", "postgresql://u:pw@[x"], "the database ***: "),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_two(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No usage dump, no traceback: what is wrong, and what was perhaps meant."""
    told = failure(capsys, *words)
    assert said in told
    assert "pw" not in told


def test_state_folder_that_is_a_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file system says is told with the path."""
    (tmp_path / "file").touch()
    told = failure(capsys, "hold", "show", "--state-dir", str(tmp_path / "file"))
    assert str(tmp_path / "file") in told


def test_config_shows_value_origin_and_bounds_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line per setting; the columns tell what is in force and who said so."""
    path = tmp_path / "s.toml"
    path.write_text("batch_linger_s = 0.5\nbatch_rows = 7\n")
    monkeypatch.setenv("INGEST_CONFIG", str(path))
    monkeypatch.setenv("INGEST_BODY_BYTES_MAX", "2MiB")
    monkeypatch.setenv("INGEST_BATCH_ROWS", "8")
    shown = output(capsys, "config", "--batch-rows", "9")
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
    assert list(lines) == NAMES
    assert lines["batch_linger_s"].split()[1:] == ["0.5", "s", str(path), "0", "to", "10", "s"]
    assert "2 MiB" in lines["body_bytes_max"]
    assert "INGEST_BODY_BYTES_MAX" in lines["body_bytes_max"]
    assert lines["batch_rows"].split()[1:4] == ["9", "rows", "--batch-rows"]
    assert len({line.rindex(str(path)) for line in lines.values() if str(path) in line}) == 1


def test_config_flag_wins_over_the_variable_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """INGEST_CONFIG is the default of --config."""
    for name, value in (("a", 3), ("b", 4)):
        (tmp_path / f"{name}.toml").write_text(f"writers = {value}\n")
    monkeypatch.setenv("INGEST_CONFIG", str(tmp_path / "a.toml"))
    assert output(capsys, "config", "--print", "writers") == "3\n"
    flag = str(tmp_path / "b.toml")
    assert output(capsys, "config", "--config", flag, "--print", "writers") == "4\n"


def test_config_masks_passwords_but_where_the_value_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table is pasted into tickets; --print is for scripts."""
    url = "postgresql://me:hunter2@db.example/x"
    monkeypatch.setenv("INGEST_DATABASE_URL", url)
    shown = output(capsys, "config")
    assert "hunter2" not in shown
    assert "postgresql://me:***@db.example/x" in shown
    assert output(capsys, "config", "--print", "database_url") == f"{url}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("batch_rows", "100"),
        ("batch_linger_s", "0.02"),
        ("dlq_auto_replay", "true"),
        ("body_bytes_max", "1048576"),
        ("listen", "127.0.0.1:8080"),
    ],
)
def test_config_prints_one_value_for_a_script(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bare, without unit or separators: what could be given back as it is."""
    assert output(capsys, "config", "--print", name) == f"{text}\n"


def test_config_prints_the_state_folder_in_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also where the setting is empty: a script wants the folder, not the rule."""
    assert output(capsys, "config", "--print", "state_dir") == f"{tmp_path / 'state'}\n"
    shown = output(capsys, "config", "--print", "state_dir", "--state-dir", "")
    assert Path(shown.strip()).is_absolute()


def test_examples_hold_every_setting_at_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uncommented as a whole, an example changes nothing."""
    text = output(capsys, "config", "--toml")
    assert text == toml_example()
    live = "\n".join(
        line[1:] if line[:1] == "#" and line[1:2] not in {" ", ""} else line
        for line in text.splitlines()
    )
    assert list(tomllib.loads(live)) == NAMES
    path = tmp_path / "all.toml"
    path.write_text(live)
    assert load(toml_path=path, environ={}).settings == Settings()
    text = output(capsys, "config", "--env")
    assert text == env_example()
    pairs = dict(
        line[1:].split("=", 1) for line in text.splitlines() if line.startswith("#INGEST_")
    )
    assert list(pairs) == [env_name(name) for name in NAMES]
    assert load(environ=pairs).settings == Settings()


def test_every_group_has_a_title_and_all_settings_are_in_one() -> None:
    """The order of the declaration is the order that people read."""
    assert [each.name for _, members in groups() for each in members] == NAMES
    assert all(title for title, _ in groups())
    assert {bounds_text(each) for _, m in groups() for each in m if each.metadata["one_of"]}


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
    """Settings are ours wherever they stand, the rest is psql's, in its order."""
    assert split_psql(words) == (ours, theirs)


def test_flag_stands_before_or_after_a_word_of_a_word() -> None:
    """`schema --state-dir X apply` and `schema apply --state-dir X` are the same."""
    for words in (["schema", "--writers", "3", "apply"], ["schema", "apply", "--writers", "3"]):
        args = build_parser("schema").parse_args(words)
        assert vars(args)["setting.writers"] == "3"


def test_complaint_is_raised_not_printed() -> None:
    """argparse's own exit would print a usage of fifty flags."""
    with pytest.raises(Exception, match="see x --help"):
        Parser(prog="x").parse_args(["--nothing", "y"])


@pytest.mark.parametrize("words", [["--help"], ["config"], ["config", "--print", "listen"]])
def test_quick_word_imports_no_driver(words: list[str]) -> None:
    """Help and config answer at once because nothing heavy is loaded for them."""
    code = (
        "import sys; from ingest.cli import main\n"
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


def test_interrupt_ends_the_command_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is not an error to report."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ingest.cli_config.run", interrupted)
    assert main(["config"]) == 130


def test_misspelt_variable_stops_every_word() -> None:
    """The real interpreter, the real environment: named on stderr, exit 2."""
    done = interpreter("-m", "ingest", "config", INGEST_BACTH_ROWS="5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "INGEST_BACTH_ROWS" in done.stderr
    assert "INGEST_BATCH_ROWS" in done.stderr


def test_doctor_on_a_file_instead_of_a_folder_fails_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every other finding is still made; the database is told to be out of reach."""
    (tmp_path / "file").touch()
    words = ["--state-dir", str(tmp_path / "file"), "--json"]
    assert main(["doctor", *words, "--database-url", "postgresql://127.0.0.1:1/x"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["state folder"]["state"] == "FAIL"
    assert "--state-dir" in found["state folder"]["detail"]
    assert found["database"]["state"] == "FAIL"
    assert found["python"]["state"] == "ok"
