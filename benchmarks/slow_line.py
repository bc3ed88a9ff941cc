"""A slow line to a database: `python -m benchmarks.slow_line PORT SOCKET BYTES_PER_S`.

Forwards a port of the loopback to a unix socket, at most so many bytes a second per connection and
direction: what a database does that cannot keep up. Serves until killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import uvloop

from tests.line import Line


async def forward(port: int, socket: str, bytes_per_s: float) -> None:
    """Serve until killed."""
    line = Line.to_unix(socket)
    line.port = port
    await line.start()
    line.slow(bytes_per_s)
    await asyncio.Event().wait()


def main(words: Sequence[str]) -> None:
    """Read the arguments and serve."""
    uvloop.run(forward(int(words[0]), words[1], float(words[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
