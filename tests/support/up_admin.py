"""The admin port of several processes for tests, and real processes that report to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from ingest.admin.exposition import Exposition
from ingest.app.admin import AdminSide
from ingest.config.settings import Settings
from ingest.model.causes import FIELDS
from ingest.roles.supervisor.overview import Overview
from tests.support.letters import folder_queue
from tests.support.receiver import Client, Reply
from tests.support.statuses import FakeProcess

TOKEN = "s3cret-token-of-the-test"
# A process with a real ledger: it reports each second, counts what a line on its input says, and
# ends with a last status when its input ends.


class UpRig:
    """The running port. `told` are the messages that it sent to processes."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.dead_letters = folder_queue(folder, bytes_max=10**8, segment_bytes=10**7, keep_days=1)
        settings = Settings(database_unsafe=True, admin_listen="127.0.0.1:0")
        overview = self.up = Overview(
            settings,
            dead_letters=self.dead_letters.stats,
            free_bytes=lambda: 10**12,
            advice={name: f"<{name}>" for name in FIELDS},
        )
        self.admin = AdminSide(
            settings,
            overview.observed._replace(ledger=overview.own),
            dead_letters=self.dead_letters,
            token=TOKEN,
            release_hold=partial(
                overview.release_hold, lambda name, message: self.told.append((name, message))
            ),
            several=overview.observed,
            exposition=Exposition(overview.instances.shown),
        )
        self.address = ""

    def hear(self, name: str, process: FakeProcess) -> None:
        """Take the next status of a process."""
        self.up.status(name, process.sent())

    async def ask(self, target: str, body: Any = None, **headers: str) -> Reply:
        """Send a request; with a body as an operator who has the token."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = {"Host": self.address, **headers}
        if body is not None:
            lines |= {"Authorization": f"Bearer {TOKEN}", "Content-Length": str(len(data))}
        head = "\r\n".join(
            [
                f"{'GET' if body is None else 'POST'} {target} HTTP/1.1",
                *(f"{name}: {value}" for name, value in lines.items()),
            ]
        )
        client = await Client.connect(self.address)
        try:
            await client.send(f"{head}\r\n\r\n".encode() + data)
            return await client.reply()
        finally:
            await client.close()

    async def json(self, target: str) -> Any:
        """Return the JSON document of a page."""
        return json.loads((await self.ask(target)).body)

    async def metrics(self) -> dict[str, float]:
        """Return all samples by name and labels."""
        text = (await self.ask("/metrics")).body.decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}


@contextlib.asynccontextmanager
async def running_up(folder: Path) -> AsyncIterator[UpRig]:
    """Run the port on a free port of the loopback."""
    rig = UpRig(folder)
    await rig.dead_letters.open()
    rig.address = await rig.admin.start("127.0.0.1:1")
    stop = asyncio.Event()
    shown = asyncio.create_task(rig.up.show(rig.admin.dashboard, stop))
    try:
        yield rig
    finally:
        stop.set()
        await shown
        await rig.admin.close()
        await rig.dead_letters.close()
