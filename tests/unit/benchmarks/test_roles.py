"""`./run bench --roles`: ratios, verdicts, the record and the tables that are made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.roles import BY_NAME
from benchmarks.roles_document import PARTS, cost_table, refreshed
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
    assert "| `up`, 1 gateway, posts of 100 | 900.0 | 0.90 (0.90 to 0.90) | 1.00 |" in text
    assert "An idle `ingest up` takes 1.0% of a core." in text
    assert refreshed(text, found) == text
    assert read(tmp_path / "none") == []


def test_costs_are_told_by_role() -> None:
    """The medians of `serve` and of the other way; without a run there is no table."""
    rows = [
        [each.strip() for each in row.strip("|").split("|")]
        for row in cost_table(newest([line(case(0.9))])).splitlines()[2:]
    ]
    assert rows == [
        ["`serve`, posts of 100", "1,000", "1", "1.20", "", "", "1.50", "2.70"],
        [
            "`up`, 1 gateway, posts of 100",
            *("900.0", "0.90 (0.90 to 0.90)", "1.00", "0.40", "0.20", "1.50", "3.20"),
        ],
    ]
    assert cost_table(Newest({}, None)) == "Nothing is measured yet."
