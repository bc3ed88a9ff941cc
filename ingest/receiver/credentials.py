"""Finds the token of a request: clients send it in very different places.

In this order; the first place that has one counts: `Authorization` as Bearer, as Token (also
`user:token`), or as the password of Basic; `?p=`; X-API-Key; X-Auth-Token; a part of the path.
`?u=`, the user beside `?p=`, is not read. Where the query is data, `p` and `u` are.
A proxy that has checked a client's certificate tells its name in a header of its own: the name
alone, or the whole subject.
Promises: no error has the token in it.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple
from urllib.parse import unquote_plus

from ingest.http.request import Head
from ingest.model.errors import Refused

TOKEN_HEADERS = ("X-API-Key", "X-Auth-Token")
_UNCLEAR = frozenset('\\"+;<>')
# Else it is the older form of OpenSSL, `/O=x/CN=y`, in which a comma is not escaped.
_PART = re.compile(r"(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)*)=.*")


class Presented(NamedTuple):
    """The token of a request, "" without one, and its query without it."""

    token: str
    query: str


def find(head: Head, query: str, in_path: str = "", *, in_query: bool = True) -> Presented:
    """Return the token. Raises Refused if one place has it twice: proxies and servers may differ
    in which one counts."""
    values, query = _split(query) if in_query else ([], query)
    if len(values) > 1:
        raise Refused("unauthorized", "the query parameter p is there more than once")
    of_query = unquote_plus("".join(values))
    token = _of_authorization(single(head, "Authorization"))
    others = (of_query, *(single(head, name).strip() for name in TOKEN_HEADERS), in_path)
    return Presented(next(filter(None, (token, *others)), ""), query)


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


def without_token(query: str) -> str:
    """Return the query without a token, where nobody looks at it."""
    return _split(query)[1]


def single(head: Head, name: str) -> str:
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
