"""The process manager's side of sd_notify: a real datagram socket that a test reads.

`Manager` listens on a path or (`@name`) in the abstract namespace.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Self

from tests.system.service import environment


class Manager:
    """`with Manager(address) as manager:`; `messages` are the fields in the order they came."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[tuple[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a service that reports to this manager."""
        return environment({"NOTIFY_SOCKET": self.address, **more}, measured=False)

    def read(self) -> list[tuple[str, str]]:
        """Read the messages that came; return all fields so far as (name, value)."""
        while True:
            try:
                datagram = self._socket.recv(4096).decode()
            except BlockingIOError:
                return self.messages[:]
            for line in datagram.split("\n"):
                name, _, value = line.partition("=")
                self.messages.append((name, value))

    def values(self, name: str) -> list[str]:
        """Return all values of one field so far."""
        return [value for each, value in self.read() if each == name]

    async def wait(self, name: str, value: str, within_s: float = 20) -> None:
        """Wait until a field has come whose value begins with `value`."""
        async with asyncio.timeout(within_s):
            while not any(each.startswith(value) for each in self.values(name)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def wait_more(self, name: str, count: int, within_s: float = 20) -> None:
        """Wait until a field has come `count` more times."""
        wanted = len(self.values(name)) + count
        async with asyncio.timeout(within_s):
            while len(self.values(name)) < wanted:  # noqa: ASYNC110  a socket of another process
                await asyncio.sleep(0.01)
