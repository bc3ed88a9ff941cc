"""The documents of a body, for map_oracle.py: with Python's own JSON, and a form cut by hand."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NoReturn

SPACE = b" \t\n\r"
NOT_JSON = "not_json"
TEXT_CHARACTERS_MAX = 60


class Unknown(Exception):
    """The oracle says nothing of this body."""


class Bad(NamedTuple):
    """A document that cannot be read: the code of its fault."""

    code: str


class Twice(dict[str, Any]):
    """An object with a name that stands twice."""


def documents_of(body: bytes) -> list[Any] | str:
    """Return the documents of a body, or NOT_JSON. Raises Unknown."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    text = body.strip(SPACE)
    if not text:
        return []
    name, equals, _ = text.partition(b"=")
    if text[:1] not in (b"{", b"[", b'"') and equals and not set(name) & set(b'"{}[]<\n'):
        return [_form(text)]
    first, _, rest = body.partition(b"\n")
    if rest.strip(SPACE) and _json(first) != NOT_JSON:
        if not (first.strip(SPACE)[-1:] in b'}]"' or first.strip(SPACE).isalnum()):
            raise Unknown  # a number in the first line
        found: list[Any] = []
        for line in filter(None, (each.strip(SPACE) for each in body.split(b"\n"))):
            document = _json(line)
            if document == NOT_JSON:
                found.append(Bad("document_unreadable"))
            else:
                found += document if isinstance(document, list) else [document]
    else:
        document = _json(text)
        if document == NOT_JSON:
            return NOT_JSON
        found = document if isinstance(document, list) else [document]
    return [Bad("repeated_field") if _has_twice(each) else each for each in found]


def parsed(body: bytes) -> Any:
    """Parse JSON with exact integers; beyond 64 bits our parser makes a float of them."""
    return json.loads(
        body.decode(),
        parse_int=lambda text: _whole(int(text)),
        parse_constant=_refuse,
        object_pairs_hook=_object,
    )


def _json(text: bytes) -> Any:
    if re.search(rb"\\\\u[dD]", text):
        raise Unknown  # perhaps half of a surrogate pair
    try:
        return parsed(text)
    except ValueError:
        return NOT_JSON
    except RecursionError:
        raise Unknown from None


def _whole(number: int) -> int | float:
    return number if -(2**63) <= number < 2**64 else float(number)


def _refuse(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Twice(found)


def _has_twice(document: Any) -> bool:
    """Whether an object has a name twice. Raises Unknown for long texts."""
    if isinstance(document, dict):
        _check(*document)
        return isinstance(document, Twice) or any(map(_has_twice, document.values()))
    if isinstance(document, str):
        _check(document)
    return isinstance(document, list) and any(map(_has_twice, document))


def _check(*texts: str) -> None:
    if any(len(each) > TEXT_CHARACTERS_MAX for each in texts):
        raise Unknown


def _form(text: bytes) -> Any:
    pairs = [part.partition("=") for part in text.decode(errors="replace").split("&") if part]
    form = {_plain(name): _plain(value) for name, _, value in pairs}
    _check(*form, *form.values())
    return form if len(form) == len(pairs) else Bad("repeated_field")


def _plain(text: str) -> str:
    return re.sub(
        "(?:%[0-9A-Fa-f]{2})+",
        lambda found: bytes.fromhex(found[0].replace("%", "")).decode(errors="replace"),
        text.replace("+", " "),
    )
