"""What a post asks for, besides its readings: query parameters, media type.

Promises: nothing is guessed; what is not known is refused, by name and with what would be right.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl

from ingest.formats.timestamp import PRECISIONS
from ingest.http.response import shown
from ingest.model.errors import Refused

_ALLOWED: dict[str, tuple[str, ...]] = {
    "ack": ("buffered", "durable", "committed"),
    "strict": ("true", "false"),
    "precision": PRECISIONS,
    "unknown": ("error", "ignore"),
}
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


class Query(NamedTuple):
    """The query parameters of a post. `ack` None: the setting decides."""

    ack: str | None = None
    strict: bool = False
    precision: str | None = None
    ignore_unknown: bool = False


def parse_query(text: str) -> Query:
    """Parse what follows the `?`. Raises Refused("unknown_parameter" or "bad_parameter")."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        allowed = _ALLOWED.get(name)
        if allowed is None:
            raise Refused(
                "unknown_parameter",
                f"there is no query parameter {shown(name)}; known: {', '.join(_ALLOWED)}",
                parameter=_printable(name),
            )
        if name in given:
            raise Refused("bad_parameter", f"{name} is given twice", parameter=name)
        if value not in allowed:
            raise Refused(
                "bad_parameter",
                f"{name} is one of {', '.join(allowed)}, not {shown(value)}",
                parameter=name,
                allowed=allowed,
            )
        given[name] = value
    return Query(
        ack=given.get("ack"),
        strict=given.get("strict") == "true",
        precision=given.get("precision"),
        ignore_unknown=given.get("unknown") == "ignore",
    )


def check_media_type(header: str | None) -> None:
    """Raise Refused("unsupported_media_type") for anything but JSON in UTF-8."""
    media_type, *parameters = (header or "").split(";")
    if media_type.strip().lower() == "application/json" and all(map(_is_harmless, parameters)):
        return
    got = f"not {shown(header)}" if header else "and the post has none"
    raise Refused(
        "unsupported_media_type",
        f"the header must be `Content-Type: application/json`, {got} "
        "(curl: -H 'content-type: application/json')",
    )


def _is_harmless(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip().lower() != "charset" or value.strip(' "').lower() in _CHARSETS


def _printable(text: str) -> str:
    return text[:80].encode("ascii", "backslashreplace").decode()
