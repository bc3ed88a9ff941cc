"""Posts bodies to the service as a careful device does, and reads the answers.

Promises: after a 503, a 429, a lost connection or a time-out the client pauses (Retry-After, or a
growing time with full jitter) and sends the same bytes again, until `give_up_s` have passed since
the first try; without a single connection so far, for `CONNECT_S_MAX` only. Sending again is safe
for readings that have a `ts`.
Does not: read a body, or split one.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp

from loadgen.wire.answer import counts_of, fields_of, item_errors_of

CONNECT_S_MAX = 10.0
ANSWER_S_MAX = 60.0  # the service's own `ack_wait_s_max` is 10 s by default
PAUSE_S_MIN = 0.2
PAUSE_S_MAX = 10.0

# 408: the body came too slowly; 500, 502, 504: the service's or a proxy's fault, not the body's.
TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class ItemError(NamedTuple):
    """An item of the post that is not accepted: its index, a code, a sentence."""

    item: int
    code: str
    message: str


class Reply(NamedTuple):
    """An answer of the service. `status` is 2xx, or a refusal that another try cannot change."""

    status: int
    accepted: int
    dead_lettered: int
    code: str
    detail: str
    errors: tuple[ItemError, ...]

    @property
    def ok(self) -> bool:
        """Whether the service itself has accepted the post."""
        return 200 <= self.status < 300 and not self.code


class GaveUp(Exception):
    """No final answer within `give_up_s`; whether the post is stored is not known."""


class Client:
    """An HTTP client of one service. `async with Client(url) as client:`.

    `url` is the service's (`http://127.0.0.1:8080`) or the full one of its readings.
    `retries` counts the tries after the first of their post; `trouble` is why a post is being
    tried again at the moment, or empty; `reached`: somebody has taken a connection.
    """

    def __init__(
        self,
        url: str,
        *,
        connections_max: int,
        give_up_s: float,
        parameters: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        token: str = "",
    ) -> None:
        self.url = url.rstrip("/")
        if not self.url.endswith("/v1/readings"):
            self.url += "/v1/readings"
        self.retries = 0
        self.trouble = ""
        self.reached = False
        self._give_up_s = give_up_s
        self._parameters = dict(parameters or {})
        self._connections_max = connections_max
        self._tls = tls
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": "iot-ingest-loadgen",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        self._session: aiohttp.ClientSession  # inside of the block

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections_max, ssl=self._tls or True),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_S_MAX, sock_read=ANSWER_S_MAX
            ),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def post(self, body: bytes) -> Reply:
        """Post until there is a final answer. Raises GaveUp. Safe to cancel."""
        first_s = time.monotonic()
        tries = 0
        while True:
            tries += 1
            answer, why, retry_after_s = await self._try(body)
            if answer is not None:
                self.trouble = ""
                return answer
            pause_s = retry_after_s
            if pause_s is None:
                # Full jitter: devices that lost the service together must not come back together.
                pause_s = random.uniform(0, min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(tries, 16)))
            passed_s = time.monotonic() - first_s
            longest_s = self._give_up_s if self.reached else min(self._give_up_s, CONNECT_S_MAX)
            if passed_s + pause_s > longest_s:
                raise GaveUp(f"{why} (tried {tries} times in {passed_s:.1f} s)")
            self.retries += 1
            self.trouble = why
            await asyncio.sleep(pause_s)

    async def _try(self, body: bytes) -> tuple[Reply | None, str, float | None]:
        """Return (final answer or None, why not, seconds of Retry-After or None)."""
        try:
            async with self._session.post(
                self.url, data=body, params=self._parameters, allow_redirects=False
            ) as response:
                self.reached = True
                text = await response.read()
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise GaveUp(f"{self.url} is not a URL that can be posted to") from error
        except TimeoutError as error:
            self.reached |= not isinstance(error, aiohttp.ConnectionTimeoutError)
            return None, f"no answer from {self.url} in time", None
        except (aiohttp.ClientError, OSError) as error:
            self.reached |= not isinstance(error, aiohttp.ClientConnectorError)
            why = str(error) or type(error).__name__
            return None, f"no answer from {self.url}: {why}", None
        answer = _reply_of(response.status, text)
        if answer.status in TRY_AGAIN:
            why = f"{answer.status} {answer.code} {answer.detail}".strip()
            return None, why, _retry_after_s(response.headers.get("Retry-After"))
        return answer, "", None


def _retry_after_s(header: str | None) -> float | None:
    """Read whole seconds; a date (which proxies may send) counts as no header."""
    text = (header or "").strip()
    return float(text) if text.isascii() and text.isdecimal() else None


def _reply_of(status: int, body: bytes) -> Reply:
    """Read the answer; of a proxy's answer only what is there."""
    fields = fields_of(body)
    counts = counts_of(fields)
    if 200 <= status < 300 and counts is None:
        # Another program answered (a proxy, another service): no promise about readings.
        return Reply(
            status, 0, 0, "not_the_service", "whatever answers there is not iot-ingest", ()
        )
    accepted, dead_lettered = counts or (0, 0)
    return Reply(
        status,
        accepted,
        dead_lettered,
        code=str(fields.get("code", "")),
        detail=str(fields.get("detail") or fields.get("title") or ""),
        errors=tuple(
            ItemError(
                each["index"],
                str(each.get("code", "")),
                (f"{each['field']}: " if each.get("field") else "") + str(each.get("message", "")),
            )
            for each in item_errors_of(fields)
        ),
    )
