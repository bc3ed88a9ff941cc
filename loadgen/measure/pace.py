"""The pace of a load: the rates of its counts since the last call."""

from __future__ import annotations

from typing import NamedTuple

from loadgen.measure.load import Load


class Rates(NamedTuple):
    """Posts a second that were due, finished, refused; readings a second that were accepted."""

    offered: float
    through: float
    refused: float
    accepted: float


class Pace:
    """The rates of one load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._before = (0.0, Rates(0, 0, 0, 0))

    def since_last(self) -> Rates:
        """Return the rates since the last call."""
        load, (before_s, before) = self._load, self._before
        counts = Rates(
            load.due_posts(),
            load.tally.through,
            sum(n for status, n in load.tally.statuses.items() if status >= 400),
            load.tally.accepted_readings,
        )
        self._before = (load.elapsed_s, counts)
        span_s = max(load.elapsed_s - before_s, 1e-9)
        return Rates(*((now - then) / span_s for now, then in zip(counts, before, strict=True)))
