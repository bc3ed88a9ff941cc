"""The list of formats: for each media type, its name and the function that decodes a body of it.

A new format is a file of this folder and its entries in FORMATS. Its invalid items become dead
letters, which have its name (model/reading.py), and DECODE_ITEM must decode one of them.
Line protocol is not in the list: its senders write any Content-Type, so its paths decide.
tests/contract/test_formats.py states what every format keeps, and runs over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ingest.formats import messagepack, senml
from ingest.formats.json.body import begin, begin_lines, decode
from ingest.formats.post import Decode, Decoded, Post, finished
from ingest.model.errors import Refused
from ingest.model.reading import JSON, MSGPACK, NDJSON, SENML
from ingest.system.words import quoted


class Format(NamedTuple):
    """A format: its name in dead letters and in the scope of tokens, and its decoder."""

    name: str
    decode: Decode


_JSON = Format(JSON, begin)
_NDJSON = Format(NDJSON, begin_lines)
_MSGPACK = Format(MSGPACK, messagepack.begin)
FORMATS: dict[str, Format] = {
    "application/json": _JSON,
    "application/x-ndjson": _NDJSON,
    "application/ndjson": _NDJSON,
    "application/jsonl": _NDJSON,
    "application/x-jsonl": _NDJSON,
    "application/jsonlines": _NDJSON,
    "application/x-jsonlines": _NDJSON,
    "application/json-lines": _NDJSON,
    "application/msgpack": _MSGPACK,
    "application/x-msgpack": _MSGPACK,
    "application/vnd.msgpack": _MSGPACK,
    "application/senml+json": Format(SENML, senml.begin),
}
# The one of each format that is named to users.
USUAL = (
    *("application/json", "application/x-ndjson", "application/msgpack"),
    "application/senml+json",
)
# From the bytes of a dead letter, by its format.
DECODE_ITEM: dict[str, Callable[[bytes, Post], Decoded]] = {
    JSON: lambda original, post: decode(b"[%b]" % original, post),
    NDJSON: lambda original, post: finished(begin_lines(original, post)),
    MSGPACK: messagepack.decode_item,
    SENML: lambda original, post: finished(senml.begin(b"[%b]" % original, post)),
}

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


def format_of(header: str) -> Format:
    """Return the format that a Content-Type header names; without one it is JSON.

    Raises Refused("unsupported_media_type"), also if the text is not UTF-8.
    """
    if not header:
        return _JSON
    media_type, *parameters = header.split(";")
    found = FORMATS.get(media_type.strip().lower())
    if found is not None and all(map(_is_harmless, parameters)):
        return found
    known = ", ".join(USUAL[:-1])
    raise Refused(
        "unsupported_media_type",
        f"the header `Content-Type` must be {known} or {USUAL[-1]}, not {quoted(header)} "
        f"(curl: -H 'content-type: {USUAL[0]}')",
    )


def _is_harmless(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip().lower() != "charset" or value.strip(' "').lower() in _CHARSETS
