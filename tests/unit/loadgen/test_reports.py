"""The report as a document and as text has the figures that were counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.driver.ports import Loss
from loadgen.measure.load import Load, LoadPlan
from loadgen.report.json import document, write_whole
from loadgen.traffic.post import Post, target_of
from loadgen.traffic.schedule import constant
from loadgen.traffic.traffic import BROKEN, GOOD, Recipe

PROBLEM = b'{"code":"not_json"}'


def _settings(**others: Any) -> dict[str, Any]:
    return {
        "url": "http://h:1/v1/readings",
        "loop": "open",
        "rate_posts_per_s": 50.0,
        "shape": "constant",
        "connections": 4,
        "batch": "1x1",
        "devices": 10,
        **others,
    }


def _load(seconds: int = 5, *, metrics: bool = False) -> Load:
    plan = LoadPlan(
        target=target_of("http://h:1"),
        recipe=Recipe(devices=10, seed=42),
        shape=constant(50),
        duration_s=seconds,
        metrics_urls=("http://h:2/metrics",) if metrics else (),
    )
    load = Load(plan)
    load.driver.started_s = 0.0
    load.took_s = float(seconds) or 1e-3
    load.cpu_s = 0.25 * load.took_s
    return load


def _busy_load(**others: Any) -> Load:
    """A load whose answers were 202 (10 ms, one of 100 took 2 s), some 400 and one lost."""
    load = _load(**others)
    for number in range(200):
        due_s = number / 40
        took_s = 2.0 if number % 100 == 50 else 0.01
        body = b'{"accepted":1,"dead_lettered":0,"errors":[]}'
        load.tally.answered(
            Post(b"", 1, GOOD, number), 202, body, due_s, due_s + took_s, final=True
        )
    for number in range(10):
        post = Post(b"", 1, BROKEN, number)
        load.tally.answered(post, 400, PROBLEM, 1.0, 1.01, final=True)
    load.tally.lost(Loss(Post(b"", 1, GOOD, 0), "connection lost", True, 2.0, 3.0, True))
    load.driver.taken = 211
    load.traffic.made["broken"] = 10
    return load


def test_document_holds_what_was_counted_and_can_be_json() -> None:
    """The document can be written as JSON, and its counts add up."""
    report = document(_busy_load(), _settings())
    assert json.loads(json.dumps(report)) == report
    assert (report["schema"], report["schema_version"]) == ("iot-ingest/loadgen-run", 1)
    assert report["seed"] == 42
    posts = report["posts"]
    assert posts["offered"] == posts["taken"] == posts["right"] + posts["lost"] == 211
    assert (posts["lost"], posts["lost_may_be_stored"], report["all_right"]) == (1, 1, False)
    assert report["readings"] == {
        "offered": 211,
        "accepted": 200,
        "dead_lettered": 0,
        "committed": None,
    }
    assert report["rates"]["right_posts_per_s"] == pytest.approx(42)
    latency = report["latency_ms"]
    assert latency["p50"] == pytest.approx(10, rel=0.01)
    assert latency["p99_9"] == latency["max"] == pytest.approx(2000)
    assert report["statuses"] == {"0": 1, "202": 200, "400": 10}
    assert report["refusals"] == {"400 not_json": 10}
    points = report["timeline"]["points"]
    assert len(points) == 5
    assert sum(each["accepted_readings_per_s"] for each in points) == pytest.approx(199)
    assert points[1]["p99_ms"] == pytest.approx(2000, rel=0.02), "the moment it was due counts"
    assert points[2]["committed_readings_per_s"] is None


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A reader gets the old file, then the new one; no other file is left."""
    path = tmp_path / "report.json"
    path.write_text("old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
