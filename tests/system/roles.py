"""Processes of roles for system tests: each with a file for its output; clients; their table."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tests.support.receiver import Client, post
from tests.system.service import environment

READING = b'{"device_id":"d","metric":"m","value":1,"ts":%d}'
_LISTENS = re.compile(r"http://[\d.]+:(\d+)")


class Running:
    """A process, and the file of its output."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    def output(self) -> str:
        """Return what it has said."""
        return self._log.read_text()

    async def line_with(self, *texts: str) -> str:
        """Return the first line of output that has one of the texts."""
        async with asyncio.timeout(30):
            while True:
                for line in self.output().splitlines():
                    if any(each in line for each in texts):
                        return line
                assert self.process.returncode is None, self.output()
                await asyncio.sleep(0.05)

    async def has_leader(self) -> None:
        """Wait until a nats-server of a cluster knows who leads it."""
        await self.line_with("new metadata leader", "Self is new JetStream cluster metadata leader")

    async def address(self) -> str:
        """Return where it takes posts, or where its page is."""
        found = _LISTENS.search(await self.line_with("http://"))
        assert found, self.output()
        return f"127.0.0.1:{found[1]}"

    async def stop(self) -> str:
        """Stop it in order; return its last line."""
        self.process.terminate()
        async with asyncio.timeout(40):
            assert await self.process.wait() == 0, self.output()
        return self.output().splitlines()[-1]


@asynccontextmanager
async def running(
    log: Path, *words: str, env: Mapping[str, str], folder: Path | None = None
) -> AsyncIterator[Running]:
    """Give a process that ends with the block. It starts in `folder`."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *words, stdout=out, stderr=asyncio.subprocess.STDOUT, env=environment(env), cwd=folder
        )
    try:
        yield Running(process, log)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await process.wait()


async def takes(address: str, first: int, count: int) -> None:
    """Post readings, again after a 503, until each has got its 202."""
    client = await Client.connect(address)
    try:
        for number in range(first, first + count):
            while True:
                await client.send(post(READING % (1_700_000_000_000_000 + number)))
                reply = await client.reply(20)
                if reply.status != 503:
                    break
            assert reply.status == 202, reply.body
    finally:
        await client.close()


async def has_rows(url: str, wanted: int) -> None:
    """Wait until the table has so many readings."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(40):
            while (there := await connection.fetchval("select count(*) from readings")) != wanted:
                assert there < wanted
                await asyncio.sleep(0.05)
    finally:
        await connection.close()
