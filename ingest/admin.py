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
from ingest.clock import monotonic_s
from ingest.config import Settings
from ingest.connections import Connections
from ingest.errors import Refused
from ingest.logs import Occasionally, get_logger
from ingest.metrics import Metrics
from ingest.problems import JSON, TEXT, Answer, problem

METRICS_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
HTML = b"text/html; charset=utf-8"
PAGES = ("/", "/livez", "/readyz", "/metrics")
RELEASE = "/hold/release"
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
        self._bodies = Bodies(Settings())
        self._connections: Connections | None = None
        self._log = get_logger("admin")
        self._occasionally = Occasionally(10.0)

    async def start(self, host: str, port: int) -> str:
        """Listen; return the real HOST:PORT. Raises StartError that names --admin-listen."""
        defaults = Settings()
        self._connections = Connections(
            self._answer,
            self._malformed,
            connections_max=CONNECTIONS_MAX,
            header_s_max=defaults.header_s_max,
            keepalive_s_max=defaults.keepalive_s_max,
        )
        return await self._connections.listen(host, port, "--admin-listen")

    async def close(self) -> None:
        """Close the port. Repeatable."""
        if self._connections is not None:
            await self._connections.close()

    async def _answer(self, request: web.BaseRequest) -> Answer:
        received_s = monotonic_s()
        path = request.path
        try:
            if path == RELEASE:
                answer = await self._release(request)
            elif path in PAGES:
                answer = self._page(request, path)
            else:
                raise Refused("not_found", f"there are {', '.join(PAGES)}")
        except Refused as refused:
            allow = b""
            if refused.code == "method_not_allowed":
                allow = b"Allow: POST\r\n" if path == RELEASE else b"Allow: GET, HEAD\r\n"
            answer = problem(refused, headers=allow, close=not request.content.is_eof())
        except ConnectionError:
            raise
        except Exception:
            kept_back = self._occasionally.due("internal")
            if kept_back is not None:
                self._log.error("request_failed", exc_info=True, similar_suppressed=kept_back)
            answer = problem(Refused("internal", "the service met a fault of its own"), close=True)
        route = path if path == RELEASE or path in PAGES else "other"
        self._metrics.request_answered(route, answer.status, monotonic_s() - received_s)
        return answer

    def _malformed(self, code: str) -> Answer:
        answer = problem(Refused(code, "the request is not well-formed HTTP"), close=True)
        self._metrics.request_answered("other", answer.status, 0.0)
        return answer

    def _page(self, request: web.BaseRequest, path: str) -> Answer:
        if request.method not in {"GET", "HEAD"}:
            raise Refused("method_not_allowed", f"{path} is read with GET")
        if path == "/livez":
            return Answer(200, b"ok\n", TEXT)
        if path == "/metrics":
            return Answer(200, self._metrics.exposition(), METRICS_TEXT)
        status, state = self._health()
        if path == "/readyz":
            return Answer(status, state, JSON)
        return Answer(200, self._front(orjson.loads(state)), HTML, headers=NO_SCRIPT)

    def _front(self, state: dict[str, str]) -> bytes:
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
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><title>iot-ingest</title>"
            "<style>body{font:16px/1.5 system-ui;margin:3em}td{padding-right:2em}</style>"
            f"<h1>iot-ingest {escape(m.version)}</h1>"
            f"<p>State: <b>{escape(state['state'])}</b> since {escape(state['since'])}"
            f"<br>{escape(state['reason'])}"
            f"<table>{rows}</table><p>Readings since the start of this process. "
            "<a href=/metrics>metrics</a> <a href=/readyz>readyz</a> <a href=/livez>livez</a>\n"
        ).encode()

    async def _release(self, request: web.BaseRequest) -> Answer:
        if request.method != "POST":
            raise Refused("method_not_allowed", f"{RELEASE} is posted")
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        # Header bytes that are no UTF-8 arrive as surrogates: encode them back, do not fail.
        token = given.strip().encode("utf-8", "surrogateescape")
        if kind.lower() != "bearer" or not hmac.compare_digest(token, self._token):
            raise Refused("unauthorized", "the token is in the state folder's service file")
        content = request.content
        body = content.read_nowait() if content.is_eof() else await self._bodies.receive(request)
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
