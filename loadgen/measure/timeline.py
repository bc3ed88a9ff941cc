"""The counts of a run over time: one cell a second, at most `CELLS_MAX` cells.

Promises: bounded memory in a run of any length: when all cells are used, each two neighbours become
one, and all are twice as wide. Pure: moments are arguments, in seconds from the start of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from loadgen.measure.histogram import Histogram

CELLS_MAX = 300
FIRST_WIDTH_S = 1.0
LOST = 0  # stands for "no answer" among the statuses
# A shorter part of a cell says little about a rate.
SPAN_SHARE_MIN = 0.2


@dataclass(slots=True)
class Cell:
    """The counts of one stretch of time. Readings, but `statuses`: answers to all tries."""

    offered: float = 0.0
    accepted: int = 0
    committed: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)  # `LOST`: no answer
    durations: Histogram = field(default_factory=Histogram)

    def merge(self, other: Cell) -> None:
        """Add the counts of the other cell."""
        self.offered += other.offered
        self.accepted += other.accepted
        self.committed += other.committed
        self.statuses += other.statuses
        self.durations.merge(other.durations)

    def quantile_s(self, share: float) -> float | None:
        """Return the quantile of the durations, None without durations."""
        return self.durations.quantile(share) if self.durations.count else None


class Point(NamedTuple):
    """A cell for a chart, with its middle and its width in seconds."""

    at_s: float
    span_s: float
    cell: Cell


class Timeline:
    """The cells of a run so far."""

    def __init__(self) -> None:
        self.width_s = FIRST_WIDTH_S
        self._cells: list[Cell] = []

    def at(self, at_s: float) -> Cell:
        """Return the cell of a moment; moments before the start belong to the first cell."""
        while at_s >= CELLS_MAX * self.width_s:
            self._widen()
        index = max(0, int(at_s / self.width_s))
        while index >= len(self._cells):
            self._cells.append(Cell())
        return self._cells[index]

    def _widen(self) -> None:
        for first, second in zip(self._cells[::2], self._cells[1::2], strict=False):
            first.merge(second)
        self._cells = self._cells[::2]
        self.width_s *= 2

    def commit(self, from_s: float, to_s: float, readings: float) -> None:
        """Count readings that were committed at a constant rate between two moments."""
        if to_s <= from_s:
            self.at(to_s).committed += readings
            return
        self.at(to_s)  # grow first, so that the width stays
        per_s = readings / (to_s - from_s)
        begin_s = from_s
        while begin_s < to_s:
            index = int(max(begin_s, 0.0) / self.width_s)
            end_s = min(to_s, (index + 1) * self.width_s)
            self.at(begin_s).committed += per_s * (end_s - begin_s)
            begin_s = end_s

    def points(self, end_s: float) -> Iterator[Point]:
        """Yield the cells up to `end_s`; a short last part is left out."""
        for index, cell in enumerate(self._cells):
            begin_s = index * self.width_s
            span_s = min(self.width_s, end_s - begin_s)
            if span_s < self.width_s * SPAN_SHARE_MIN and index:
                return
            span_s = max(span_s, 1e-9)
            yield Point(begin_s + span_s / 2, span_s, cell)
