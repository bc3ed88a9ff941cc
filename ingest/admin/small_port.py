"""The admin port of a process that has no dashboard: probes and metrics. Nothing needs a token.

Promises: it answers while the process can; few scrapes are in work at once, so probes have room.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.admin.port import (
    CONNECTIONS_MAX,
    HEADER_S_MAX,
    KEEPALIVE_S_MAX,
    METRICS_TEXT,
    SCRAPES_MAX,
)
from ingest.admin.shared import Few, shared
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import READ, Port, Route, probes
from ingest.model.ledger import Ledger


class SmallAdmin:
    """`metrics` returns the text of /metrics, `health` status and body of /readyz."""

    def __init__(
        self, metrics: Callable[[], bytes], health: Callable[[], tuple[int, bytes]]
    ) -> None:
        self._metrics = metrics
        page = shared(Route(READ, self._answer), lambda _request: None, compress=False)
        self._port = Port(
            {"/metrics": Few(SCRAPES_MAX).bounded(page), **probes(health)},
            Ledger(),
            flag="--admin-listen",
            tokens="none: the port changes nothing",
            connections_max=CONNECTIONS_MAX,
            header_s_max=HEADER_S_MAX,
            keepalive_s_max=KEEPALIVE_S_MAX,
        )

    async def start(self, host: str, port: int) -> str:
        """Listen; return the real HOST:PORT. Raises StartError that names --admin-listen."""
        return await self._port.start(host, port)

    async def close(self) -> None:
        """Close the port. Repeatable."""
        await self._port.close()

    async def _answer(self, _request: Request, _query: str, _at_s: float) -> Answer:
        return Answer(200, self._metrics(), METRICS_TEXT)
