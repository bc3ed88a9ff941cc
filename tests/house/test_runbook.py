"""The commands of the runbook do what the runbook says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest

from tests.support.documents import REPOSITORY, fences

RUNBOOK = (REPOSITORY / "deploy" / "RUNBOOK.md").read_text()
UNIT = (REPOSITORY / "deploy" / "iot-ingest.service").read_text()
PLACE = quote(str(REPOSITORY))
# How ./run says that messages name its commands; `./run words` prints what came of it.
(EXPORTED,) = re.findall(r"export INGEST_COMMAND=(?:.*\\\n)*.*\n", (REPOSITORY / "run").read_text())
WORDS = f'{EXPORTED}[ "$1" != words ] || exec printenv' + "".join(
    f" INGEST_COMMAND{each}" for each in ("", "_RESTART", "_LOG\n")
)
URL = "postgresql://ingest:secret@127.0.0.1:1/telemetry"


def unit_value(key: str) -> str:
    """Return the one value of a key of the systemd unit."""
    (found,) = (
        value
        for name, _, value in (line.partition("=") for line in UNIT.splitlines())
        if name == key
    )
    return found


def function() -> str:
    """Return the runbook's shell function `ingest` for a machine with systemd."""
    (found,) = (each.text for each in fences(RUNBOOK) if each.language == "sh")
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Give a folder as after the steps in the unit's head, and a `runuser`."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "ingest.env").write_text("#INGEST_BATCH_ROWS=100\nINGEST_WRITERS=7\n")
    (tmp_path / "etc" / "database_url").write_text(f"{URL}\n")
    for name, text in (
        ("runuser", '[ "$1 $2 $3" = "-u iot-ingest --" ] && shift 3 && exec "$@"'),
        ("run", f'{WORDS}PYTHONPATH={PLACE} exec {quote(sys.executable)} -m ingest "$@"'),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def typed(machine: Path, block: str, line: str) -> str:
    """Run the block and then a line on that machine; return the output."""
    script = block.replace("/etc/iot-ingest", f"{machine}/etc")
    script = script.replace("/opt/iot-ingest/run", f"{machine}/run")
    done = subprocess.run(
        ["/bin/sh", "-euc", f"{script}\n{line}"],
        cwd=machine,
        env={"PATH": f"{machine}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr


def test_command_with_systemd_sees_settings_and_database_of_the_service(machine: Path) -> None:
    """`doctor` and `config` check the service's settings, not the defaults."""
    block = function()
    assert typed(machine, block, "ingest config --print writers") == "7"
    assert typed(machine, block, "ingest config --print batch_rows") == "100"
    assert typed(machine, block, "ingest config --print database_url") == URL
    assert typed(machine, block, "ingest config --print state_dir") == "/var/lib/iot-ingest"
    unit = ["ingest", "systemctl restart iot-ingest", "journalctl -u iot-ingest"]
    assert typed(machine, block, "ingest words").splitlines() == unit
    assert all(each.replace("iot-ingest", "%N") in UNIT for each in unit[1:])
    forgotten = block.replace("set -a; ", "")
    assert typed(machine, forgotten, "ingest config --print writers") == "2"


def test_command_with_systemd_names_what_the_unit_names() -> None:
    """Folder and user of the command are those of the unit."""
    block = function()
    for named in (
        f"runuser -u {unit_value('User')} --",
        f". {unit_value('EnvironmentFile').removeprefix('-')}\n",
        f"$(cat {unit_value('LoadCredential').partition(':')[2]})",
        f"STATE_DIRECTORY=/var/lib/{unit_value('StateDirectory')}\n",
        f"{unit_value('ExecStart').partition('/.venv/')[0]}/run ",
    ):
        assert named in block
