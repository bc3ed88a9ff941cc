"""docs/use/senders.md: commands and programs are run as they stand, but for the port."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import pytest

from tests.clients.libraries import CLIENTS, NODE
from tests.support.documents import REPOSITORY, fences
from tests.support.receiver import running_receiver

TEXT = (REPOSITORY / "docs/use/senders.md").read_text().split("\n## Line protocol")[0]
HERE = "127.0.0.1:8080"


@pytest.mark.parametrize(
    ("language", "command"),
    [
        ("sh", ["sh", "-c"]),
        ("python", [sys.executable, "-c"]),
    ],
)
async def test_block_stores_two_readings(language: str, command: list[str]) -> None:
    """A reader who types it has two readings in the table."""
    (block,) = [each.text for each in fences(TEXT) if each[0] == language and not each.not_run]
    async with running_receiver() as receiver:
        text = block.replace(HERE, receiver.address)
        assert text != block
        done = await asyncio.to_thread(
            subprocess.run, [*command, text], capture_output=True, text=True, check=True, timeout=30
        )
        assert " 204 No Content" in done.stdout or not done.stdout, done
        assert sum(each.rows for each in receiver.inlet.blocks) == 2


def test_no_other_block_pretends_to_be_run() -> None:
    """What no test runs is marked as text."""
    assert {each.language for each in fences(TEXT)} == {"sh", "python", "text"}


def test_libraries_that_were_tried_are_those_of_run_clients_with_their_versions() -> None:
    """The table has the versions of the lock files."""
    lock = (REPOSITORY / "tests/clients/requirements.lock").read_text()
    packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
    for client in CLIENTS:
        found = re.search(rf"^{re.escape(client.library)}==([\d.]+)", lock, re.MULTILINE)
        version = found[1] if found else packages[f"node_modules/{client.library}"]["version"]
        short = ".".join(version.split(".")[:2])
        row = rf"^\| {re.escape(client.library)} {short} .*\| yes \|$"
        assert re.search(row, TEXT, re.MULTILINE), (client.library, version)
