"""The frame of a process beside the service: `ingest forward` and `ingest mqtt`.

It has a folder of its own, which it locks, dead letters of its own, and a small admin port.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ingest.app.process import Process
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.system import logs
from ingest.system.notify import Notifier
from ingest.system.state_folder import StateFolder


class ClientService(Protocol):
    """What runs in it."""

    def state(self) -> tuple[str, str]:
        """Return the state, and why it is not the one in which all works."""

    async def start(self, admin_listen: str) -> str:
        """Start all parts; return the bound HOST:PORT of the admin port. Raises StartError."""

    async def stop(self) -> Mapping[str, int]:
        """Wait until nothing is on its way; return what it has done."""

    async def close(self) -> None:
        """Close everything."""


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

        def in_words() -> str:
            return ": ".join(filter(None, service.state()))

        return await process.run(start, service.stop, service.close, in_words=in_words)
