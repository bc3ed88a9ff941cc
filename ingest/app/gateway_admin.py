"""The admin port of a gateway that runs alone: probes, metrics, and a page that links to another.

A gateway knows no database and sees a part of the posts, so its page would show little. `/refused`
lists its last refused posts for who has the token.
"""

from __future__ import annotations

import html as markup

from ingest.access.tokens import Tokens
from ingest.admin.dashboard.assets import assets, html, page
from ingest.admin.dashboard.tail import Observed
from ingest.admin.guard import Guard
from ingest.admin.port import Actions, Admin
from ingest.app.metrics import own_metrics
from ingest.config.settings import Settings, split_address
from ingest.config.values import MIB
from ingest.http.bodies import Bodies
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import READ, Route

_ASSETS = ("/page/style.css", "/page/icon.svg")


class GatewayAdmin:
    """The admin port of one gateway. `token` is the admin token."""

    def __init__(
        self,
        settings: Settings,
        own: Observed,
        *,
        token: str,
        tokens: Tokens | None = None,
    ) -> None:
        self._admin_listen = settings.admin_listen
        self._listen = ""
        self._guard = Guard(token, tokens=tokens)
        files = assets()
        actions = Actions(
            self._guard,
            Bodies(body_bytes_max=MIB, body_s_max=10.0, all_bytes_max=MIB),
            message=str,
            release_hold=lambda _dead_letter: False,
            refused_posts=own.refused_posts,
            senders=own.ledger.listed_senders,
            pages={
                "/": Route(READ, self._front),
                **{path: Route(READ, files[path].handle) for path in _ASSETS},
            },
        )
        self._admin = Admin(own_metrics(own.ledger), own.readyz, ledger=own.ledger, actions=actions)

    async def start(self, listen: str) -> str:
        """Listen; return the bound HOST:PORT. `listen` is that of the data port.

        Raises StartError that names --admin-listen.
        """
        bound = await self._admin.start(*split_address(self._admin_listen))
        self._listen = listen
        self._guard.bound(bound)
        return bound

    async def close(self) -> None:
        """Close the port. Repeatable."""
        await self._admin.close()

    async def _front(self, request: Request, _query: str, _received_s: float) -> Answer:
        self._guard.check_host(request.headers)
        listen = markup.escape(self._listen).encode()
        return html(request.headers, page("gateway").replace(b"{{listen}}", listen))
