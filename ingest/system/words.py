"""A number with its noun, as people write it."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return `1 letter`, `2 letters`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
