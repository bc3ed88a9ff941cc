"""The output of commands: JSON for programs, colours and a summary for people."""

from __future__ import annotations

import io
import json
from dataclasses import fields

import pytest

from ingest.cli.commands import main
from ingest.cli.doctor.checks import FAIL, OK, WARN, Check
from ingest.cli.doctor.command import as_text
from ingest.cli.parser import RED, coloured
from ingest.config.settings import Settings

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
