"""A number with its noun, as people write it."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return `1 post`, `1,200 posts`; the noun is one that takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
