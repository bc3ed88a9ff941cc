"""The recorded runs of `./run bench --roles`: roles.ndjson, one line a run. Pure but for `read`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
LINES = "roles.ndjson"


class Run(NamedTuple):
    """One load on one arm. By role: CPU in us, and bytes written, both for each reading."""

    stored_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]
    disk_bytes: dict[str, float]
    rows_per_message: float
    driver_cores: float


class Case(NamedTuple):
    """The pairs of one case. `runs` and `peaks_mib` are by arm: `serve` and `other`."""

    name: str
    script: str
    gateways: int
    wanted: float | None
    runs: dict[str, list[dict[str, Any]]]
    peaks_mib: dict[str, dict[str, float]]

    def ratios(self) -> list[float]:
        """Return the rate of the other arm over that of `serve`, for each pair."""
        both = zip(self.runs["other"], self.runs["serve"], strict=True)
        return [other["stored_per_s"] / serve["stored_per_s"] for other, serve in both]


class Line(NamedTuple):
    """One run of the command. `starts_s` by command, `idle` in cores by role; both may be empty."""

    at: str
    commit: str
    environment: dict[str, str]
    seconds: float
    cases: list[dict[str, Any]]
    starts_s: dict[str, list[float]]
    idle: dict[str, float]


class Newest(NamedTuple):
    """Of each case the newest figures, and the line that has them."""

    cases: Mapping[str, tuple[Case, Line]]
    start: Line | None


def read(folder: Path = FOLDER) -> list[Line]:
    """Return all lines, oldest first."""
    try:
        text = (folder / LINES).read_text()
    except FileNotFoundError:
        return []
    return [Line(**json.loads(each)) for each in text.splitlines()]


def newest(lines: list[Line]) -> Newest:
    """Return the newest figures of each case."""
    cases = {each["name"]: (Case(**each), line) for line in lines for each in line.cases}
    starts = [line for line in lines if line.starts_s]
    return Newest(cases, starts[-1] if starts else None)
