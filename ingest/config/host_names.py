"""Names of hosts and headers of the data port that an operator gave it."""

from __future__ import annotations

import re

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
# Each has a meaning of its own.
_OTHERS = frozenset(
    {"authorization", "x-api-key", "x-auth-token", "x-forwarded-for", "host", "content-length"}
)
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def host_names(text: str) -> frozenset[str]:
    """Return the names in a text with commas, in small letters. Raises ValueError."""
    names = [each.strip().lower() for each in text.split(",") if each.strip()]
    for each in names:
        if not _NAME.fullmatch(each):
            raise ValueError(f"{each[:80]!r} is no host name (without scheme and port)")
    return frozenset(names)


def header_name(text: str) -> str:
    """Return the name of a header, which may be empty. Raises ValueError."""
    if text and (not _HEADER.fullmatch(text) or text.lower() in _OTHERS):
        raise ValueError(
            f"{text[:80]!r} is no name of a header that can be used here: it has letters, digits "
            "and `-`, and no other meaning, as Host or Authorization have"
        )
    return text
