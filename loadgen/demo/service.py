"""The demo's service: `ingest serve` as a child process, and its output.

Promises: the service writes only to the given folder, for any variables of the shell; it ends when
the demo ends, even by SIGKILL (Linux). Does not: start it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

STOP_S_MAX = 60.0
LINES_KEPT = 20
NOT_INHERITED = ("INGEST_DATABASE_URL", "INGEST_STATE_DIR", "INGEST_CONFIG", "STATE_DIRECTORY")


class ServiceEnded(Exception):
    """The service ended by itself, or could not start; the text has its last lines."""


class Service:
    """`ingest serve` as a child process, and its output."""

    def __init__(self, state_dir: Path, flags: Sequence[str]) -> None:
        self.url = ""
        self.metrics_url = ""
        self.log_path = state_dir / "demo.log"
        self._state_dir = state_dir
        self._flags = flags
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()

    async def start(self) -> None:
        """Start it and wait until it has printed its addresses. Raises ServiceEnded."""
        environment = {
            name: value for name, value in os.environ.items() if name not in NOT_INHERITED
        }
        try:
            log = self.log_path.open("w")
        except OSError as error:
            raise ServiceEnded(f"cannot write {self.log_path}: {error.strerror}") from error
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "ingest", "serve", "--state-dir", str(self._state_dir), *self._flags),
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must not reach it: the fleet stops first
            preexec_fn=_end_with_parent(),
        )
        self._reading = asyncio.create_task(self._read(log))
        listening = asyncio.create_task(self._listening.wait())
        await asyncio.wait({self._reading, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if not self._listening.is_set():
            raise ServiceEnded(await self.last_lines())

    async def _read(self, log: TextIO) -> None:
        assert self._process is not None, "started"
        assert self._process.stdout is not None, "a pipe"
        with log:
            async for raw in self._process.stdout:
                line = raw.decode(errors="replace").rstrip()
                log.write(line + "\n")
                log.flush()
                self._lines.append(line)
                if found := re.search(r"http://\S+/v1/readings", line):
                    self.url = self.url or found[0]
                if found := re.search(r"http://\S+/metrics", line):
                    self.metrics_url = self.metrics_url or found[0]
                if self.url and self.metrics_url:
                    self._listening.set()

    async def ended(self) -> None:
        """Wait for its end, then raise ServiceEnded."""
        assert self._reading is not None, "started"
        await asyncio.shield(self._reading)
        raise ServiceEnded(await self.last_lines())

    async def last_lines(self) -> str:
        """Return its exit code and last lines, once it has ended."""
        assert self._process is not None, "started"
        code = await self._process.wait()
        return "\n".join(
            [f"the service ended with exit code {code}; its last lines:", *self._lines]
        )

    def terminate(self) -> None:
        """Send SIGTERM; a second one shortens the drain."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def stop(self) -> tuple[int, str]:
        """Send SIGTERM and wait for the drain; return (exit code, its last line)."""
        if self._process is None or self._reading is None:
            return 0, ""
        self.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await asyncio.shield(self._reading)
        except TimeoutError:
            self._process.kill()
        code = await self._process.wait()
        drained = [line for line in self._lines if line.startswith("drained:")]
        return code, drained[-1] if drained else "\n".join(self._lines)


def _end_with_parent() -> Callable[[], None] | None:
    """Return a function that lets the child get a SIGTERM when we are killed (Linux), or None."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return ask
