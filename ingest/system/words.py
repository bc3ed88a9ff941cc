"""Small parts of the texts that people read: a number with its noun, a client's text in quotes."""

from __future__ import annotations

QUOTED_CHARACTERS_MAX = 60


def counted(number: int, noun: str) -> str:
    """Return `1 letter`, `2 letters`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quoted(text: str) -> str:
    """Return a client's text, fit for a message or a log line: in quotes, plain ASCII, cut off."""
    if len(text) <= QUOTED_CHARACTERS_MAX:
        return ascii(text)
    return f"{text[:QUOTED_CHARACTERS_MAX]!a}.."
