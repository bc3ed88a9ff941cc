"""A process beside the service, which delivers until all is taken: `ingest forward`, `ingest mqtt`.

It has a folder of its own, which it locks, dead letters of its own, and a small admin port.
Order of the start: state folder, dead letters, admin port, broker, posts.
Promises: no message is acknowledged that was not handled. A stop needs no answer of the server that
takes the posts.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import orjson

from ingest import __version__
from ingest.admin.exposition import of_one
from ingest.admin.port import Admin
from ingest.app.post_rules import folder_letters
from ingest.app.process import Process
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings, split_address
from ingest.http_client.client import HttpClient
from ingest.model.ledger import Values
from ingest.system import logs
from ingest.system.clock import unix_us
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import StateFolder


class Work(Protocol):
    """What such a process does: it takes messages of a broker, and posts what they hold."""

    def oldest_us(self) -> int | None:
        """Return when the oldest that is held came, in Unix microseconds; None if none is held."""
        ...

    async def run(self, stopping: asyncio.Event, aborted: asyncio.Event, stop_s_max: float) -> None:
        """Post until `stopping` is set. Then posts under way have `stop_s_max` to end.

        They end at once when `aborted` is set.
        """
        ...


class ClientService(ABC):
    """What runs in it, named `name`: a subclass makes its `work`, which posts with the `client`.

    `role` is the label of its metrics, `works` the state in which all works.
    """

    role: ClassVar[str]
    works: ClassVar[str]
    work: Work

    def __init__(
        self,
        settings: Settings,
        name: str,
        client: HttpClient,
        folder: StateFolder,
        process: Process,
    ) -> None:
        self._settings = settings
        self._name = name
        self._client = client
        self.process = process
        self._working: asyncio.Task[None] | None = None
        self.log = logs.get_logger(self.role)
        self.dead_letters = folder_letters(settings, folder.dead_letters, auto_replay=False)
        self._admin = Admin(of_one(__version__, self.metrics, (self.role, name)), self.readyz)

    @abstractmethod
    def metrics(self) -> Values:
        """Return the values of all metrics now."""

    @abstractmethod
    def trouble(self) -> tuple[str, str]:
        """Return the state in which something does not work, and why; nothing if all works."""

    @abstractmethod
    async def connect(self) -> None:
        """Start all that comes before the posts. Raises StartError.

        If the broker is out of reach, it is tried on, and /readyz says so.
        """

    @abstractmethod
    def sums(self) -> Mapping[str, int]:
        """Return what it has done."""

    def further(self) -> Mapping[str, str]:
        """Return what /readyz says beside the state."""
        return {}

    def state(self) -> tuple[str, str]:
        """Return the state, and why it is not the one in which all works."""
        if self.process.stopping.is_set():
            return "draining", ""
        state, why = self.trouble()
        return state or self.works, why

    def in_words(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        return ": ".join(filter(None, self.state()))

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz."""
        state, why = self.state()
        return 200 if state == self.works else 503, orjson.dumps(
            {"state": state, "reason": why, self.role: self._name, **self.further()}
        )

    def oldest_age_s(self) -> float:
        """Return the age of the oldest that it holds."""
        oldest_us = self.work.oldest_us()
        return 0.0 if oldest_us is None else max(0.0, (unix_us() - oldest_us) / 1e6)

    async def start(self, admin_listen: str) -> str:
        """Start all parts; return the bound HOST:PORT of the admin port. Raises StartError."""
        await self.dead_letters.open()
        listen = await self._admin.start(*split_address(admin_listen))
        await self.connect()
        process = self.process
        process.spawn(self.dead_letters.tidy(process.stopping))
        self._working = process.spawn(
            self.work.run(process.stopping, process.halted, self._settings.drain_s_max)
        )
        return listen

    async def stop(self) -> Mapping[str, int]:
        """Wait until nothing is on its way; return what it has done."""
        if self._working is not None:
            await self._working
        return self.sums()

    async def close(self) -> None:
        """End all tasks, and close everything. Call it in any case."""
        await self.process.wait_tasks()
        await self._client.close()
        await self.dead_letters.close()
        await self._admin.close()


async def run_client(
    settings: Settings,
    role: str,
    name: str,
    make: Callable[[StateFolder, Process], ClientService],
    *,
    admin_listen: str,
    does: str,
    announce: Callable[[str], None],
) -> int:
    """Run it until SIGTERM or SIGINT; return the exit code. `does` begins its first line.

    Raises StartError and ConfigError with a sentence for the user.
    """
    logs.configure(settings.log_level, form=settings.log_format)
    folder = StateFolder.open(StateFolder(state_dir(settings)).of_process(role, name).path)
    with folder.lock():
        process = Process(role, announce, Notifier.from_environment())
        service = make(folder, process)

        async def start() -> None:
            listen = await service.start(admin_listen)
            process.notifier.ready()
            announce(f"{does}; probes and metrics: http://{listen}")

        return await process.run(start, service.stop, service.close, in_words=service.in_words)
