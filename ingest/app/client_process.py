"""The frame of a process beside the service: `ingest forward` and `ingest mqtt`.

It has a folder of its own, which it locks, dead letters of its own, and a small admin port.
Promises: what was started is closed, whatever happens. The last line says what the process did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ingest.app.rules import make_rules
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.folder import segment_bytes
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.system import logs
from ingest.system import signals as app_signals
from ingest.system.clock import sleep_unless
from ingest.system.notify import Notifier
from ingest.system.state_folder import StateFolder

TIDY_S = 3600.0
CLOSE_S_MAX = 5.0
EXIT_OK, EXIT_BROKEN = 0, 1


class ClientService(Protocol):
    """What runs in it: `start`, `run` until `stopping` is set, `close` in any case.

    `halted` is set by a second signal: what is on its way ends now.
    """

    stopping: asyncio.Event
    halted: asyncio.Event

    @property
    def broken(self) -> bool:
        """Whether a part has failed."""

    def in_words(self) -> str:
        """Return the state as a text for a process manager."""

    async def start(self, admin_listen: str) -> str:
        """Start all parts; return the bound HOST:PORT of the admin port."""

    async def run(self) -> None:
        """Work until `stopping` is set, and until nothing is on its way."""

    def summary(self) -> str:
        """Return what it has done, as a line for people and programs."""

    async def close(self) -> None:
        """End all tasks, and close everything."""


async def run_client(
    settings: Settings,
    role: str,
    name: str,
    make: Callable[[StateFolder], ClientService],
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
        notifier = Notifier.from_environment()
        service = make(folder)
        app_signals.handle(service.stopping, service.halted)
        async with notifier.reporting(service.in_words):
            try:
                listen = await service.start(admin_listen)
                notifier.ready()
                announce(f"{does}; probes and metrics: http://{listen}")
                await service.run()
            finally:
                notifier.stopping()
                await service.close()
        app_signals.ignore()  # before the message: its reader may send another signal
        announce(service.summary())
        return EXIT_BROKEN if service.broken else EXIT_OK


def make_dead_letters(settings: Settings, folder: StateFolder) -> DeadLetterQueue:
    """Return the dead letters of such a process. It replays nothing by itself."""
    return DeadLetterQueue(
        folder.dead_letters,
        bytes_max=settings.dlq_bytes_max,
        segment_bytes=segment_bytes(settings.dlq_bytes_max),
        keep_days=settings.dlq_keep_days,
        auto_replay=False,
        rules=make_rules(settings),
    )


async def tidy(dead_letters: DeadLetterQueue, stopping: asyncio.Event) -> None:
    """Remove what nobody needs any more from the dead letters, once an hour."""
    while not await sleep_unless(stopping, TIDY_S):
        await dead_letters.tidy()
