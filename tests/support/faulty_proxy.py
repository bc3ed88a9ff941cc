"""A TCP proxy that misbehaves on request: it cuts, stalls, slows, refuses and loses replies.

Stands between a client and one server (a port, or a unix socket: the embedded PostgreSQL has only
that) and forwards bytes unread. Promises: what it does not destroy on purpose arrives in order.
Does not: know any protocol, or speak TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

Direction = Literal["to_server", "to_client"]
DIRECTIONS: tuple[Direction, Direction] = ("to_server", "to_client")

_CHUNK_BYTES = 64 * 1024
_LINGER_NONE = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


class FaultyProxy:
    """One listening port on 127.0.0.1 and its connections to one server.

    `async with FaultyProxy(host, port) as proxy:` or `start()` and `close()`. All methods that are
    not coroutines take effect at once, on open connections too.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target: tuple[str, int] | str = (host, port)
        self.port = 0
        self.bytes_forwarded: dict[Direction, int] = {"to_server": 0, "to_client": 0}
        self.bytes_lost = 0
        self.connections_total = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._flowing: dict[Direction, asyncio.Event] = {}
        self._bytes_per_s: float | None = None
        self._loss: _Loss | None = None
        self._cuts: dict[Direction, int] = {}
        self._delay: Callable[[], float] | None = None

    @classmethod
    def to_unix(cls, path: str) -> FaultyProxy:
        """Return a proxy to a unix socket, such as `/tmp/x/.s.PGSQL.5432`."""
        proxy = cls("", 0)
        proxy._target = path
        return proxy

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connections_open(self) -> int:
        """Connections at the moment."""
        return len(self._open)

    async def start(self) -> None:
        """Listen; `port` is known afterwards."""
        self._flowing = {each: asyncio.Event() for each in DIRECTIONS}
        self.resume()
        await self.accept()

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        self.refuse()
        await self.cut()

    async def cut(self) -> None:
        """Reset every open connection on both sides (RST, no goodbye)."""
        tasks = list(self._open)
        for writers in list(self._open.values()):
            _reset(writers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED); open ones stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Take new connections again, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, limit=_CHUNK_BYTES
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def stall(self, *directions: Direction) -> None:
        """Stop forwarding in the directions, or in both; nothing is lost, no side gets an error."""
        for each in directions or DIRECTIONS:
            self._flowing[each].clear()

    def resume(self) -> None:
        """Forward again, what waited first."""
        for each in DIRECTIONS:
            self._flowing[each].set()

    def slow(self, bytes_per_s: float | None) -> None:
        """Forward at most so many bytes a second per connection and direction; None: no limit."""
        self._bytes_per_s = bytes_per_s

    def delay(self, pause_s: Callable[[], float] | None) -> None:
        """Delay each chunk by `pause_s()` seconds, in order; None: no delay."""
        self._delay = pause_s

    def cut_after(self, direction: Direction, count: int) -> None:
        """Forward `count` more bytes in a direction, not one more, then cut all connections."""
        self._cuts[direction] = count

    def keep_whole(self) -> None:
        """Forget a `cut_after` that has not come yet."""
        self._cuts.clear()

    def lose_replies(
        self,
        bytes_max: int | None = None,
        *,
        until: bytes | None = None,
        after: tuple[bytes, ...] = (),
    ) -> asyncio.Event:
        """From now on swallow what the server sends, then cut all connections, once.

        Cuts after `bytes_max` bytes were swallowed, or once one connection's swallowed bytes hold
        `until`; with neither, swallows until `cut` is called. Swallows nothing before
        a client has sent one of `after`, if there are some. Returns an event that is set after the
        cut. Later connections are whole again.
        """
        self._loss = _Loss(bytes_max, until, after)
        return self._loss.over

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "streams run their callback in a task"
        self.connections_total += 1
        self._open[task] = [writer]
        try:
            server_reader, server_writer = await self._connect()
            self._open[task].append(server_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server_writer, "to_server"))
                pumps.create_task(self._pump(server_reader, writer, "to_client"))
        except asyncio.CancelledError:
            pass  # only `cut` cancels this task, and no caller waits for it
        except (OSError, BaseExceptionGroup):
            _reset(self._open[task])  # one side broke: the other one sees the same
        finally:
            for each in self._open.pop(task):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target, limit=_CHUNK_BYTES)
        return await asyncio.open_connection(*self._target, limit=_CHUNK_BYTES)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        swallowed = bytearray()
        while True:
            rate = self._bytes_per_s
            data = await reader.read(_CHUNK_BYTES if rate is None else max(1, int(rate / 20)))
            await self._flowing[direction].wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            if self._delay is not None:
                await asyncio.sleep(self._delay())
            loss = self._loss
            if direction == "to_server" and loss is not None:
                loss.sent(data)
            if direction == "to_client" and loss is not None and loss.begun:
                self.bytes_lost += len(data)
                swallowed += data
                if loss.swallow(len(data), swallowed):
                    self._loss = None
                    self._cut_soon(loss)
                continue
            left = self._cuts.get(direction)
            if left is not None and left <= len(data):
                del self._cuts[direction]
                writer.write(data[:left])
                self._cut_soon(_Loss(None, None, ()))
                continue
            if left is not None:
                self._cuts[direction] = left - len(data)
            writer.write(data)
            await writer.drain()
            self.bytes_forwarded[direction] += len(data)
            if rate is not None:
                await asyncio.sleep(len(data) / rate)

    def _cut_soon(self, loss: _Loss) -> None:
        # The pump that calls this is cut too, so a task of its own does the cutting.
        loss.cutter = asyncio.create_task(self.cut())
        loss.cutter.add_done_callback(lambda _: loss.over.set())


class _Loss:
    """A call of `lose_replies`, and its state."""

    def __init__(
        self, bytes_max: int | None, until: bytes | None, after: tuple[bytes, ...]
    ) -> None:
        self.over = asyncio.Event()
        self.begun = not after
        self._after = after
        self.cutter: asyncio.Task[None] | None = None
        self._bytes_left = bytes_max
        self._until = until

    def sent(self, data: bytes) -> None:
        """Take note of bytes that a client sends: some of them begin the loss."""
        self.begun = self.begun or any(each in data for each in self._after)

    def swallow(self, size_bytes: int, swallowed: bytearray) -> bool:
        """Count what was swallowed; return whether that was enough."""
        if self._bytes_left is not None:
            self._bytes_left -= size_bytes
            return self._bytes_left <= 0
        return self._until is not None and self._until in swallowed


def _reset(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        sock: socket.socket | None = writer.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError, ValueError):  # ValueError: closed a moment ago
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        writer.transport.abort()
