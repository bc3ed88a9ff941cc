"""A number with its noun, as people write it."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return `1 post` or `1,200 posts`; the plural of the noun must end in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
