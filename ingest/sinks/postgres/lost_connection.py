"""What the driver says and leaves behind when a server ends a connection that is idle.

The server sends its last message some milliseconds before it closes the connection. The driver does
not treat this message. If a COPY begins in between, the driver reports a fault of its own, and
leaves a future behind that no caller can reach.
Promises: people read that the server closed the connection. The future makes no log line. Nothing
else is hidden.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

CLOSED = "the server closed the connection"
CUT = "the connection was cut"
_UNRETRIEVED = "Future exception was never retrieved"


def is_of_a_closed_connection(error: BaseException) -> bool:
    """Whether the driver, or uvloop, says in its own words that the connection has ended."""
    if isinstance(error, asyncpg.InternalClientError):
        return str(error).startswith("cannot switch to state")
    closed = {RuntimeError: "handler is closed", asyncpg.InterfaceError: "connection is closed"}
    return any(isinstance(error, kind) and text in str(error) for kind, text in closed.items())


def forget_unreachable_futures() -> None:
    """Have the event loop drop the driver's futures that nobody can retrieve. Repeatable.

    The write whose future it was has failed with an error of its own, which is reported.
    """
    loop = asyncio.get_running_loop()
    if loop.get_exception_handler() is None:
        loop.set_exception_handler(_without_unreachable_futures)


def _without_unreachable_futures(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    lost = isinstance(context.get("exception"), asyncpg.ConnectionDoesNotExistError)
    if not (lost and str(context.get("message")).startswith(_UNRETRIEVED)):
        loop.default_exception_handler(context)
