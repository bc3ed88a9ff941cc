"""`ingest config`: values with their origins, examples; and how commands print."""

from __future__ import annotations

import io
import json
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from ingest.cli.commands import main
from ingest.cli.doctor.checks import FAIL, OK, WARN, Check
from ingest.cli.doctor.command import as_text
from ingest.cli.parser import RED, coloured
from ingest.config.loading import load
from ingest.config.settings import (
    Settings,
    bounds_text,
    env_example,
    groups,
    toml_example,
)
from ingest.config.values import env_name

NAMES = [each.name for each in fields(Settings)]


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must succeed; return what it printed."""
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_config_shows_value_origin_and_bounds_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting has one line with its value and its origin."""
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
    """The table masks secrets, because people send it to others; --print shows them."""
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
        ("batch_linger_s", "0.1"),
        ("dlq_auto_replay", "true"),
        ("body_bytes_max", "1048576"),
        ("listen", "127.0.0.1:8080"),
    ],
)
def test_config_prints_one_value_for_a_script(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value is printed without unit and separators, so that it can be used as input."""
    assert output(capsys, "config", "--print", name) == f"{text}\n"


def test_config_prints_the_state_folder_in_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The state folder is printed as a path, also if the setting is empty."""
    assert output(capsys, "config", "--print", "state_dir") == f"{tmp_path / 'state'}\n"
    shown = output(capsys, "config", "--print", "state_dir", "--state-dir", "")
    assert Path(shown.strip()).is_absolute()


def test_examples_hold_every_setting_at_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An example file without its comment signs sets only the defaults."""
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
    """The examples have the order of the declarations."""
    assert [each.name for _, members in groups() for each in members] == NAMES
    assert all(title for title, _ in groups())
    assert {bounds_text(each) for _, m in groups() for each in m if each.metadata["one_of"]}


CHECKS = [
    Check("table", FAIL, "is not there"),
    Check("python", OK, "3.13"),
    Check("clock", WARN, "differs"),
    Check("disk", WARN, "is nearly full"),
]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


def test_doctor_shows_problems_last_with_their_number() -> None:
    """What is good comes first, then warnings, then failures; the last line counts them."""
    lines = as_text(CHECKS).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok", "warn", "warn", "FAIL"]
    assert lines[4:] == ["", "2 warnings, 1 failure"]
    assert as_text(CHECKS[1:2]).endswith("\n\nall is well")


def test_colours_are_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a pipe, NO_COLOR and a dumb terminal get plain text."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured("x", RED) == "x"
    monkeypatch.setattr("sys.stdout", Terminal())
    assert coloured("x", RED) == "\x1b[31;1mx\x1b[0m"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert coloured("x", RED) == "x"


def test_config_as_json_has_every_setting_and_no_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`config --json` gives value and origin of every setting; secrets are masked."""
    words = ["--database-url", "postgresql://u:secret@h/d", "--admin-token", "secret" * 4]
    assert main(["config", "--json", *words, "--batch-rows", "7"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert set(found) == {each.name for each in fields(Settings)}
    assert found["batch_rows"] == {"value": 7, "origin": "--batch-rows"}
    assert "secret" not in out
