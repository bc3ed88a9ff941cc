"""The admin port: probes, metrics, a page for people, and the one action `hold/release`.

Promises: actions need the token of the state folder; reading needs none, so the port belongs on a
loopback or a private address.
Does not: take readings.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from html import escape
from typing import Any

import orjson
from aiohttp import web

from ingest.body import Bodies
from ingest.config import Settings
from ingest.errors import Refused
from ingest.logs import get_logger
from ingest.metrics import Metrics
from ingest.problems import Answer
from ingest.site import POST, READ, Page, Site, probes

METRICS_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
HTML = b"text/html; charset=utf-8"
CONNECTIONS_MAX = 256
NO_SCRIPT = b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"


class Admin:
    """The admin port. `release_hold(dead_letter)` makes the writers try at once."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        health: Callable[[], tuple[int, bytes]],
        token: str,
        release_hold: Callable[[bool], None],
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._token = token.encode()
        self._release_hold = release_hold
        defaults = Settings()
        self._bodies = Bodies(defaults)
        self._site = Site(
            {
                "/": Page(READ, self._front),
                "/metrics": Page(READ, self._exposition),
                **probes(health),
                "/hold/release": Page(POST, self._release),
            },
            metrics,
            flag="--admin-listen",
            connections_max=CONNECTIONS_MAX,
            header_s_max=defaults.header_s_max,
            keepalive_s_max=defaults.keepalive_s_max,
        )
        self._log = get_logger("admin")

    async def start(self, host: str, port: int) -> str:
        """Listen; return the real HOST:PORT. Raises StartError that names --admin-listen."""
        return await self._site.start(host, port)

    async def close(self) -> None:
        """Close the port. Repeatable."""
        await self._site.close()

    async def _exposition(self, _request: web.BaseRequest, _query: str, _at_s: float) -> Answer:
        return Answer(200, self._metrics.exposition(), METRICS_TEXT)

    async def _front(self, _request: web.BaseRequest, _query: str, _at_s: float) -> Answer:
        state: dict[str, str] = orjson.loads(self._health()[1])
        m = self._metrics
        figures = {
            "received": m.received,
            "committed": m.committed,
            "already there": m.duplicate,
            "dead-lettered": sum(m.dead_lettered.values()),
            "rejected": sum(m.rejected.values()),
            "held": m.held,
            "lost": m.dropped,
        }
        rows = "".join(f"<tr><td>{name}<td>{count:,}" for name, count in figures.items())
        page = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>iot-ingest</title>"
            "<style>body{font:16px/1.5 system-ui;margin:3em}td{padding-right:2em}</style>"
            f"<h1>iot-ingest {escape(m.version)}</h1>"
            f"<p>State: <b>{escape(state['state'])}</b> since {escape(state['since'])}"
            f"<br>{escape(state['reason'])}"
            f"<table>{rows}</table><p>Readings since the start of this process. "
            "<a href=/metrics>metrics</a> <a href=/readyz>readyz</a> <a href=/livez>livez</a>\n"
        )
        return Answer(200, page.encode(), HTML, headers=NO_SCRIPT)

    async def _release(self, request: web.BaseRequest, _query: str, _at_s: float) -> Answer:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        # Header bytes that are no UTF-8 arrive as surrogates: encode them back, do not fail.
        token = given.strip().encode("utf-8", "surrogateescape")
        if kind.lower() != "bearer" or not hmac.compare_digest(token, self._token):
            raise Refused("unauthorized", "the token is in the state folder's service file")
        async with self._bodies.received(request) as body:
            dead_letter = _dead_letter_asked(body)
        self._log.warning("hold_released", dead_letter=dead_letter)
        self._release_hold(dead_letter)
        return Answer(200, b'{"released":true}')


def _dead_letter_asked(body: bytes) -> bool:
    """Read `{"dead_letter": bool}`; an absent body or member means no. Raises Refused."""
    try:
        asked: Any = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise Refused("not_json", "the body is not JSON") from error
    dead_letter = asked.get("dead_letter", False) if isinstance(asked, dict) else None
    if not isinstance(dead_letter, bool):
        raise Refused("bad_request", 'the body is {"dead_letter": true or false}')
    return dead_letter
