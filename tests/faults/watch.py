"""Watches a service while harm is done to it: memory, open files, balance, dead letters.

It checks I8 (bounded) and I9 (the balance at each quiet moment, in each run of the process).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Protocol

from loadgen.proof.balance import read_balance
from tests.faults.matrix import Fault
from tests.system.service import Service

LOOK_S = 0.3
RSS_MB_MAX = 300.0  # 64 MiB of buffer, 64 MiB of bodies, and Python
DLQ_MB_MAX = 64.0


class Watched(Protocol):
    """What a Watch needs to know; a World is one."""

    service: Service
    state: Path
    fault: Fault

    @property
    def admin_url(self) -> str:
        """Where the service's admin port is."""


class Watch:
    """Watches until `stop`."""

    def __init__(self, world: Watched) -> None:
        self.rss_mb = 0.0
        self.fds = 0
        self.broken: list[str] = []
        self._world = world
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Stop watching. May be called again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                self.broken.append(f"the watch ended: {task.exception()!r}")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            service = self._world.service
            if not service.running:
                continue
            with contextlib.suppress(OSError, AssertionError, ValueError, IndexError):
                self._sizes(service.pid)
            balance = await read_balance(self._world.admin_url)
            if balance is None or balance.held:
                continue
            if not balance.is_zero:
                self._say(f"I9: at a quiet moment the balance left {balance.left_over:g} over")
            if balance.dropped:
                self._say("I9: the service says that it dropped readings")

    def _sizes(self, pid: int) -> None:
        status = Path(f"/proc/{pid}/status").read_text()
        rss_kb = int(status.split("VmRSS:")[1].split()[0])
        self.rss_mb = max(self.rss_mb, rss_kb / 1024)
        self.fds = max(self.fds, len(list(Path(f"/proc/{pid}/fd").iterdir())))
        if self.rss_mb > RSS_MB_MAX:
            self._say(f"I8: {RSS_MB_MAX:g} MB of memory exceeded")
        files_max = self._world.fault.files_max
        if self.fds > files_max:
            self._say(f"I8: {files_max} open files exceeded: {self.fds}")
        folder = self._world.state / "dead-letters"
        size = sum(each.stat().st_size for each in folder.glob("*")) / 1e6
        if size > DLQ_MB_MAX:
            self._say(f"I8: {DLQ_MB_MAX:g} MB of dead letters exceeded")

    def _say(self, said: str) -> None:
        if said not in self.broken:
            self.broken.append(said)
