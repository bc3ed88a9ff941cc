"""The guard of the dashboard: who may see the page, and who may act on it.

If the port listens on the loopback, every user of the machine may see the page. Pages of other
sites may not. So the Host header must be a name of the loopback; a name that an attacker points to
127.0.0.1 is none. If the port listens elsewhere, the page needs the admin token too.
Actions always need the admin token: as `Authorization: Bearer`, or as the cookie that a log-in
sets. With the cookie they also need the CSRF token of the page. If the operator has set no token,
a key, which works once, logs a browser in without it. The key is in a query and never in a path:
paths are listed in answers, and are labels of metrics. Probes and /metrics do not use the guard.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from hashlib import blake2b

from ingest.http.sites import is_loopback, is_loopback_name, is_same_origin
from ingest.model.errors import Refused

CSRF_HEADER = "X-CSRF-Token"
KEY_PATH = "/login/key"


class Guard:
    """The guard of one admin port. It needs the token until `bound` has told it of a loopback.

    `with_key`: there is a key, which logs in one browser.
    """

    def __init__(self, token: str, *, with_key: bool = False) -> None:
        self._token = token.encode()
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

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has the token, or the cookie of a log-in."""
        kind, _, given = headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        for part in headers.get("Cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie_name and _same(value, self._cookie.encode()):
                return True
        return False

    def is_token(self, given: str) -> bool:
        """Whether this is the token. Takes the same time for every text."""
        return _same(given, self._token)

    def may_look(self, headers: Mapping[str, str]) -> bool:
        """Whether page and feed may be shown. Raises Refused `wrong_host`."""
        self.check_host(headers)
        return self._loopback or self.knows(headers)

    def check_look(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless page and feed may be shown."""
        if not self.may_look(headers):
            raise Refused("unauthorized", "beyond the loopback the page needs the admin token")

    def may_act(self, headers: Mapping[str, str]) -> bool:
        """Whether page and requests with these headers may act. Raises Refused `wrong_host`."""
        self.check_host(headers)
        return self.knows(headers)

    def check_may_act(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless the request has the token or the cookie."""
        if not self.may_act(headers):
            raise Refused(
                "unauthorized",
                "this needs a log-in at /login; `ingest config --print admin_token` prints the "
                "token of the running service",
            )

    def use_key(self, given: str) -> bool:
        """Whether a request with this key logs its browser in: the first one does."""
        right = bool(self._key) and _same(given, self._key.encode())
        if right:
            self._key = ""
        return right

    def check_act(self, headers: Mapping[str, str]) -> None:
        """Raise Refused unless the request has the token, or comes from our page after a log-in."""
        self.check_may_act(headers)
        bearer = headers.get("Authorization", "")
        if bearer and self.knows({"Authorization": bearer}):
            return  # no browser adds this header by itself, so no other site caused the request
        if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin" or not is_same_origin(
            headers
        ):
            raise Refused("forbidden", "the request comes from another site")
        if not _same(headers.get(CSRF_HEADER, ""), self.csrf.encode()):
            raise Refused("forbidden", f"{CSRF_HEADER} is missing or old: load the page again")

    def cookie_line(self) -> bytes:
        """Return the header with the cookie that logs a browser in until it is closed."""
        return (
            f"Set-Cookie: {self.cookie_name}={self._cookie}; Path=/; HttpOnly; SameSite=Strict\r\n"
        ).encode()


def _same(given: str, wanted: bytes) -> bool:
    # Header bytes that are not UTF-8 come as surrogates; turn them into the same bytes.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted)
