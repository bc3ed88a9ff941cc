"""A set of places in the stream, kept as spans of neighbours. No I/O.

Readers are given messages nearly in order, so a million places are one span or a few.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Places in the stream, both included."""

    first: int
    last: int

    @property
    def places(self) -> int:
        """How many they are."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


class Spans:
    """Places that were added, in ascending order."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> None:
        """Add the places from `first` to `last`, both included."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and lasts[-1] + 1 == first:  # nearly always
            lasts[-1] = last
            return
        # All spans from `begin` to `end` touch the new one, and become one with it.
        begin = bisect_left(lasts, first - 1)
        end = bisect_right(firsts, last + 1)
        if begin < end:
            first, last = min(first, firsts[begin]), max(last, lasts[end - 1])
        firsts[begin:end] = [first]
        lasts[begin:end] = [last]

    def gaps(self, first: int, last: int) -> Iterator[Span]:
        """Yield what is missing between `first` and `last`, both included."""
        for index in range(bisect_left(self._lasts, first), len(self._firsts)):
            if self._firsts[index] > last:
                break
            if self._firsts[index] > first:
                yield Span(first, self._firsts[index] - 1)
            first = self._lasts[index] + 1
        if first <= last:
            yield Span(first, last)

    def end_of(self, place: int) -> int:
        """Return up to where all places behind `place` were added; `place` if the next was not."""
        index = bisect_left(self._lasts, place + 1)
        if index < len(self._firsts) and self._firsts[index] <= place + 1:
            return self._lasts[index]
        return place

    @property
    def last(self) -> int:
        """The last place; 0 if there is none."""
        return self._lasts[-1] if self._lasts else 0

    def __contains__(self, place: int) -> bool:
        index = bisect_left(self._lasts, place)
        return index < len(self._firsts) and self._firsts[index] <= place

    def __iter__(self) -> Iterator[Span]:
        return (Span(*each) for each in zip(self._firsts, self._lasts, strict=True))

    def __len__(self) -> int:
        return len(self._firsts)
