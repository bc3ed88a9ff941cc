"""The query parameters of a post.

Promises: nothing is guessed. An unknown name or value is refused; the text has the known ones.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, TypeVar
from urllib.parse import parse_qsl

from ingest.formats.timestamp import PRECISIONS
from ingest.model.errors import Refused
from ingest.system.words import quoted

ALLOWED: dict[str, tuple[str, ...]] = {
    "ack": ("buffered", "durable", "committed"),
    "strict": ("true", "false"),
    "precision": PRECISIONS,
    "unknown": ("error", "ignore"),
}


class Query(NamedTuple):
    """The query parameters of a post. `ack` None: the setting decides."""

    ack: str | None = None
    strict: bool = False
    precision: str | None = None
    ignore_unknown: bool = False


class _WithAck(Protocol):
    @property
    def ack(self) -> str | None: ...

    def _replace(self, *, ack: str) -> Self: ...


AnyQuery = TypeVar("AnyQuery", bound=_WithAck)


def with_ack(query: AnyQuery, default: str, levels: tuple[str, ...]) -> AnyQuery:
    """Return a query with the acknowledgement that counts. Raises Refused("ack_unavailable")."""
    if query.ack is None:
        return query._replace(ack=default)
    if query.ack not in levels:
        raise Refused(
            "ack_unavailable",
            f"this service cannot give ack={query.ack}; it gives {', '.join(levels)}",
            available=levels,
        )
    return query


def parse_query(text: str) -> Query:
    """Parse the text after the `?`. Raises Refused("unknown_parameter" or "bad_parameter")."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        allowed = ALLOWED.get(name)
        if allowed is None:
            raise Refused(
                "unknown_parameter",
                f"there is no query parameter {quoted(name)}; known: {', '.join(ALLOWED)}",
                parameter=name[:80].encode("ascii", "backslashreplace").decode(),
            )
        if name in given:
            raise Refused("bad_parameter", f"{name} is given twice", parameter=name)
        if value not in allowed:
            raise Refused(
                "bad_parameter",
                f"{name} is one of {', '.join(allowed)}, not {quoted(value)}",
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
