"""The names of the data port that an operator gave it."""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def host_names(text: str) -> frozenset[str]:
    """Return the names in a text with commas, in small letters. Raises ValueError."""
    names = [each.strip().lower() for each in text.split(",") if each.strip()]
    for each in names:
        if not _NAME.fullmatch(each):
            raise ValueError(f"{each[:80]!r} is no host name (without scheme and port)")
    return frozenset(names)
