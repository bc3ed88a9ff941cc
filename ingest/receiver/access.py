"""Who may send to the data port, and which pages of a browser may.

A head that the port knows already is not judged again: its identity stays with it. So each post
looks only whether its identity is still live.
Clients send a token in very different places. In this order, the first that has one counts:
`Authorization` as Bearer, as Token (also `user:token`), or as the password of Basic; `?p=`;
X-API-Key; X-Auth-Token; a part of the path. `?u=`, the user beside `?p=`, is not read. Where the
query is data, `p` and `u` are. A proxy that has checked a client's certificate tells its name in a
header of its own: the name alone, or the whole subject.
Promises: no error has the token in it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from urllib.parse import unquote_plus

from ingest.access.tokens import ANYBODY, Identity, Tokens, is_open
from ingest.http.clients import is_loopback, is_loopback_name, is_same_origin
from ingest.http.request_and_answer import AUTHORIZATION, Head, Request
from ingest.model.errors import Refused
from ingest.system.logs import get_logger
from ingest.system.words import command_words

TOKEN_HEADERS = ("X-API-Key", "X-Auth-Token")
_UNCLEAR = frozenset('\\"+;<>')
# Else it is the older form of OpenSSL, `/O=x/CN=y`, in which a comma is not escaped.
_PART = re.compile(r"(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)*)=.*")
_OWN_SITES = frozenset({"none", "same-origin"})


class Access:
    """The guard of the data port. Until `bound`, a token is needed.

    `access` is the setting. `host_names` are names of this port besides those of the loopback.
    `has_proxies`: some are trusted, and bring posts from elsewhere. `certificate_header` is where
    they tell the name in a client's certificate; "": they tell none.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        access: str,
        host_names: Collection[str],
        has_proxies: bool,
        certificate_header: str = "",
    ) -> None:
        self._certificate_header = certificate_header
        self._has_proxies = has_proxies
        self._tokens = tokens
        self._access = access
        self._host_names = host_names
        self.is_open = False
        self._checks_host = False
        self._run = command_words()["run"]
        self._log = get_logger("access")

    def bound(self, address: str) -> None:
        """Set the HOST:PORT that is bound. Raises StartError if nobody could send there."""
        loopback, tokens = is_loopback(address), self._tokens.entries.senders
        self.is_open = is_open(
            self._access,
            private=loopback and not self._has_proxies,
            tokens=tokens,
            address=address,
            run=command_words()["down"],
        )
        self._checks_host = self.is_open and loopback
        if not self.is_open and not tokens:
            hint = f"every post gets 401; make a token: {self._run} token new NAME"
            self._log.warning("nobody_may_send", hint=hint)

    def check_site(self, head: Head) -> None:
        """Raise Refused if a page of another site made a browser send this.

        Where nobody needs a token, the name of another site may also have been pointed to the
        loopback; then the browser takes its page for one of ours.
        """
        headers = head.headers
        sites = headers.getall("Sec-Fetch-Site", ())
        if len(headers.getall("Origin", ())) > 1 or not (
            _OWN_SITES.issuperset(sites) and is_same_origin(headers)
        ):
            raise Refused("foreign_site", "a page of another site has sent this")
        by_page = self._checks_host and "Origin" in headers
        if by_page and not is_loopback_name(headers.get("Host", ""), self._host_names):
            raise Refused(
                "wrong_host",
                "a page of this name may not post: it is no name of the loopback, and none of "
                "host_names",
            )

    def check_get(self, head: Head) -> None:
        """Raise Refused if a page may have made a browser GET what is written.

        With a GET for a picture, say, a browser may send no Origin and no Sec-Fetch-Site. So here
        the Host must be known where nobody needs a token, and a Referer must be ours.
        """
        headers = head.headers
        if not is_same_origin(headers, "Referer"):
            raise Refused("foreign_site", "a page of another site has sent this")
        host = headers.get("Host", "")
        if self._checks_host and not is_loopback_name(host, self._host_names):
            raise Refused(
                "wrong_host",
                "where nobody needs a token, a GET that is stored needs a name of the loopback, or "
                "one of host_names",
            )

    def identify(
        self, request: Request, query: str, in_path: str = "", *, in_query: bool = True
    ) -> tuple[Identity, str]:
        """Return who has sent it, and its query without what says so.

        Raises Refused `unauthorized`.
        A token counts before a certificate. Others may send the same head as a proxy that tells of
        a certificate: see `check_proxy`. `in_path`: what stands in the path in place of a token.
        Without `in_query` the query is data, and has none.
        """
        if self.is_open or request.sender.is_open:
            return ANYBODY, _split(query)[1] if in_query else query
        token, query = _presented(request.head, query, in_path, in_query=in_query)
        if not token:
            if (identity := self._with_certificate(request)) is not None:
                return identity, query
            raise Refused(
                "unauthorized",
                "there is no token; send it as `Authorization: Bearer TOKEN`. The operator makes "
                f"one with `{self._run} token new NAME`",
            )
        identity = self._tokens.find(token)
        if identity is None:
            raise Refused("unauthorized", "the token is wrong, or is not valid any more")
        return identity, query

    def identity_in(self, authorization: str) -> Identity | None:
        """Return who has the live token in this header; None also where nobody needs one."""
        token = _of_authorization(authorization)
        return self._tokens.find(token) if token and not self.is_open else None

    def check_proxy(self, request: Request) -> None:
        """Raise Refused `unauthorized` unless a trusted proxy brings this request.

        To be asked for each request of an identity that a certificate has proved: the head of a
        request is known by its bytes, and anybody can send these.
        """
        if not request.is_forwarded:
            raise Refused("unauthorized", "only a trusted proxy may tell of a certificate")

    def _with_certificate(self, request: Request) -> Identity | None:
        """Return the identity of the certificate that a trusted proxy has checked. Raises Refused
        if no entry has its name."""
        header = self._certificate_header
        if not header or not request.is_forwarded:
            return None
        told = _single(request.head, header)
        if not told.strip():
            return None
        identity = self._tokens.with_certificate(certificate_name(told))
        if identity is None:
            raise Refused(
                "unauthorized",
                "the name in the certificate is not known or not clear, or is not valid any more",
            )
        return identity


def _presented(head: Head, query: str, in_path: str, *, in_query: bool) -> tuple[str, str]:
    """Return the token, "" without one, and the query without it.

    Raises Refused if one place has it twice: proxies and servers may differ in which one counts.
    """
    values, query = _split(query) if in_query else ([], query)
    if len(values) > 1:
        raise Refused("unauthorized", "the query parameter p is there more than once")
    of_query = unquote_plus("".join(values))
    token = _of_authorization(_single(head, AUTHORIZATION))
    others = (of_query, *(_single(head, name).strip() for name in TOKEN_HEADERS), in_path)
    return next(filter(None, (token, *others)), ""), query


def certificate_name(value: str) -> str:
    """Return the name in a certificate, from what a proxy tells of it; "" if that is not clear.

    A subject (RFC 4514, as of nginx and Caddy) must have one CN. One with an escaped or quoted
    character, with two values in one part, or in another form, has none: others might read it
    differently.
    """
    value = value.strip()
    if "=" not in value:
        return value
    parts = [each.strip() for each in value.split(",")]
    if _UNCLEAR.intersection(value) or not all(map(_PART.fullmatch, parts)):
        return ""
    names = [each[3:] for each in parts if each[:3].upper() == "CN="]
    return names[0] if len(names) == 1 else ""


def _single(head: Head, name: str) -> str:
    """Return the value of a header, "" without it. Raises Refused if it is there twice."""
    if name not in head.headers:
        return ""
    values = head.headers.getall(name)
    if len(values) > 1:
        raise Refused("unauthorized", f"the header {name} is there more than once")
    return values[0]


def _of_authorization(value: str) -> str:
    scheme, _, given = value.strip().partition(" ")
    given = given.strip()
    match scheme.lower():
        case "bearer" | "token":
            return given.rpartition(":")[2]
        case "basic":
            return _password(given)
    return ""


def _password(given: str) -> str:
    try:
        text = base64.b64decode(given, validate=True)
    except ValueError:  # also if it is not ASCII
        return ""
    return text.decode("utf-8", "surrogateescape").partition(":")[2]


def _split(query: str) -> tuple[list[str], str]:
    """Return the values of `p`, and the query without `p` and `u`."""
    if "p=" not in query and "u=" not in query:
        return [], query
    pairs = [each.partition("=") for each in query.split("&")]
    values = [value for name, _, value in pairs if name == "p"]
    rest = "&".join("".join(each) for each in pairs if each[0] not in {"p", "u"})
    return values, rest
