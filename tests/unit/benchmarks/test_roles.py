"""`./run bench --roles`: ratios, verdicts, the record and the tables that are made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.roles import BY_NAME
from benchmarks.roles_document import PARTS, paper_table, refreshed
from benchmarks.roles_record import LINES, Case, Line, Newest, newest, read

ROLES = {"gateway": 1.0, "nats-server": 0.4, "writer": 0.2, "supervisor": 0.1, "PostgreSQL": 1.5}


def run(rate: float, cpu_us: dict[str, float]) -> dict[str, Any]:
    """Return one run as it is recorded."""
    return {
        "stored_per_s": rate,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "cpu_us": cpu_us,
        "disk_bytes": dict.fromkeys(cpu_us, 100.0),
        "rows_per_message": 1_000.0,
        "driver_cores": 0.2,
    }


def case(ratio: float, name: str = "up_hundreds") -> Case:
    """Return a case of twelve pairs with this ratio."""
    way = BY_NAME[name]
    runs = {
        "serve": [run(1_000.0, {"service": 1.2, "PostgreSQL": 1.5})] * 12,
        "other": [run(1_000.0 * ratio, ROLES)] * 12,
    }
    peaks = {"serve": {"service": 60.0}, "other": {"gateway": 70.0, "writer": 71.0}}
    return Case(name, way.script, way.gateways, way.wanted, runs, peaks)


def line(*cases: Case, **more: Any) -> Line:
    """Return a line of the record."""
    given: dict[str, Any] = {
        "at": "2026-11-27T03:00:00Z",
        "commit": "abc1234",
        "environment": {"processor": "p", "cores": "2", "fsync": "1 us"},
        "seconds": 2.0,
        "cases": [each._asdict() for each in cases],
        "starts_s": {},
        "idle": {},
        **more,
    }
    return Line(**given)


def test_newest_line_of_each_case_counts(tmp_path: Path) -> None:
    """Cases that were measured at different times are shown together."""
    lines = [
        line(case(0.5), case(0.6, "up_singles")),
        line(case(0.9), starts_s={"up": [1.0, 2.0, 9.0]}, idle={"gateway": 0.01}),
    ]
    (tmp_path / LINES).write_text("".join(f"{json.dumps(each._asdict())}\n" for each in lines))
    found = newest(read(tmp_path))
    assert {name: each.ratios()[0] for name, (each, _) in found.cases.items()} == {
        "up_hundreds": 0.9,
        "up_singles": 0.6,
    }
    assert found.start == lines[1]
    text = refreshed(
        "".join(f"<!-- measured: {name} -->\n<!-- end measured -->\n" for name in PARTS), found
    )
    assert "| `up`, 1 gateway, posts of 100 | 0.90 (0.90 to 0.90) | 0.8 |" in text
    assert "`up` 2.00 s (longest 9.00)" in text
    assert refreshed(text, found) == text
    assert read(tmp_path / "none") == []


def test_paper_multiplies_the_rate_with_the_figures() -> None:
    """1 M readings/s at 1 us a reading is one core; 100 bytes a reading are 100 MB/s."""
    measured = newest([line(case(0.9))])
    row = next(each for each in paper_table(measured).splitlines() if "1,000,000, " in each)
    cells = [each.strip() for each in row.strip("|").split("|")]
    assert cells == [
        "1,000,000, posts of 100",
        *["1.00", "0.40", "0.20", "0.10", "1.50", "3.20", "100.0"],
        "1,000",
    ]
    assert paper_table(Newest({}, None)) == "Nothing is measured yet."
