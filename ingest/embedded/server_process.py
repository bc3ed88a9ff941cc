"""A server program in a folder of ours: it is started, watched, started again, and stopped.

PostgreSQL and nats-server are two of them; what is different is in their own files.
Promises: no process is left by a start that fails or is cancelled. If only the server ends, it is
started again, with longer and longer pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

from ingest.model.errors import StartError
from ingest.system import clock
from ingest.system.files import Lock
from ingest.system.logs import get_logger
from ingest.system.waiting import Backoff

START_S_MAX = 120.0  # it reads its store, or recovers after a crash
RESTART_S_MIN, RESTART_S_MAX = 0.1, 10.0
READY_LOOK_S = 0.01
AGAIN_S = 0.1  # after a start that failed because of something that passes

_log = get_logger("embedded")

Steps = tuple[tuple[signal.Signals, float], ...]


class Launched(NamedTuple):
    """A process, and what returns the words that it has said since its start."""

    process: asyncio.subprocess.Process
    said: Callable[[], str]


class Server(ABC):
    """One such server in `folder`, which writes to `log_file`. Start it once, then `stop`.

    `program` and `what` name it in errors: `PostgreSQL`, `a database`. `end_steps` are the signals
    that end it, each with its patience in seconds. `in_use`: a start that fails with these words
    is tried again, for `in_use_s_max`.
    """

    program: ClassVar[str]
    what: ClassVar[str]
    in_use: ClassVar[str]
    in_use_s_max: ClassVar[float]
    end_steps: ClassVar[Steps]

    def __init__(self, folder: Path, log_file: Path) -> None:
        self.folder = folder
        self.log_file = log_file
        self.lock: Lock | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.stopping = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        if self.process is None or self.process.returncode is not None:
            return None
        return self.process.pid

    async def start(self) -> None:
        """Start the server, and wait until it can be used. Raises StartError.

        If it is cancelled, no server goes on running.
        """
        assert self._supervision is None, "started once, until stopped"
        self.stopping.clear()
        try:
            async with contextlib.AsyncExitStack() as undo:
                undo.push_async_callback(self.end)
                await self.begin()
                undo.pop_all()
        except OSError as error:
            raise StartError(f"cannot start {self.what} in {self.folder}: {error}") from error
        self._supervision = asyncio.create_task(self._supervise(), name=self.program)

    async def stop(self) -> None:
        """Stop the server. Repeatable."""
        if self._supervision is not None:
            self.stopping.set()
            await asyncio.shield(self._supervision)
            self._supervision = None

    async def _supervise(self) -> None:
        """Keep a server running until `stop` is called; then stop it."""
        try:
            if await self.has_turn():
                await self._keep_running()
        finally:
            await self.end()

    async def _keep_running(self) -> None:
        backoff = Backoff(RESTART_S_MIN, RESTART_S_MAX)
        pause_s = 0.0
        while not await clock.sleep_unless(self.stopping, pause_s):
            pause_s = 0.0
            try:
                if self.process is None:
                    await self.launch_again()
                    _log.info("server_restarted", program=self.program, pid=self.pid)
                    continue
                await self.watch(self.process)
            except Exception as error:  # whatever it is: nobody else would try again
                why = str(error) or repr(error)
                _log.error("server_not_restarted", program=self.program, why=why)
            pause_s = backoff.next_s()
            if self.process is not None and not self.stopping.is_set() and self.pid is None:
                _log.warning(
                    "server_exited",
                    program=self.program,
                    code=self.process.returncode,
                    restart_in_s=round(pause_s, 1),
                )
                self.process = None

    async def launch(self) -> None:
        """Start the program and wait until it is ready, or `stop` is called. Raises StartError."""
        started_s = clock.monotonic_s()
        while True:
            launched = await self.spawn()
            self.process = process = launched.process
            while process.returncode is None:
                if await self.is_ready(process) or self.stopping.is_set():
                    self.publish()
                    return
                if clock.monotonic_s() - started_s > START_S_MAX:
                    await end_process(process, self.end_steps)
                    raise StartError(
                        f"{self.program} is not ready after {START_S_MAX:g} s: {self.log_file}"
                    )
                await asyncio.sleep(READY_LOOK_S)
            self.process = None
            said = launched.said()
            is_late = clock.monotonic_s() - started_s > self.in_use_s_max
            if is_late or not self.may_try_again(said):
                raise StartError(f"{self.program} did not start ({self.log_file}): {said}")
            await asyncio.sleep(AGAIN_S)

    def may_try_again(self, said: str) -> bool:
        """Whether the start has failed because of something that passes."""
        return self.in_use in said

    async def end(self) -> None:
        """End the server if it runs, and unlock the folder."""
        try:
            if self.process is not None:
                await end_process(self.process, self.end_steps)
                self.process = None
        finally:
            if self.lock is not None:
                self.lock.close()
                self.lock = None

    @abstractmethod
    async def begin(self) -> None:
        """Lock the folder, and launch the server. Raises StartError and OSError."""

    async def has_turn(self) -> bool:
        """Wait until this process may run the server; return False at a stop."""
        return True

    @abstractmethod
    async def spawn(self) -> Launched:
        """Start the program. Raises StartError and OSError."""

    @abstractmethod
    async def is_ready(self, process: asyncio.subprocess.Process) -> bool:
        """Whether the server can be used."""

    @abstractmethod
    def publish(self) -> None:
        """Tell other processes where the server is."""

    async def launch_again(self) -> None:
        """Start the server again."""
        await self.launch()

    @abstractmethod
    async def watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of the server, or a stop. End a server that is broken."""


async def end_process(process: asyncio.subprocess.Process, steps: Steps) -> None:
    """Send one signal after the other until the process has ended."""
    for number, patience_s in steps:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await process.wait()


def tail_of(path: Path, start: int = 0) -> str:
    """Return the end of a log, from `start` on at the earliest; nothing if there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()[-600:].decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
