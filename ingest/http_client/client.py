"""Posts bodies to one server with aiohttp's client; checks its URL, and reads its answers.

Promises: a post ends within `answer_s_max`. No redirect is followed, no cookie is kept, no proxy of
the environment is used, and of an answer at most ANSWER_BYTES_MAX are read. The certificate of an
https:// server is checked.
Does not: try again, or know what a status means.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector
from aiohttp import DummyCookieJar as NoCookies
from yarl import URL

from ingest import __version__
from ingest.model.errors import ConfigError, NoReply
from ingest.system.loopback import is_loopback_host

ANSWER_BYTES_MAX = 64 * 1024
WHOLE_BYTES_MAX = 1024**2  # aiohttp sends larger bodies in pieces only if they come from a file
KEEPALIVE_S = 10.0  # less than most servers': they seldom close a connection that we still use
ADDRESS_S = 10.0  # a name is looked up again after this


class Target(NamedTuple):
    """A URL. `shown` is its server: path and query may be secrets, so no log has them."""

    url: str
    shown: str


class ServerReply(NamedTuple):
    """An answer: its status, its header Retry-After, and how its body begins."""

    status: int
    retry_after: str
    text: bytes


class HttpClient:
    """A client of one server. Not before the event loop runs. `ca_file`: its certificates.

    Raises ConfigError if `ca_file` cannot be used.
    """

    def __init__(
        self,
        target: Target,
        *,
        connections_max: int,
        connect_s_max: float,
        answer_s_max: float,
        ca_file: str = "",
    ) -> None:
        self._url = URL(target.url, encoded=True)  # else it would change a signed query
        self._answer_s_max = answer_s_max
        self._under_way: set[asyncio.Timeout] = set()
        self._session = ClientSession(
            connector=TCPConnector(
                limit=connections_max,
                ssl=_context(ca_file),
                keepalive_timeout=KEEPALIVE_S,
                ttl_dns_cache=int(ADDRESS_S),
            ),
            # `post` has the limit for all of it.
            timeout=ClientTimeout(total=None, connect=connect_s_max),
            headers={"User-Agent": f"iot-ingest/{__version__}", "Accept-Encoding": "identity"},
            cookie_jar=NoCookies(),
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, body: bytes, headers: Mapping[str, str]) -> ServerReply:
        """Post a body; return the answer. Raises NoReply."""
        data = body if len(body) <= WHOLE_BYTES_MAX else io.BytesIO(body)
        try:
            async with asyncio.timeout(self._answer_s_max) as limit:
                self._under_way.add(limit)
                try:
                    async with self._session.post(
                        self._url, data=data, headers=headers, allow_redirects=False
                    ) as response:
                        return await _reply(response)
                finally:
                    self._under_way.discard(limit)
        except TimeoutError as error:
            raise NoReply(str(error) or f"no answer within {self._answer_s_max:g} s") from error
        except (ClientError, OSError, ValueError) as error:
            raise NoReply(f"{type(error).__name__}: {error}".removesuffix(": ")) from error

    def abort(self) -> None:
        """Let all posts that are under way end now, with NoReply."""
        now = asyncio.get_running_loop().time()
        for each in self._under_way:
            each.reschedule(now)

    async def close(self) -> None:
        """Close all connections. Repeatable."""
        await self._session.close()


async def _reply(response: ClientResponse) -> ServerReply:
    text = b""
    try:
        while len(text) < ANSWER_BYTES_MAX:
            more = await response.content.read(ANSWER_BYTES_MAX - len(text))
            if not more:
                break
            text += more
    except ClientError:
        pass  # the status is known: how the body ends changes nothing
    if not response.content.at_eof():
        response.close()  # the rest of the answer is not read
    return ServerReply(response.status, response.headers.get("Retry-After", ""), text)


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates in {ca_file} cannot be used: {error}") from None


def target_of(
    url: str,
    *,
    plain_http: bool = False,
    name: str = "the target",
    instead: str = "sign the posts instead (--secret-file)",
) -> Target:
    """Return a checked URL. Raises ConfigError with a sentence for the user.

    Readings leave this machine only by https://, unless `plain_http` is set. `name` is what the
    user calls the URL, `instead` what to do without a password in it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # brackets without an IPv6 address, a port that is no number
        raise ConfigError(f"{name} cannot be read as a URL: {error}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"{name} is not http://HOST/.. or https://HOST/..")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{name} has a character that a URL may not have: write it as %XX")
    if "@" in parts.netloc:
        raise ConfigError(
            f"{name} has a user or a password, which all users of this machine could read: "
            f"{instead}"
        )
    if parts.scheme == "http" and not (plain_http or is_loopback_host(host)):
        raise ConfigError(
            f"{name}: {host} would get the readings without TLS: use https://, or --plain-http if "
            "the network between is safe"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return Target(url, f"{parts.scheme}://{bracketed}{f':{port}' if port else ''}")


def retry_after_s(text: str, now_s: float, cap_s: float) -> float:
    """Return the pause of a header Retry-After, from 0 to `cap_s`; 0 if it cannot be read.

    It is a number of seconds, or a date. `now_s` is Unix time.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(cap_s, float(text))
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # `-0000`: UTC, from an unknown place
            moment = moment.replace(tzinfo=UTC)
        return min(cap_s, max(0.0, moment.timestamp() - now_s))
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
