"""Kinds of values on the command lines. Each raises ArgumentTypeError for a wrong value."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import TypeVar

_T = TypeVar("_T")


def count(text: str) -> int:
    """Read a number of repetitions."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("must be at least 1")
    return number


def seconds_within(least: float, most: float) -> Callable[[str], float]:
    """Return what reads seconds within these bounds."""

    def seconds(text: str) -> float:
        found = float(text)
        if not least <= found <= most:
            raise ArgumentTypeError(f"must be {least:g} to {most:,g}")
        return found

    return seconds


def some_of(cases: Mapping[str, _T]) -> Callable[[str], list[_T]]:
    """Return what reads names with commas between them, and gives their cases in our order."""

    def case(text: str) -> list[_T]:
        asked = text.split(",")
        for name in asked:
            if name not in cases:
                raise ArgumentTypeError(f"{name!r} is no case; there are {', '.join(cases)}")
        return [each for name, each in cases.items() if name in asked]

    return case
