"""A slow connection to a database: `python -m benchmarks.slow_line PORT SOCKET BYTES_PER_S`.

It forwards a port of the loopback to a unix socket, and limits the bytes a second that go to the
server, as if the database could not keep up. The clock gives the pace, not pauses: a delay by a
busy processor is made up for, so that the rate is the same under load. It serves until killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Sequence

import uvloop

PIECES_PER_S = 50
MAKES_UP_S = 0.25  # the longest delay that is made up for


async def pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: float
) -> None:
    """Forward one direction until its end, at most `bytes_per_s`, which may be infinite."""
    piece = 1 << 16 if math.isinf(bytes_per_s) else max(1, int(bytes_per_s / PIECES_PER_S))
    due_s = time.monotonic()
    with contextlib.suppress(OSError):
        while data := await reader.read(piece):
            writer.write(data)
            await writer.drain()
            now_s = time.monotonic()
            due_s = max(due_s, now_s - MAKES_UP_S) + len(data) / bytes_per_s
            if due_s > now_s:
                await asyncio.sleep(due_s - now_s)
        writer.write_eof()


async def forward(port: int, socket: str, bytes_per_s: float) -> None:
    """Serve until killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_unix_connection(socket)
        try:
            await asyncio.gather(
                pump(reader, its_writer, bytes_per_s), pump(its_reader, writer, math.inf)
            )
        finally:
            for each in (writer, its_writer):
                each.close()

    await asyncio.start_server(serve, "127.0.0.1", port)
    await asyncio.Event().wait()


def main(words: Sequence[str]) -> None:
    """Read the arguments and serve."""
    uvloop.run(forward(int(words[0]), words[1], float(words[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
