"""The control channel between a supervisor and its child: JSON lines over a pair of sockets.

The child inherits one end. No other process can open it, so it may carry passwords.
Promises: a line is bounded, and so are the lines that wait for an end that does not read. A side
whose other end is gone, or sends what is no JSON object, gets None from `receive`, and no error.
Does not: know what the messages mean, or start a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from types import TracebackType
from typing import Any, Self

import orjson

from ingest.model.errors import IngestError
from ingest.system.logs import get_logger

LINE_BYTES_MAX = 4 * 1024**2
WAITING_BYTES_MAX = 8 * 1024**2  # the other end is frozen: a status that is not sent is no loss
CLOSE_S_MAX = 1.0
FAILED = "failed"  # a child's last words, if it cannot start

Message = dict[str, Any]


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel. No child inherits one that is not passed to it."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class ControlChannel:
    """One end. A child uses `async with`: then an error of the block is told to the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Use this end; it is closed together with the channel."""
        end.setblocking(False)
        # The limit is that of a line; the reader holds at most twice as much.
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES_MAX))

    @classmethod
    async def inherited(cls, fd: int) -> Self:
        """Use the end that the supervisor has passed. Raises IngestError if `fd` is none.

        Processes that this one starts do not get it.
        """
        try:
            os.set_inheritable(fd, False)
            end = socket.socket(fileno=fd)
        except OSError as error:
            raise IngestError(f"--control-fd {fd} is no channel: {error.strerror}") from error
        if end.family != socket.AF_UNIX or end.type != socket.SOCK_STREAM:
            end.close()
            raise IngestError(f"--control-fd {fd} is no channel: `ingest up` sets this flag")
        return await cls.open(end)

    async def receive(self) -> Message | None:
        """Return the next message; None if the other end is gone, or is not one of ours."""
        try:
            line = await self._reader.readuntil(b"\n")
            message = orjson.loads(line)
        except (asyncio.IncompleteReadError, OSError):
            return None
        except (ValueError, asyncio.LimitOverrunError) as error:
            get_logger("control").error("control_broken", why=str(error))
            return None
        if not isinstance(message, dict):
            get_logger("control").error("control_broken", why="the message is no JSON object")
            return None
        return message

    def send(self, message: Message) -> bool:
        """Send a message soon; return False if the other end is gone, or does not read.

        Raises ValueError if it is longer than LINE_BYTES_MAX.
        """
        line = orjson.dumps(message) + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise ValueError(f"a message of {len(line)} bytes")
        transport = self._writer.transport
        waiting = transport.get_write_buffer_size() + len(line)
        if transport.is_closing() or waiting > WAITING_BYTES_MAX:
            return False
        self._writer.write(line)
        return True

    async def close(self) -> None:
        """Send what waits, for a moment at most, and close this end. Repeatable."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                self._writer.close()
                await self._writer.wait_closed()
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, IngestError | OSError):
            self.send({FAILED: str(error)})
        await self.close()
