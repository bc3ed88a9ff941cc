"""A process: its signals and tasks, its start and its stop, its last line and its exit code.

The first signal sets `stopping`: the drain begins. The next one sets `halted`, as does the end of
the drain: what is left stays as it is.
Promises: what was started is closed, whatever happens. No task ends unseen: an unexpected error in
one stops the process in order. The last line says what became of all readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from ingest.system import logs
from ingest.system import signals as app_signals
from ingest.system.clock import sleep_unless
from ingest.system.notify import Notifier
from ingest.system.waiting import unless

EXIT_OK, EXIT_BROKEN, EXIT_LOST = 0, 1, 3  # of all that run until a signal
TASKS_S_MAX = 5.0  # until all tasks have ended


class Process:
    """One process. Make it in the running event loop; then `run` it once.

    `announce` gets lines for a person. `told` gets the sums of the last line before it is said.
    """

    def __init__(self, name: str, announce: Callable[[str], None], notifier: Notifier) -> None:
        self.stopping = asyncio.Event()
        self.halted = asyncio.Event()
        self.broken = False  # a part has died
        self.announce = announce
        self.notifier = notifier
        self.told: Callable[[Mapping[str, int]], None] = lambda _sums: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logs.get_logger(name)

    def guard(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task, which its owner ends. An unexpected error in it stops the process."""
        return asyncio.create_task(self._root(work))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that ends by one of the two events: `wait_tasks` waits for it."""
        task = self.guard(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _root(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._log.critical("task_died", task=getattr(work, "__qualname__", ""), exc_info=True)
            self.broken = True
            self.stopping.set()

    async def run(
        self,
        start: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], Awaitable[Mapping[str, int]]],
        close: Callable[[], Coroutine[Any, Any, None]],
        *,
        in_words: Callable[[], str],
    ) -> int:
        """Start, wait until somebody stops it, stop, close; return the exit code.

        If it is stopped before it has started, the start is cancelled. `stop` returns the sums of
        the last line; if it has `lost`, that must be 0. `close` is called in any case, when both
        events are set. `in_words` is the state as a text for a process manager.
        """
        app_signals.handle(self.stopping, self.halted)
        async with self.notifier.reporting(in_words):
            try:
                await unless(self.stopping, start())
                await self.stopping.wait()
                self.notifier.stopping()
                sums = await stop()
                self._account(sums)
            finally:
                self.stopping.set()
                self.halted.set()
                await self._root(close())  # its errors do not replace what is known by now
        if sums.get("lost"):
            return EXIT_LOST
        return EXIT_BROKEN if self.broken else EXIT_OK

    def _account(self, sums: Mapping[str, int]) -> None:
        app_signals.ignore()  # before the message: its reader may send another signal
        self.told(sums)
        self.announce(f"drained: {' '.join(f'{name}={n}' for name, n in sums.items())}")

    async def halt(self, within_s: float, abort: Callable[[], None] = lambda: None) -> None:
        """Wait until somebody hastens the stop, at most so long; then set `halted`, and abort."""
        await sleep_unless(self.halted, within_s)
        self.halted.set()
        abort()

    async def wait_tasks(self) -> None:
        """Wait until all tasks have ended, at most TASKS_S_MAX."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TASKS_S_MAX)
