"""The main house where nobody has installed the annexes: their libraries, or their folders too.

`ingest serve` needs none of them. A command or a setting of an annex says what to install.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest.app.annexes import COMMANDS, FOLDERS
from tests.system.service import REPOSITORY, Service, environment
from tests.system.test_partitioned import NAMES_SQL

# Runs `ingest` of a folder, and finds no library of an annex. Several commands are divided by "/".
PROGRAM = """
import sys

folder, *words = sys.argv[1:]
sys.path.insert(0, folder)
sys.modules.update(dict.fromkeys(("nats", "nats_server", "paho", "pyarrow")))
from ingest.cli.commands import main

assert sys.modules["ingest"].__file__.startswith(folder)
if "/" not in words:
    sys.exit(main(words))
while words:
    end = words.index("/")
    print("code", main(words[:end]), file=sys.stderr)
    words = words[end + 1 :]
"""
BROKER = "--broker-url nats://127.0.0.1:1"
DATABASE = "--database-url postgresql://u@127.0.0.1:1/d"
BEGIN = {  # with this a command would begin its work
    "up": DATABASE,
    "gateway": BROKER,
    "writer": f"{BROKER} {DATABASE}",
    "stream": f"show {BROKER}",
    "forward": f"--name a --to http://127.0.0.1:1 {BROKER}",
    "mqtt": "--mqtt-url mqtt://127.0.0.1:1 --topic a",
    "archive": "list",
}


@pytest.fixture
def main_house(open_tmp_path: Path) -> Path:
    """Give a folder with the package, without the folders of the annexes."""
    left_out = shutil.ignore_patterns("__pycache__")

    def ignored(folder: str, names: list[str]) -> set[str]:
        is_top = Path(folder) == REPOSITORY / "ingest"
        return left_out(folder, names) | (set(FOLDERS) if is_top else set())

    shutil.copytree(REPOSITORY / "ingest", open_tmp_path / "here" / "ingest", ignore=ignored)
    return open_tmp_path / "here"


def told_by(house: Path, *commands: str) -> list[tuple[str, int]]:
    """Return what each command tells, and its exit code."""
    words = [word for command in commands for word in (*command.split(), "/")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, house, *words],
        env=environment(measured=False),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    *parts, rest = done.stderr.split("code ")
    assert len(parts) == len(commands), done.stderr
    codes = [int(part.partition("\n")[0]) for part in (*parts[1:], rest)]
    told = [parts[0], *(part.partition("\n")[2] for part in parts[1:])]
    return list(zip(told, codes, strict=True))


async def test_serve_takes_and_stores_a_post(main_house: Path) -> None:
    """With a partition of today, which the main house makes; at the stop nothing is lost."""
    service = Service(
        main_house.parent / "state",
        program=("-c", PROGRAM, str(main_house)),
        partition_span="day",
    )
    async with service:
        await service.wait_state("accepting")
        answer = await service.post(
            [{"device_id": "d", "metric": "m", "value": 1}], ack="committed"
        )
        assert (answer.status, answer.document["accepted"]) == (200, 1)
        assert [row["n"] for row in await service.query("select count(*) n from readings")] == [1]
        found = {row["name"] for row in await service.query(NAMES_SQL, "readings")}
        assert f"readings_p{datetime.now(UTC):%Y%m%d}" in found
        code, output = await service.stop()
    assert (code, "lost=0" in output) == (0, True), output


def test_command_or_setting_says_what_to_install(main_house: Path) -> None:
    """Also if the folders are there, and only the libraries are not. Help lists all commands."""
    assert BEGIN.keys() == COMMANDS.keys()
    settings = [f"serve --keep-hot 30d {DATABASE}"]
    *told, of_setting = told_by(main_house, *(f"{name} {BEGIN[name]}" for name in BEGIN), *settings)
    assert of_setting[1] == 2
    assert "the setting keep_hot needs the extra `archive`" in of_setting[0]
    # To list an archive needs no library: only the table.
    with_folders = [name for name in BEGIN if name != "archive"]
    told += told_by(REPOSITORY, *(f"{name} {BEGIN[name]}" for name in with_folders))
    for name, (text, code) in zip([*BEGIN, *with_folders], told, strict=True):
        assert f"install iot-ingest[{COMMANDS[name].extra}]" in text, name
        assert code == 2, name
        assert '"level":"error"' not in text, text
    shown = " ".join(
        subprocess.run(
            [sys.executable, "-c", PROGRAM, main_house, "--help"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.split()
    )
    assert all(f"{name} {each.purpose}" in shown for name, each in COMMANDS.items())
