"""The background tasks of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ingest.system import logs

EXIT_OK, EXIT_BROKEN, EXIT_LOST = 0, 1, 3  # of serve, up, gateway and writer
TASKS_S_MAX = 5.0  # until all tasks have ended


async def first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Return once one of them has ended; the others are cancelled."""
    tasks = [asyncio.create_task(each) for each in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Tasks:
    """Tasks that run until they end by themselves. An unexpected error in one sets `stopping`."""

    def __init__(self, stopping: asyncio.Event, name: str) -> None:
        self.broken = False  # a task has died
        self._stopping = stopping
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logs.get_logger(name)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task."""
        task = asyncio.create_task(self._root(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _root(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it; an unexpected error is logged and stops the process in order."""
        try:
            await work
        except Exception:
            self._log.critical("task_died", task=getattr(work, "__qualname__", ""), exc_info=True)
            self.broken = True
            self._stopping.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until all tasks have ended, at most `timeout_s`."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
