"""The list of formats: for each media type, the function that decodes a body of it.

A new format is a file of this folder and one entry in FORMATS. Its invalid items become dead
letters, which have its name (model/letter.py), and dead_letters/manual_replay must decode it.
Line protocol is not in the list: its senders write any Content-Type, so its paths decide.
tests/contract/test_formats.py states what every format keeps, and runs over all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.formats import json_post
from ingest.formats.post import Decoded, Post, Steps
from ingest.model.errors import Refused
from ingest.system.words import quoted

# From the bytes of a body to a block and errors, or to the steps that lead there if they take more
# than a moment. Raises Refused and nothing else.
Decode = Callable[[bytes, Post], Decoded | Steps]

FORMATS: dict[str, Decode] = {"application/json": json_post.begin}

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


def format_of(header: str) -> Decode:
    """Return the format that a Content-Type header names; without one it is JSON.

    Raises Refused("unsupported_media_type"), also if the text is not UTF-8.
    """
    if not header:
        return json_post.begin
    media_type, *parameters = header.split(";")
    decode = FORMATS.get(media_type.strip().lower())
    if decode is not None and all(map(_is_harmless, parameters)):
        return decode
    known = " or ".join(FORMATS)
    raise Refused(
        "unsupported_media_type",
        f"the header must be `Content-Type: {known}`, not {quoted(header)} "
        f"(curl: -H 'content-type: {next(iter(FORMATS))}')",
    )


def _is_harmless(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip().lower() != "charset" or value.strip(' "').lower() in _CHARSETS
