"""docs/use/senders.md: its command is run, and its tables are compiled."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.app.post_rules import make_sources
from ingest.config.settings import Settings
from ingest.formats.mapped.source import KEYS, PRESETS
from tests.support.documents import REPOSITORY, fences
from tests.support.receiver import head, running_receiver

SOURCES = (REPOSITORY / "docs/use/senders.md").read_text().split("\n## Sources")[1]
MQTT = (REPOSITORY / "docs/grow/mqtt.md").read_text()
FIRST, *OTHERS = [each.text for each in fences(SOURCES) if each.language == "toml"]
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'


async def test_first_table_of_docs_sources_md_reads_the_body_of_the_device(tmp_path: Path) -> None:
    """Its command prints the readings, and a post stores them; the answer is the one shown."""
    file = tmp_path / "sources.toml"
    file.write_text(FIRST)
    (command,) = [each.text for each in fences(SOURCES) if each.language == "sh"]
    assert await printed(command, tmp_path) == [["esp-1", "temp", "21.4"], ["esp-1", "hum", "40.0"]]
    async with running_receiver(sources_file=str(file)) as receiver:
        post = head("POST", "/v1/in/esp", {"Content-Length": str(len(BODY))}) + BODY
        reply = await receiver.send(post)
        assert '{"accepted": 2, "faulty": 0, "ignored": 0}' in SOURCES
        assert reply.document == {"accepted": 2, "faulty": 0, "ignored": 0}


async def test_table_of_docs_mqtt_md_reads_a_bare_number(tmp_path: Path) -> None:
    """Its command prints the reading. For the messages themselves see integration/test_mqtt.py."""
    (table,) = [each.text for each in fences(MQTT) if each.language == "toml"]
    (tmp_path / "sources.toml").write_text(table)
    (command,) = [each.text for each in fences(MQTT) if "sources try" in each.text]
    assert await printed(command, tmp_path) == [["greenhouse", "temp", "21.5"]]


async def printed(command: str, folder: Path) -> list[list[str]]:
    """Run a command of a page; return the words of each reading but its time."""
    for name in ("run", "ingest"):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ingest "$@"\n')
        (folder / name).chmod(0o755)
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-c", command],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return [line.split()[1:] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("text", OTHERS, ids=["presets", "examples"])
def test_tables_of_docs_sources_md_are_valid(text: str, tmp_path: Path) -> None:
    """Also those that were not tried with their senders."""
    file = tmp_path / "sources.toml"
    file.write_text(text)
    assert make_sources(Settings(sources_file=str(file)))


def test_docs_sources_md_names_every_key_and_preset() -> None:
    """In its tables."""
    named = {word for line in SOURCES.splitlines() for word in line.split("|")[1:2]}
    shown = " ".join(named)
    assert not [each for each in (*KEYS, *PRESETS) if f"`{each}`" not in shown and each != "preset"]
