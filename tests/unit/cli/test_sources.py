"""`ingest sources`: what is printed, and how faults of the file are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.cli.commands import main
from ingest.cli.doctor.checks import listed_checks
from ingest.config.named_files import ENTRIES_MAX
from ingest.config.settings import Settings
from tests.support.commands import Here, Step

ESP = '[[source]]\nname = "esp"\ndevice = "id"\n'
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "sources.toml"
    path.write_text(ESP)
    return path


EARLIER = "source 2 ('esp'), key name: it is the name of an earlier source"
SAME_PATH = '[[source]]\npreset="ttn"\npath="/a/b"\n' + ESP + 'path="/a/b"\n'
CHIRPSTACK = b'{"deviceInfo":{"devEui":"01"},"object":{"t":1}}'
AT = "--sources-file {file}"
TRIED = [
    Step(f"try esp {AT}", out=["  esp-1  temp  21.4\n", "  esp-1  hum  40.0\n"], body=BODY),
    Step(f"try esp --json {AT}", out=['"value": 21.4', '"value": 40.0'], body=BODY),
    Step(
        f"try esp {AT}",
        out=[
            "is this meant? `ts` looks like a time",
            "`t` is a number in quotes, not stored: numeric_strings = true",
        ],
        body=b'{"id":"a","ts":1,"t":"2"}',
    ),
    Step(
        f"try esp {AT}",
        out=["is this meant? `t` is a text or null, no number: not stored"],
        body=b'{"id":"a","t":"nan","u":1}',
    ),
    # 1 for a fault, 2 for a body that would be refused, or a wrong name.
    Step(
        f"try esp {AT}",
        1,
        ["document 0: no_device at device: nothing names a device: `device` "],
        body=b'{"t":1}',
    ),
    Step(f"try esp {AT}", 2, err=["the post would be refused (not_json)"], body=b"{"),
    Step(
        f"try esp {AT}",
        2,
        err=["expected a JSON value, at 'NaN,\"u\":1}'"],
        body=b'{"id":"a","t":NaN,"u":1}',
    ),
    Step(f"try epp {AT}", 2, err=["there is no source 'epp'"]),
    # A preset needs no file. What comes beside the body is given as flags.
    Step(
        "try chirpstack --query event=up",
        out=["  01  t  1.0\n"],
        err=["this is the preset"],
        body=CHIRPSTACK,
    ),
    Step("try chirpstack --query event=ack", 1, ["ignored: 1"], body=CHIRPSTACK),
    Step("try airgradient --in-path device=a", out=["  a  object.t  1.0\n"], body=CHIRPSTACK),
    Step("try ttn --header x", 2, err=["write NAME:VALUE"]),
    Step("list --config {file}", 2, err=["setting sources_file"]),
    Step(f"list {AT}x", 2, err=["cannot be read"]),
    Step("list", out=["sources_file is empty"]),
]
LISTED = ["/v1/in/esp", "/api/v1/{token}/telemetry  (preset thingsboard)", "presets: ttn"]
FILES: list[tuple[str, list[Step]]] = [
    (ESP, TRIED),
    (ESP + '[[source]]\npreset = "thingsboard"\n', [Step(f"list {AT}", out=LISTED)]),
    *(
        (text, [Step(f"list {AT}", 2, err=[said])])
        for text, said in (
            ("[[source]]\n", "source 1, key name: write letters"),
            (ESP + ESP, EARLIER),
            (ESP + 'valeus = "."\n', "source 1 ('esp'), key valeus: there is no such key"),
            (ESP + 'valeus = "."\n', "did you mean values"),
            (SAME_PATH, "key path: ttn has /a/b"),
            ("[source]\n", "write [[source]] with two brackets"),
            ("listen = 1\n", "'listen' is no part of a source"),
            ("[[source]\n", "is not TOML"),
            ("[[source]]\n" * (ENTRIES_MAX + 1), "more than 200 sources"),
            ("#" * 1_048_577, "is larger than"),
        )
    ),
]


@pytest.mark.parametrize(("text", "steps"), FILES, ids=range(len(FILES)))
def test_sources_tells_what_would_be_stored_and_what_to_write(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, steps: list[Step]
) -> None:
    """Faults of the file name the table, the key, and what to write instead."""
    file.write_text(text)
    here = Here(capsys, lambda words: main(["sources", *words]))
    assert here.faults(steps, file=file) == []


def test_doctor_says_what_is_in_the_file(file: Path) -> None:
    """The service would not start with a wrong one."""
    settings = Settings(sources_file=str(file))
    assert next(listed_checks(settings)) == ("sources", "ok", "1 source: esp")
    file.write_text("x")
    assert next(listed_checks(settings)).state == "FAIL"
