"""The guard of the dashboard: who may see the page, and who may act on it.

There are two kinds of secrets: the admin token of this service (a setting, or new at each start),
and tokens of the file of tokens that are made for the admin port, to read or to operate.
If the port listens on the loopback, and the file has no such token, every user of the machine may
see the page. Else the page needs a token. Actions always need the admin token or one to operate. A
token comes as `Authorization: Bearer`, or as the cookie that a log-in sets. With the cookie,
actions also need the CSRF token of the page.
Pages of other sites may do nothing: on the loopback the Host header must be a name of it; a name
that an attacker points to 127.0.0.1 is none. If the operator has set no token, a key, which works
once, logs a browser in without it. The key is in a query and never in a path: paths are listed in
answers, and are labels of metrics. Probes and /metrics do not use the guard.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from hashlib import blake2b

from ingest.access.token_lines import OPERATES, digest_of
from ingest.access.tokens import Identity, Tokens
from ingest.http.clients import is_loopback, is_loopback_name, is_same_origin
from ingest.model.errors import Refused

CSRF_HEADER = "X-CSRF-Token"
KEY_PATH = "/login/key"
NOTHING, LOOK, ACT = 0, 1, 2  # what a request may do


class Guard:
    """The guard of one admin port. It needs the token until `bound` has told it of a loopback.

    `tokens` are those of the file. `with_key`: there is a key, which logs in one browser.
    """

    def __init__(self, token: str, *, with_key: bool = False, tokens: Tokens | None = None) -> None:
        self._token = token.encode()
        self._tokens = tokens or Tokens()
        self._cookie = self._derived(b"cookie")
        self.csrf = self._derived(b"csrf")
        # A browser sends a cookie to all ports of a host, so each instance has a name of its own.
        self.cookie_name = "ingest-" + self._derived(b"name")[:8]
        self._loopback = False
        self._key = secrets.token_urlsafe(18) if with_key else ""
        self.key_target = f"{KEY_PATH}?key={self._key}" if with_key else "/"

    def _derived(self, use: bytes) -> str:
        return blake2b(use, key=self._token[:64], digest_size=24).hexdigest()

    def bound(self, address: str) -> None:
        """Set the address that the port is bound to, as HOST:PORT."""
        self._loopback = is_loopback(address)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise Refused if the port is on the loopback and the Host header is no name of it."""
        if self._loopback and not is_loopback_name(headers.get("Host", "")):
            raise Refused("wrong_host", "this port answers to localhost, 127.0.0.1 and [::1] only")

    def _right(self, headers: Mapping[str, str]) -> int:
        """Return what the token of a request, or its cookie, allows."""
        kind, _, given = headers.get("Authorization", "").partition(" ")
        right = self._right_of(given.strip()) if kind.lower() == "bearer" else NOTHING
        for part in headers.get("Cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie_name:
                right = max(right, self._right_of_cookie(value))
        return right

    def _right_of(self, token: str) -> int:
        """Return what a token allows. Takes the same time for every wrong one."""
        is_ours, identity = _same(token, self._token), self._tokens.find(token)
        return ACT if is_ours else _right_of(identity)

    def _right_of_cookie(self, value: str) -> int:
        digest, _, seal = value.rpartition(".")
        if not digest:
            return ACT if _same(value, self._cookie.encode()) else NOTHING
        is_ours = _same(
            seal, self._derived(b"cookie " + digest.encode("utf-8", "replace")).encode()
        )
        # A token that was ended since ends the log-in, too.
        return _right_of(self._tokens.with_digest(digest)) if is_ours else NOTHING

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has a token to act, or the cookie of such a log-in."""
        return self._right(headers) == ACT

    def log_in(self, token: str) -> bytes:
        """Return the header with the cookie that logs a browser in; empty for a wrong token."""
        right = self._right_of(token)
        if right == NOTHING:
            return b""
        if _same(token, self._token):
            return self.cookie_line()
        digest = digest_of(token)
        return self.cookie_line(f"{digest}.{self._derived(b'cookie ' + digest.encode())}")

    def may_look(self, headers: Mapping[str, str]) -> bool:
        """Whether page and feed may be shown. Raises Refused `wrong_host`."""
        self.check_host(headers)
        everybody = self._loopback and not self._tokens.has_admins
        return everybody or self._right(headers) >= LOOK

    def check_look(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless page and feed may be shown."""
        if not self.may_look(headers):
            raise Refused("unauthorized", "the page needs a token: log in at /login")

    def may_act(self, headers: Mapping[str, str]) -> bool:
        """Whether page and requests with these headers may act. Raises Refused `wrong_host`."""
        self.check_host(headers)
        return self.knows(headers)

    def use_key(self, given: str) -> bool:
        """Whether a request with this key logs its browser in: the first one does."""
        right = bool(self._key) and _same(given, self._key.encode())
        if right:
            self._key = ""
        return right

    def check_act(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless the request has the token, or comes from our page after a log-in."""
        if not self.may_act(headers):
            raise Refused(
                "unauthorized",
                "this needs a log-in at /login, with a token to operate; `ingest config --print "
                "admin_token` prints that of the running service",
            )
        bearer = headers.get("Authorization", "")
        if bearer and self.knows({"Authorization": bearer}):
            return  # no browser adds this header by itself, so no other site caused the request
        if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin" or not is_same_origin(
            headers
        ):
            raise Refused("forbidden", "the request comes from another site")
        if not _same(headers.get(CSRF_HEADER, ""), self.csrf.encode()):
            raise Refused("forbidden", f"{CSRF_HEADER} is missing or old: load the page again")

    def cookie_line(self, value: str = "") -> bytes:
        """Return the header that logs a browser in until it is closed: as with the admin token."""
        cookie = f"{self.cookie_name}={value or self._cookie}"
        return f"Set-Cookie: {cookie}; Path=/; HttpOnly; SameSite=Strict\r\n".encode()


def _right_of(identity: Identity | None) -> int:
    if identity is None or not identity.entry.admin:
        return NOTHING
    return ACT if identity.entry.admin == OPERATES else LOOK


def _same(given: str, wanted: bytes) -> bool:
    # Header bytes that are not UTF-8 come as surrogates; turn them into the same bytes.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted)
