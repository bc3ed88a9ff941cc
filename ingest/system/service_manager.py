"""The process manager, by systemd's protocols: sockets that it gives, and the state that we report.

It keeps the listening sockets. So connections wait in the kernel while the service restarts, and
none is refused.

`Notifier` sends READY=1, RELOADING=1, STATUS= and STOPPING=1 as datagrams to the socket that
NOTIFY_SOCKET names, and WATCHDOG=1 at half the period that WATCHDOG_USEC asks for. The event loop
sends all of it. So when the loop is blocked, WATCHDOG=1 stops and the manager notices.
Promises: sends nothing if there is no manager; never waits and never fails because of the manager.
Does not: accept connections.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import NamedTuple

from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s

FIRST_FD = 3
STATUS_S = 1.0  # between two checks of the state; a short watchdog period makes it less
STATUS_BYTES_MAX = 1_000  # a datagram is sent whole or not at all
_ADMIN = "admin"


class GivenSockets(NamedTuple):
    """The sockets of each port. Without one, the port binds an address itself."""

    data: list[socket.socket]
    admin: list[socket.socket]


def given_sockets(environ: MutableMapping[str, str] = os.environ) -> GivenSockets:
    """Read the manager's variables, and remove them so that no child process gets them.

    A socket named `admin` is for the admin port, all others are for the data port. Raises
    StartError for what is no listening TCP socket.
    """
    count, pid, names = (
        environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    )
    given = GivenSockets([], [])
    if pid != str(os.getpid()):  # they are meant for another process
        return given
    if not (count.isascii() and count.isdecimal()):
        raise StartError(f"LISTEN_FDS is {count!r}, and must be a number of sockets")
    fds = range(FIRST_FD, FIRST_FD + int(count))
    for fd, name in zip(fds, chain(names.split(":"), repeat(""))):  # noqa: B905  names may lack
        (given.admin if name == _ADMIN else given.data).append(_listening(fd, name))
    return given


def _listening(fd: int, name: str) -> socket.socket:
    which = f"the socket {name or 'without a name'} (descriptor {fd}) from the process manager"
    try:
        found = socket.socket(fileno=fd)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise StartError(f"{which} is no socket: {error.strerror}") from error
    is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    if not (is_tcp and listens):
        found.close()
        raise StartError(
            f"{which} is no TCP socket that listens; in the unit write ListenStream=ADDRESS:PORT, "
            "and not Accept=yes"
        )
    found.set_inheritable(False)
    return found


class Notifier:
    """The socket to the process manager; does nothing if `address` is empty.

    `watchdog_s` is the period in which WATCHDOG=1 must arrive. 0: there is no watchdog.
    """

    def __init__(self, address: str = "", *, watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._feed_s = watchdog_s / 2
        self._pause_s = min(STATUS_S, self._feed_s or STATUS_S)
        self._fed_s = float("-inf")
        self._status_sent = ""
        self._unsent: list[str] = []  # READY=1 or STOPPING=1, until the manager has taken it
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Read the manager's variables, and remove them so that no child process gets them.

        A watchdog period counts if it is a number and meant for this process.
        """
        address, period, pid = (
            environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if address[:1] not in {"/", "@"}:  # vsock addresses are not supported
            address = ""
        ours = period.isascii() and period.isdecimal() and pid in {"", str(os.getpid())}
        return cls(address, watchdog_s=int(period) / 1e6 if ours else 0.0)

    def ready(self) -> None:
        """Report that the ports listen."""
        self._send_surely("READY=1")

    def reloading(self) -> None:
        """Report that a restart of the processes begins; `ready` reports its end."""
        self._send_surely(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s() * 1e6)}")

    def stopping(self) -> None:
        """Report that the service drains."""
        self._send_surely("STOPPING=1")

    def close(self) -> None:
        """Close the socket: nothing is sent any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @asynccontextmanager
    async def reporting(self, status: Callable[[], str]) -> AsyncIterator[None]:
        """While the block runs, send STATUS= when `status()` changes, and WATCHDOG=1 in time."""
        if self._socket is None:
            yield
            return
        task = asyncio.create_task(self._report(status))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            self.close()

    async def _report(self, status: Callable[[], str]) -> None:
        while True:
            self._report_once(_one_line(status()), monotonic_s())
            await asyncio.sleep(self._pause_s)

    def _report_once(self, status: str, now_s: float) -> None:
        lines: list[str] = []
        if self._feed_s and now_s - self._fed_s >= self._feed_s * 0.99:  # a sleep may end early
            lines.append("WATCHDOG=1")
        if status != self._status_sent:
            lines.append(f"STATUS={status}")
        if self._send(*lines):
            self._status_sent = status
            if "WATCHDOG=1" in lines:
                self._fed_s = now_s

    def _send_surely(self, line: str) -> None:
        """Send a line now, or together with a later one."""
        self._unsent.append(line)
        self._send()

    def _send(self, *lines: str) -> bool:
        """Send what is still unsent and `lines`; return False if it must be tried again later."""
        lines = (*self._unsent, *lines)
        if self._socket is None or not lines:
            return True
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:  # the manager restarts, or its queue is full
            return False
        self._unsent.clear()
        return True


def _one_line(text: str) -> str:
    """Return a text as one line, so that it adds no field, and short enough for a datagram."""
    raw = " ".join(text.split()).encode("utf-8", "replace")
    return raw[:STATUS_BYTES_MAX].decode("utf-8", "ignore")
