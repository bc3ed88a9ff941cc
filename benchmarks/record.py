"""The recorded runs: results.ndjson, one line a run. Does not: print them, or judge them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import Figures

LINES = "results.ndjson"


class Line(NamedTuple):
    """One run of the benchmark, as it is written to results.ndjson.

    `runs` has the figures of each run by contender, `left_out` the reason why a contender has none
    or too few.
    """

    at: str
    commit: str
    environment: dict[str, str]
    runs_wanted: int
    seconds: float
    cases: list[str]
    runs: dict[str, list[Figures]]
    left_out: dict[str, str]


def read(folder: Path) -> list[Line]:
    """Return all lines, oldest first."""
    try:
        text = (folder / LINES).read_text()
    except FileNotFoundError:
        return []
    return [Line(**json.loads(each)) for each in text.splitlines()]


def newest_of(lines: Sequence[Line]) -> dict[str, Line]:
    """Return for each case the newest line that measured it."""
    return {name: line for line in lines for name in line.cases}
