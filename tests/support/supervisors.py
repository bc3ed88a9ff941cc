"""An `ingest up` in this process, with the small children of tiny_child.py, and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ingest.app.metrics_and_causes import advice
from ingest.app.process import Process
from ingest.config.settings import Settings
from ingest.roles.supervisor.children import ChildTimes
from ingest.roles.supervisor.up import Supervisor
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import StateFolder
from tests.support.receiver import GOOD, Client, post, until

TINY = (sys.executable, "-P", str(Path(__file__).parent / "tiny_child.py"))
TIMES = ChildTimes(ready_s_max=15, silent_s_max=1, leave_s_max=15)
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"  # the small children use none


class Up:
    """A supervisor that runs; `lines` are those for a person."""

    def __init__(self, folder: StateFolder, times: ChildTimes, settings: dict[str, Any]) -> None:
        self.lines: list[str] = []
        given = {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "state_dir": str(folder.path),
            "database_url": NO_DATABASE,
            **settings,
        }
        self.supervisor = Supervisor(
            Settings(**given),
            folder,
            Process("up", self.lines.append, Notifier()),
            program=TINY,
            times=times,
            words=advice(Settings(**given), ""),
            terminal=False,
        )
        self.running = asyncio.create_task(self.supervisor.run())

    async def start(self) -> None:
        """Wait until it has greeted. Raises its error."""
        await until(lambda: self.lines or self.running.done(), 20)
        if self.running.done():
            self.running.result()

    @property
    def address(self) -> str:
        """The data port."""
        bound, port = self.supervisor._sockets[0].getsockname()
        return f"{bound}:{port}"

    @property
    def pids(self) -> dict[str, int]:
        """The process of each instance that is ready."""
        children = self.supervisor._children
        assert children is not None
        return {
            each.instance: each.child.pid
            for each in children.slots
            if each.child is not None and each.child.ready.is_set()
        }

    async def replaced(self, instance: str, old: int) -> None:
        """Wait until an instance has another process."""
        await until(lambda: self.pids.get(instance) not in (None, old), 20)

    async def stop(self) -> int:
        """Stop it; return the exit code."""
        self.supervisor._process.stopping.set()
        return await self.running


@asynccontextmanager
async def running_up(
    folder: Path, *, times: ChildTimes = TIMES, **settings: Any
) -> AsyncIterator[Up]:
    """Run one. Its signal handlers are of this process: they are undone at the end."""
    state = StateFolder.open(folder)
    try:
        with state.lock():
            up = Up(state, times, settings)
            try:
                await up.start()
                yield up
            finally:
                with contextlib.suppress(Exception):  # `start` has raised it
                    await up.stop()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)


class Devices:
    """Clients that post all the time; `faults` are the posts that did not get a 202."""

    def __init__(self, address: str) -> None:
        self.address = address.removeprefix("http://")
        self.connect: Callable[[str], Awaitable[Client]] = Client.connect
        self.served: dict[int, int] = {}  # posts by the pid of the gateway
        self.faults: list[str] = []
        self._more = True

    def body(self) -> bytes:
        """Return the next post."""
        return GOOD

    def answered(self, status: int, body: bytes, _posted: bytes) -> None:
        """Note what became of a post."""
        if status == 202:
            pid = int(body)
            self.served[pid] = self.served.get(pid, 0) + 1
        else:
            self.faults.append(f"{status} {body!r}")

    async def new_connections(self, per_s: float) -> None:
        """Open a connection for each post, at a rate, whatever the answers do."""
        loop = asyncio.get_running_loop()
        posts: set[asyncio.Task[None]] = set()
        next_s = loop.time()
        while self._more:
            task = asyncio.create_task(self.one())
            posts.add(task)
            task.add_done_callback(posts.discard)
            next_s += 1 / per_s
            await asyncio.sleep(max(0.0, next_s - loop.time()))
        await asyncio.gather(*posts)

    async def one(self) -> None:
        """Post once on a new connection."""
        client: Client | None = None
        try:
            client = await self.connect(self.address)
            body = self.body()
            await client.send(post(body))
            reply = await client.reply(20)
            self.answered(reply.status, reply.body, body)
        except (OSError, EOFError, TimeoutError) as error:
            self.faults.append(f"new connection: {error!r}")
        finally:
            if client is not None:
                await client.close()

    async def keep_alive(self, pause_s: float) -> None:
        """Post again and again on one connection, until the gateway ends it; then on the next."""
        client: Client | None = None
        while self._more:
            try:
                if client is not None and client.reader.at_eof():  # as each pool of clients looks
                    await client.close()
                    client = None
                client = client or await self.connect(self.address)
                body = self.body()
                await client.send(post(body))
                reply = await client.reply(20)
                self.answered(reply.status, reply.body, body)
                if reply.headers.get("connection") == "close":
                    await client.close()
                    client = None
            except (OSError, EOFError, TimeoutError) as error:
                self.faults.append(f"kept connection: {error!r}")
                if client is not None:
                    await client.close()
                    client = None
            await asyncio.sleep(pause_s)
        if client is not None:
            await client.close()

    @asynccontextmanager
    async def posting(self, per_s: float = 100, kept: int = 4) -> AsyncIterator[None]:
        """Post while the block runs."""
        tasks = [asyncio.create_task(self.new_connections(per_s))]
        tasks += [
            asyncio.create_task(self.keep_alive(0.02 + 0.05 * (each % 10))) for each in range(kept)
        ]
        try:
            yield
        finally:
            self._more = False
            await asyncio.gather(*tasks)
