"""What a connection asks of the port that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from ingest.http.request import WholeRequest
from ingest.http.response import Answer


class RoundQueue(Protocol):
    """Decides in which round of the event loop a whole request begins."""

    def enqueue(self, body_bytes: int, begin: Callable[[], None]) -> bool:
        """Call `begin` in a later round. Returns False if too much waits: `begin` is not called."""


class Owner(Protocol):
    """The port that a connection belongs to."""

    keepalive_s_max: float
    round_queue: RoundQueue | None  # None: every request goes aiohttp's way

    def malformed(self, code: str) -> Answer:
        """Return (and count) the answer to bytes that are not valid HTTP."""

    def head_begun(self, handler: web.RequestHandler) -> None:
        """Called when bytes came that do not complete a head."""

    def work_begun(self, handler: web.RequestHandler) -> None:
        """Called when a whole request has arrived."""

    def work_ended(self, handler: web.RequestHandler) -> None:
        """Called when a request is answered, or its client is gone."""

    async def answer(self, request: WholeRequest) -> Answer:
        """Answer a request. Raises ConnectionError if its client is gone."""

    def suspended(self, task: asyncio.Task[Answer]) -> None:
        """Called when an answer has to wait for something."""
