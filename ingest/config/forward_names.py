"""The names of forwarders: how they are written, and checked."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


def check_forward_name(name: str) -> None:
    """Raise ValueError if this cannot be a name: it is a part of a subject, and of a path."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of 1 to 32 letters, digits, - and _")


def forward_names(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas. Raises ValueError with a sentence for the user."""
    names = tuple(each.strip() for each in text.split(",") if each.strip())
    for each in names:
        check_forward_name(each)
    if len(set(names)) != len(names):
        raise ValueError(f"{text!r} has a name twice")
    return names
