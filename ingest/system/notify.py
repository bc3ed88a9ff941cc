"""Tell a process manager how the service is, by systemd's notification protocol.

Holds `Notifier`: READY=1, STATUS= and STOPPING=1 as datagrams to the socket that NOTIFY_SOCKET
names, and WATCHDOG=1 at half the period that WATCHDOG_USEC asks for. All of it is sent from the
event loop, so a loop that stands still feeds no watchdog.
Promises: silent where nobody listens; never waits and never fails for the manager's sake.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager

from ingest.system.clock import monotonic_s

STATUS_S = 1.0  # between looks at the state; the watchdog may ask for shorter ones
STATUS_BYTES_MAX = 1_000  # a datagram must arrive whole


class Notifier:
    """The line to the process manager; does nothing if `address` is empty.

    `watchdog_s` is the period in which WATCHDOG=1 must arrive; 0: nobody waits for it.
    """

    def __init__(self, address: str = "", *, watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._feed_s = watchdog_s / 2
        self._pause_s = min(STATUS_S, self._feed_s or STATUS_S)
        self._fed_s = float("-inf")
        self._told = ""  # the status that has arrived
        self._owed: list[str] = []  # what must arrive, and has not yet
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take what the process manager has left in the environment, so that no child gets it.

        A period for another process, or one that is no number, is nobody's period.
        """
        address, period, pid = (
            environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if address[:1] not in {"/", "@"}:  # other kinds of sockets exist; we speak none of them
            address = ""
        ours = period.isascii() and period.isdecimal() and pid in {"", str(os.getpid())}
        return cls(address, watchdog_s=int(period) / 1e6 if ours else 0.0)

    def ready(self) -> None:
        """Say that the ports listen."""
        self._owe("READY=1")

    def stopping(self) -> None:
        """Say that the service drains."""
        self._owe("STOPPING=1")

    def close(self) -> None:
        """Say nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @asynccontextmanager
    async def telling(self, status: Callable[[], str]) -> AsyncIterator[None]:
        """While the block runs: STATUS= whenever `status()` changes, and the watchdog's food."""
        if self._socket is None:
            yield
            return
        task = asyncio.create_task(self._tell(status))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            self.close()

    async def _tell(self, status: Callable[[], str]) -> None:
        while True:
            self._look(status(), monotonic_s())
            await asyncio.sleep(self._pause_s)

    def _look(self, status: str, now_s: float) -> None:
        lines: list[str] = []
        if self._feed_s and now_s - self._fed_s >= self._feed_s * 0.99:  # a sleep may end early
            lines.append("WATCHDOG=1")
        words = _one_line(status)
        if words != self._told:
            lines.append(f"STATUS={words}")
        if self._send(*lines):
            self._told = words
            if "WATCHDOG=1" in lines:
                self._fed_s = now_s

    def _owe(self, line: str) -> None:
        self._owed.append(line)
        self._send()

    def _send(self, *lines: str) -> bool:
        """Send what is owed and `lines`; return False if it did not go: try again later."""
        lines = (*self._owed, *lines)
        if self._socket is None or not lines:
            return True
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:  # the manager restarts, or its queue is full
            return False
        self._owed.clear()
        return True


def _one_line(text: str) -> str:
    """Keep a text from being read as further fields, and short enough to arrive."""
    raw = " ".join(text.split()).encode("utf-8", "replace")
    return raw[:STATUS_BYTES_MAX].decode("utf-8", "ignore")
