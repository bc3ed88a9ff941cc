"""What a connection asks of the port that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ingest.http.heads import KnownHeads
from ingest.http.request import Forwarding, Request
from ingest.http.response import Answer

# An answer; or a coroutine, if the page has to wait; or None: then it calls `request.reply` later.
Reply = Answer | Coroutine[Any, Any, Answer] | None


class RoundQueue(Protocol):
    """Decides in which round of the event loop a whole request begins."""

    def enqueue(self, body_bytes: int, begin: Callable[[], object]) -> bool:
        """Call `begin` in a later round. Returns False if too much waits: `begin` is not called.

        The body counts as in memory until then.
        """

    def put_off(self, go_on: Callable[[], object], network: str, *, begins: bool = False) -> None:
        """Call `go_on`, a short step, later; few of them in each round. Networks take turns.

        `begins`: it is the first step of its work.
        """

    def forget(self, go_on: Callable[[], object], network: str) -> None:
        """Do not call it, if it was put off and has not been called yet."""


class Owner(Protocol):
    """The port that a connection belongs to."""

    loop: asyncio.AbstractEventLoop
    round_queue: RoundQueue | None  # None: every request begins in the next round
    known_heads: KnownHeads | None  # None: the parser takes every head
    is_closing: bool
    proxies: Forwarding | None

    def connection_made(self, connection: Any, transport: asyncio.Transport) -> None:
        """Called when a client has connected."""

    def connection_lost(self, connection: Any) -> None:
        """Called when the connection is closed."""

    def malformed(self, code: str) -> Answer:
        """Return (and count) the answer to bytes that are not valid HTTP."""

    def head_begun(self, connection: Any) -> None:
        """Called when bytes came that do not complete a head."""

    def body_awaited(self, connection: Any) -> None:
        """Called when the head of a request has come and a part of its body has not."""

    def body_ended(self, connection: Any) -> None:
        """Called when the rest of that body has come, or nobody waits for it any more."""

    def work_begun(self, connection: Any) -> None:
        """Called when a whole request has arrived."""

    def work_ended(self, connection: Any) -> None:
        """Called when a request is answered, or its client is gone."""

    def answer(self, request: Request) -> Reply:
        """Answer a request. Raises ConnectionError if its client is gone."""

    def put_off(self, go_on: Callable[[], object], network: str) -> None:
        """Call `go_on`, a short step, later. Networks take turns."""

    def suspended(self, task: asyncio.Task[Answer]) -> None:
        """Called with the task of an answer that has to wait for something."""
