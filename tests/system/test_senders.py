"""docs/senders.md: its command is run as it stands, but for the port."""

from __future__ import annotations

import asyncio
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
