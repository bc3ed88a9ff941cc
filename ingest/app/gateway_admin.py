"""The admin port of a gateway that runs alone: probes, metrics, and where the page is."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from ingest import __version__
from ingest.admin.exposition import Exposition
from ingest.admin.guard import Guard
from ingest.admin.port import Admin
from ingest.app.health import Health
from ingest.config.settings import Settings, split_address
from ingest.config.values import MIB
from ingest.http.bodies import Bodies
from ingest.http.request import Request
from ingest.http.response import TEXT, Answer
from ingest.http.routes import READ, Route
from ingest.model.ledger import Ledger

PAGE = (
    b"This is a gateway of iot-ingest: it takes posts, and knows no database. It has /metrics,\n"
    b"/readyz and /livez. The dashboard is on the admin port of a writer, or of `ingest up`.\n"
)


class GatewayAdmin:
    """The admin port of one gateway."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        health: Health,
        refused_posts: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._listen = settings.admin_listen
        self.token = settings.admin_token or secrets.token_urlsafe(24)
        self._guard = Guard(self.token, with_key=False)
        bodies = partial(Bodies, body_bytes_max=MIB, body_s_max=10.0, all_bytes_max=64 * MIB)
        self._admin = Admin(
            ledger=ledger,
            exposition=Exposition(ledger, __version__),
            health=health.readyz,
            message=str,
            guard=self._guard,
            bodies=bodies(),
            release_hold=lambda _dead_letter: False,
            refused_posts=refused_posts,
            pages={"/": Route(READ, _page)},
        )

    async def start(self) -> str:
        """Listen; return the bound HOST:PORT. Raises StartError that names --admin-listen."""
        bound = await self._admin.start(*split_address(self._listen))
        self._guard.bound(bound)
        return bound

    async def close(self) -> None:
        """Close the port. Repeatable."""
        await self._admin.close()


async def _page(_request: Request, _query: str, _at_s: float) -> Answer:
    return Answer(200, PAGE, TEXT)
