"""From the body of a mapped post to its documents: JSON, an array of it, lines of it, or a form.

The Content-Type is not looked at: many senders write a wrong one. A body that begins with `{`, `[`
or `"` is JSON. Else, if it has a `=` behind what may be the name of a field, it is a form. If the
first line of several is JSON by itself, each line is. So a line that is not JSON, such as `a=5`,
must not be read alone later as if it were a form: see `is_json`.
Promises: a step is short; a document has at most ITEM_BYTES_MAX bytes, about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import orjson

from ingest.formats.json_slices import (
    ITEM_BYTES_MAX,
    RAWS,
    SPACE,
    not_json,
    parsed_in_full,
    slices,
    whole_number,
)
from ingest.model.errors import Refused

FORM_BYTES_MAX = 64 * 1024
FORM_FIELDS_MAX = 1_000
STEP_LINES = 32
STEP_BYTES = 32 * 1024
UNREADABLE = "document_unreadable"  # only a document of JSON is, never a form
_BOM = b"\xef\xbb\xbf"

# JSON that has lost its beginning has one of these marks before a `=`.
_FORM = re.compile(rb'[ \t\n\r]*+[^"{}\[\]<\n=]*+=')


class Unreadable(NamedTuple):
    """What stands in place of a document that cannot be read: the code of its fault, and why."""

    code: str
    why: str


class Documents(NamedTuple):
    """Some documents, and the bytes that they were read from."""

    parsed: list[Any]
    text: bytes
    is_array: bool

    def originals(self) -> list[bytes]:
        """Return the bytes of each document."""
        if not self.is_array:
            return [self.text.strip(SPACE)]
        try:
            return [bytes(raw) for raw in RAWS.decode(self.text)]
        except (RecursionError, msgspec.DecodeError):  # deeper than this parser reads
            return [json.dumps(each).encode() for each in self.parsed]


Steps = Generator[Documents | None, None, None]


def form_in(text: str) -> dict[str, str]:
    """Read a form or a query; of a name that stands twice the last value counts.

    Raises Refused if it has too many fields.
    """
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX))
    except ValueError:
        raise _form_too_large() from None


def documents(body: bytes, readings_max: int, *, is_json: bool = False) -> Steps:
    """Yield the documents of a body, and None after other work. Raises Refused.

    `is_json`: it is known to be no form, whatever it looks like.
    """
    body = body.removeprefix(_BOM)
    first = body[:64].lstrip(SPACE)[:1]
    if not is_json and first not in (b"{", b"[", b'"') and _FORM.match(body):
        yield _form(body)
    elif first and _is_lines(body):
        yield from _lines(body)
    elif body.strip(SPACE):
        is_array = first == b"[" or body.lstrip(SPACE)[:1] == b"["
        for each in slices(body, readings_max, parsed_in_full, keeps_moments=False):
            if each is None or len(each[1]) > 2 * STEP_BYTES:
                yield None
            if each is not None:
                yield _checked(each[0], each[1], is_array)


def _form(body: bytes) -> Documents:
    if len(body) > FORM_BYTES_MAX:
        raise _form_too_large()
    text = body.strip(SPACE).decode("utf-8", "replace")
    form = form_in(text)
    pairs = text.count("&") + 1
    if len(form) < pairs and len(form) < len(parse_qsl(text, keep_blank_values=True)):
        return Documents([_repeated("the form")], body, is_array=False)
    return Documents([form], body, is_array=False)


def _form_too_large() -> Refused:
    return Refused(
        "too_many_readings",
        f"a form may have {FORM_FIELDS_MAX} fields and {FORM_BYTES_MAX} bytes",
    )


def _is_lines(body: bytes) -> bool:
    """Whether there are several lines, and the first one is a document by itself."""
    end = body.find(b"\n", 0, ITEM_BYTES_MAX)
    if end < 0 or not body[end : end + 64 * 1024].strip(SPACE):
        return False
    line = body[:end].strip(SPACE)
    if line[-1:] not in (b"}", b"]", b'"') and not line.isalnum():
        return False
    try:
        parsed_in_full(line)
    except ValueError:
        return False
    return True


def _lines(body: bytes) -> Steps:
    at = number = size = 0
    while at < len(body):
        end = body.find(b"\n", at)
        end = len(body) if end < 0 else end
        line = body[at:end].strip(SPACE)
        at = end + 1
        number += 1
        size += len(line)
        if line:
            yield _line(line)
        if not number % STEP_LINES or size > STEP_BYTES:
            size = 0
            yield None


def _line(line: bytes) -> Documents:
    if len(line) > ITEM_BYTES_MAX:
        raise Refused(
            "item_too_large",
            f"a document may have at most {ITEM_BYTES_MAX} bytes",
            item_bytes_max=ITEM_BYTES_MAX,
        )
    try:
        parsed = parsed_in_full(line)
    except ValueError as fault:
        return Documents([Unreadable(UNREADABLE, not_json(fault).detail)], line, is_array=False)
    is_array = isinstance(parsed, list)
    return _checked(parsed if is_array else [parsed], line, is_array)


def _checked(parsed: list[Any], text: bytes, is_array: bool) -> Documents:
    """Look for names that stand twice in one object: the parser has dropped one of their values."""
    found = Documents(parsed, text, is_array)
    if len(parsed) == 1 and not is_array:
        parsed[0] = _fault_of(parsed[0], text) or parsed[0]
    elif _fault_of(parsed, text) is not None:
        for at, original in enumerate(found.originals()):
            parsed[at] = _fault_of(parsed[at], original) or parsed[at]
    return found


def _fault_of(parsed: Any, text: bytes) -> Unreadable | None:
    """Return the fault of what was parsed without an error.

    Each dropped member has a colon behind its name. So the texts have equally many colons only if
    there is none.
    """
    try:
        again = orjson.dumps(parsed)
    except TypeError:  # it is deeply nested, or has a number of more than 64 bits
        if len(text) > STEP_BYTES:
            why = "a large document must not be deeply nested, or have numbers beyond 64 bits"
            return Unreadable(UNREADABLE, why)
        return _repeated() if _repeats(text) else None
    return _repeated() if _colons(text) != again.count(b":") else None


def _colons(text: bytes) -> int:
    """Return how many colons a JSON text has, in its strings too, also those that are escaped."""
    colons = text.count(b":")
    if b"\\u003" in text:
        text = text.replace(b"\\\\", b"")  # what follows two of them is not escaped
        colons += text.count(b"\\u003a") + text.count(b"\\u003A")
    return colons


def _repeats(text: bytes) -> bool:
    """Whether an object has a name twice."""
    repeats = False

    def note(pairs: list[tuple[str, Any]]) -> None:
        nonlocal repeats
        repeats = repeats or len({name for name, _ in pairs}) < len(pairs)

    try:
        json.loads(text.decode(), object_pairs_hook=note, parse_int=whole_number)
    except (ValueError, RecursionError):
        return False
    return repeats


def _repeated(where: str = "an object") -> Unreadable:
    return Unreadable("repeated_field", f"{where} has a name twice")
