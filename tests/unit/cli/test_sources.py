"""`ingest sources`: what is printed, and how faults of the file are told."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from ingest.cli.doctor_senders import sources_check
from ingest.cli.main import main
from ingest.config.settings import Settings
from ingest.config.source_tables import SOURCES_MAX

ESP = '[[source]]\nname = "esp"\ndevice = "id"\n'
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "sources.toml"
    path.write_text(ESP)
    return path


def ran(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *words: str,
    body: bytes = BODY,
) -> tuple[int, str, str]:
    """Run `ingest sources` with a body on stdin: exit code, output, errors."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(body)))
    code = main(["sources", *words])
    return code, *capsys.readouterr()


def test_try_prints_what_would_be_stored(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each reading; as JSON too."""
    at = ("--sources-file", str(file))
    code, out, _ = ran(monkeypatch, capsys, "try", "esp", *at)
    assert code == 0
    assert re.sub(r"\S+Z", "NOW", out) == "NOW  esp-1  temp  21.4\nNOW  esp-1  hum  40.0\n"
    code, out, _ = ran(monkeypatch, capsys, "try", "esp", "--json", *at)
    assert [each["value"] for each in json.loads(out)["readings"]] == [21.4, 40.0]
    _, out, _ = ran(monkeypatch, capsys, "try", "esp", *at, body=b'{"id":"a","ts":1,"t":"2"}')
    assert "is this meant? `ts` looks like a time" in out
    assert "`t` is a number in quotes, not stored: numeric_strings = true" in out


def test_try_says_why_not(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 for a fault, 2 for a body that would be refused, or a wrong name."""
    at = ("--sources-file", str(file))
    code, out, _ = ran(monkeypatch, capsys, "try", "esp", *at, body=b'{"t":1}')
    assert code == 1
    assert out.startswith("document 0: no_device at device: nothing names a device: `device` ")
    code, _, said = ran(monkeypatch, capsys, "try", "esp", *at, body=b"{")
    assert code == 2
    assert "the post would be refused (not_json)" in said
    code, _, said = ran(monkeypatch, capsys, "try", "esp", *at, body=b'{"id":"a","t":NaN,"u":1}')
    assert "expected a JSON value, at 'NaN,\"u\":1}'" in said
    code, _, said = ran(monkeypatch, capsys, "try", "epp", *at)
    assert code == 2
    assert "there is no source 'epp'" in said


def test_try_takes_what_comes_beside_the_body(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preset needs no file."""
    body = b'{"deviceInfo":{"devEui":"01"},"object":{"t":1}}'
    code, out, said = ran(
        monkeypatch, capsys, "try", "chirpstack", "--query", "event=up", body=body
    )
    assert (code, out.split()[1:]) == (0, ["01", "t", "1.0"])
    assert "this is the preset" in said
    code, out, _ = ran(monkeypatch, capsys, "try", "chirpstack", "--query", "event=ack", body=body)
    assert (code, "ignored: 1" in out) == (1, True)
    code, out, _ = ran(
        monkeypatch, capsys, "try", "airgradient", "--in-path", "device=a", body=body
    )
    assert (code, out.split()[1:4]) == (0, ["a", "object.t", "1.0"])
    code, _, said = ran(monkeypatch, capsys, "try", "ttn", "--header", "x")
    assert (code, "write NAME:VALUE" in said) == (2, True)


def test_list_shows_where_each_is_posted_to(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the presets."""
    file.write_text(ESP + '[[source]]\npreset = "thingsboard"\n')
    code, out, _ = ran(monkeypatch, capsys, "list", "--sources-file", str(file))
    assert code == 0
    assert "/v1/in/esp" in out
    assert "/api/v1/{token}/telemetry  (preset thingsboard)" in out
    assert "presets: ttn" in out
    assert "sources_file is empty" in ran(monkeypatch, capsys, "list")[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[source]]\n", "source 1, key name: write letters"),
        (ESP + ESP, "source 2 ('esp'), key name: it is the name of an earlier source"),
        (ESP + 'valeus = "."\n', "source 1 ('esp'), key valeus: there is no such key"),
        (ESP + 'valeus = "."\n', "did you mean values"),
        (
            '[[source]]\npreset="ttn"\npath="/a/b"\n' + ESP + 'path="/a/b"\n',
            "key path: ttn has /a/b",
        ),
        ("[source]\n", "write [[source]] with two brackets"),
        ("listen = 1\n", "'listen' is no table of a source"),
        ("[[source]\n", "is not TOML"),
        ("[[source]]\n" * (SOURCES_MAX + 1), "more than 200 sources"),
        ("#" * 1_048_577, "is larger than"),
    ],
)
def test_fault_of_the_file_is_told(
    file: Path,
    text: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It names the table, the key, and what to write instead."""
    file.write_text(text)
    code, _, error = ran(monkeypatch, capsys, "list", "--sources-file", str(file))
    assert code == 2
    assert said in error


def test_doctor_says_what_is_in_the_file(file: Path) -> None:
    """The service would not start with a wrong one."""
    settings = Settings(sources_file=str(file))
    assert sources_check(settings) == ("sources", "ok", "1 source: esp")
    file.write_text("x")
    assert sources_check(settings).state == "FAIL"


def test_source_in_the_file_of_settings_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a file of its own. A file that is not there is told, too."""
    code, _, error = ran(monkeypatch, capsys, "list", "--config", str(file))
    assert (code, "setting sources_file" in error) == (2, True)
    code, _, error = ran(monkeypatch, capsys, "list", "--sources-file", str(file) + "x")
    assert (code, "cannot be read" in error) == (2, True)
