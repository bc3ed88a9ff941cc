"""Paths of a mapping: where in a document a name, a time or a value is.

    a.b  a.0  "x-y".c     from the row: names of objects and places in lists; odd names in quotes
    .  ^a  $key           the row itself; from the whole document; the name that the row has
    $query.x  $form  $header.x  $path.x  $token.device     what came beside the body
    $topic  $topic.2  the topic of an MQTT message; its second level

A text with `{path}` in it is put together from what is at these paths. A text that begins with `=`
is the rest of it, as it is. A path is compiled once; to follow it costs a call for each part.
Promises: nothing that a document has makes a compiled path fail.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOTS = ("query", "form", "header", "path", "token", "topic")
SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token"}
)
TEXT_CHARACTERS_MAX = 4_096  # of what is put together from several paths

_PART = re.compile(r'"((?:[^"\\]|\\.)+)"|([^."\[\]{}^$\s][^."\[\]{}]*)')
_HOLE = re.compile(r"\{([^{}]+)\}")
MISSING: Any = object()  # is at a path that leads nowhere
_ESCAPED = re.compile(r"\\(.)")


class Spot:
    """Where a path is followed: the whole document, what came beside it, and the name of the row.

    `roots` has objects by the names in ROOTS; the topic is a text.
    """

    __slots__ = ("document", "key", "roots")

    def __init__(self, document: Any, roots: Mapping[str, Any], key: str = "") -> None:
        self.document = document
        self.roots = roots
        self.key = key


# Follows a path from a row; MISSING if it leads nowhere, or to null.
Read = Callable[[Any, Spot], Any]


def compile_path(text: str) -> Read:
    """Compile one path. Raises ValueError with a sentence for users."""
    if text == ".":
        return _itself
    if text == "$key":
        return _key
    begin: Read = _itself
    rest = text
    if text.startswith("^"):
        begin, rest = _document, text[1:]
        if rest in ("", "."):
            return _document
    elif text.startswith("$"):
        name, dot, rest = text[1:].partition(".")
        if not name:
            raise ValueError(f"{text!r} is no path: a path begins with a name, as in a.b")
        if name not in ROOTS:
            known = ", ".join(f"${each}" for each in ("key", *ROOTS))
            raise ValueError(f"there is no ${name}; there are {known}")
        if name == "header":
            rest = _header(rest)
        elif (name, rest) == ("path", "token"):
            raise ValueError("$path.token is secret; use $token.device")
        elif name == "topic" and dot:
            return _level(rest)
        begin = _root(name)
        if not dot:
            return begin
    return _along(begin, parts_of(rest, text))


def parts_of(text: str, whole: str) -> list[str]:
    """Return the names along a path. Raises ValueError."""
    parts: list[str] = []
    at = 0
    while True:
        found = _PART.match(text, at)
        if found is None:
            raise ValueError(f'{whole!r} is no path: write a.b, a.0 or "odd name".c')
        parts.append(_ESCAPED.sub(r"\1", found[1]) if found[1] else found[2])
        at = found.end()
        if at == len(text):
            return parts
        if text[at] in "{}":
            raise ValueError(f"{whole!r} has a brace without its partner")
        if text[at] == "[":
            raise ValueError(f"{whole!r} is no path: a place in a list is written as in a.0")
        if text[at] != ".":
            raise ValueError(f"{whole!r} is no path: a point is missing behind {text[:at]!r}")
        at += 1


def compile_text(text: str) -> Read:
    """Compile a path, a text with `{path}`, or `=` and a text. Raises ValueError."""
    if text.startswith("="):
        return _fixed(text[1:])
    if not _HOLE.search(text):
        return compile_path(text)
    pieces: list[str | Read] = []
    for at, piece in enumerate(_HOLE.split(text)):
        if at % 2:
            pieces.append(compile_path(piece))
        elif "{" in piece or "}" in piece:
            raise ValueError(f"{text!r} has a brace without its partner")
        elif piece:
            pieces.append(piece)
    return _joined(pieces)


def compile_first(texts: Sequence[str], compile_one: Callable[[str], Read]) -> Read:
    """Compile some; the first that leads somewhere counts. Raises ValueError."""
    reads = tuple(map(compile_one, texts))
    if len(reads) == 1:
        return reads[0]

    def first(row: Any, place: Spot) -> Any:
        for read in reads:
            value = read(row, place)
            if value is not MISSING:
                return value
        return MISSING

    return first


def as_text(value: Any) -> str:
    """Return what is at a path as a name: a text, or a number; "" if it is anything else."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return str(value) if -(2**64) < value < 2**64 else ""  # the limit of str() is far above
    if kind is float and math.isfinite(value):
        return repr(value)
    return ""


def _itself(row: Any, _place: Spot) -> Any:
    return MISSING if row is None else row


def _document(_row: Any, place: Spot) -> Any:
    return MISSING if place.document is None else place.document


def _key(_row: Any, place: Spot) -> Any:
    return place.key or MISSING


def _root(name: str) -> Read:
    def root(_row: Any, place: Spot) -> Any:
        return place.roots.get(name, MISSING)

    return root


def _level(rest: str) -> Read:
    """Return what reads a level of the topic; the first one is 1."""
    if not _is_place(rest) or int(rest) == 0:
        raise ValueError(f"$topic.{rest} is no level: write $topic.1 for the first one")
    at = int(rest) - 1

    def level(_row: Any, place: Spot) -> Any:
        topic = place.roots.get("topic")
        levels = topic.split("/", at + 1) if type(topic) is str else []
        return (levels[at] if at < len(levels) else "") or MISSING

    return level


def _header(rest: str) -> str:
    name = rest.lower()
    if name in SECRET_HEADERS:
        raise ValueError(f"$header.{rest} may have a token; use $token.device")
    if not name:
        raise ValueError("$header needs a name, as in $header.x-sensor")
    return name


def _fixed(text: str) -> Read:
    def fixed(_row: Any, _place: Spot) -> Any:
        return text or MISSING

    return fixed


def _joined(pieces: Sequence[str | Read]) -> Read:
    def joined(row: Any, place: Spot) -> Any:
        texts: list[str] = []
        for piece in pieces:
            text = piece if isinstance(piece, str) else as_text(piece(row, place))
            if not text:
                return MISSING
            texts.append(text[:TEXT_CHARACTERS_MAX])
        return "".join(texts)

    return joined


def _along(begin: Read, parts: Sequence[str]) -> Read:
    steps = tuple((name, int(name) if _is_place(name) else -1) for name in parts)

    def along(row: Any, place: Spot) -> Any:
        value = begin(row, place)
        for name, index in steps:
            kind = type(value)
            if kind is dict:
                value = value.get(name, MISSING)
            elif kind is list and 0 <= index < len(value):
                value = value[index]
            else:
                return MISSING
        return MISSING if value is None else value

    return along


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10
