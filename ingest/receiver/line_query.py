"""The query parameters of a post of line protocol, in the dialects of InfluxDB 1, 2 and 3.

Its senders cannot be changed. So an unknown parameter is ignored. Only a value that decides what is
stored, or how safely, is refused if it is not known.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl

from ingest.model.errors import Refused
from ingest.system.words import quoted

ACKS = ("buffered", "durable", "committed")
PRECISIONS: dict[str, str | None] = {
    "": None,
    "auto": None,
    **dict.fromkeys(("n", "ns", "nanosecond"), "ns"),
    **dict.fromkeys(("u", "us", "µ", "microsecond"), "us"),
    **dict.fromkeys(("ms", "millisecond"), "ms"),
    **dict.fromkeys(("s", "second"), "s"),
    "m": "m",
    "h": "h",
}


class LineQuery(NamedTuple):
    """What the query says. `ack` None: the setting decides. `precision` None: by magnitude.

    `database` is the name of a database or bucket, empty if there is none.
    """

    ack: str | None = None
    strict: bool = False
    precision: str | None = None
    database: str = ""


def parse_line_query(text: str) -> LineQuery:
    """Parse the text after the `?`. Raises Refused("bad_parameter")."""
    given = dict(parse_qsl(text, keep_blank_values=True))
    precision = given.get("precision", "")
    if precision not in PRECISIONS:
        raise _bad("precision", precision, [each for each in PRECISIONS if each])
    ack = given.get("ack")
    if ack is None and given.get("no_sync") == "true":
        ack = "buffered"
    if ack is not None and ack not in ACKS:
        raise _bad("ack", ack, ACKS)
    return LineQuery(
        ack=ack,
        strict=given.get("strict") == "true" or given.get("accept_partial") == "false",
        precision=PRECISIONS[precision],
        database=given.get("db") or given.get("bucket") or "",
    )


def _bad(name: str, value: str, allowed: list[str] | tuple[str, ...]) -> Refused:
    return Refused(
        "bad_parameter",
        f"{name} is one of {', '.join(allowed)}, not {quoted(value)}",
        parameter=name,
        allowed=allowed,
    )
