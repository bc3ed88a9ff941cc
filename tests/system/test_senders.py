"""docs/senders.md and docs/formats.md: commands are run as they stand, but for the port."""

from __future__ import annotations

import asyncio
import json
import subprocess

from tests.support.documents import REPOSITORY, fences
from tests.support.receiver import running_receiver

PAGE = REPOSITORY / "docs/senders.md"


async def test_command_of_docs_senders_md_stores_two_readings() -> None:
    """The status is the one that the page names."""
    (block,) = [each.text for each in fences(PAGE.read_text()) if each.language == "sh"]
    async with running_receiver() as receiver:
        command = block.replace("127.0.0.1:8080", receiver.address)
        assert command != block
        done = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", command], capture_output=True, text=True, check=False
        )
        assert " 204 No Content" in done.stdout, done
        assert sum(each.rows for each in receiver.inlet.blocks) == 2


async def test_commands_of_docs_formats_md_are_answered_as_it_says() -> None:
    """Each command with the answer that is shown below it."""
    shown = fences((REPOSITORY / "docs/formats.md").read_text())
    assert [each.language for each in shown] == ["sh", "json"] * 3
    async with running_receiver() as receiver:
        for command, answer in zip(shown[::2], shown[1::2], strict=True):
            text = command.text.replace("127.0.0.1:8080", receiver.address)
            done = await asyncio.to_thread(
                subprocess.run, ["sh", "-c", text], capture_output=True, text=True, check=False
            )
            assert json.loads(done.stdout) == {**json.loads(answer.text), "ack": "buffered"}, done
        kept = [(each.device_id, each.metric, each.value) for each in receiver.inlet.readings]
        device = "urn:dev:mac:0024befffe804ff1"
        assert kept == [
            *(("room-3", "co2", 415.0), ("room-3", "co2", 416.0), ("room-3", "humidity", 40.0)),
            ("room-3", "on", 1.0),
            *((device, "temperature", 21.5), (device, "humidity", 40.0), (device, "door", 1.0)),
        ]
