"""Finds messages that a consumer was never given, by the numbers of those that it was given.

A damaged message on the broker's disk is skipped without a word: no error, and the consumer goes
on behind it. Each delivery has two numbers: its place in the stream, and its place among the
deliveries of its consumer. Of two first deliveries that follow each other, the places in the stream
follow each other too; if they do not, the messages between them were skipped.
Does not: see what several readers of one consumer were given, or why messages are missing.
"""

from __future__ import annotations

from typing import NamedTuple


class Skipped(NamedTuple):
    """Places in the stream, both included, whose messages were not delivered."""

    first: int
    last: int


class SkipCheck:
    """Call `delivered` for each delivery, in order."""

    def __init__(self) -> None:
        self._last_delivery = 0
        self._last_place: int | None = None  # of the last first delivery; None: not known

    def begin(self, last_delivery: int, last_place: int) -> None:
        """Begin behind the last delivery of the consumer, as the broker says."""
        self._last_delivery = last_delivery
        self._last_place = last_place

    def ended(self, last_delivery: int, last_place: int, end: int) -> Skipped | None:
        """Note that nothing is left to deliver, up to the place `end`; return what was skipped."""
        if last_delivery == self._last_delivery and self._last_place is not None:
            last_place = max(last_place, self._last_place)  # what was reported is not said again
        if last_place >= end:
            return None
        self.begin(last_delivery, end)
        return Skipped(last_place + 1, end)

    def delivered(self, delivery: int, place: int, *, is_first: bool) -> Skipped | None:
        """Note a delivery; return what was skipped before it."""
        follows = delivery == self._last_delivery + 1
        last_place = self._last_place
        self._last_delivery = delivery
        if not is_first:
            if not follows:  # another reader was given the deliveries between
                self._last_place = None
            return None
        self._last_place = place
        if follows and last_place is not None and place > last_place + 1:
            return Skipped(last_place + 1, place - 1)
        return None
