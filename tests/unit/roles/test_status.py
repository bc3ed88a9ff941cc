"""The status of one process: complete, small, and read without trust."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from ingest.admin.dashboard.tail import Observed, Tail
from ingest.model.codes import PROBLEMS
from ingest.model.ledger import CLOSED_BY
from ingest.model.reading import NAME_CHARACTERS_MAX, Reading
from ingest.receiver.senders import BODY_BYTES_MAX
from ingest.roles.status import STATUS_BYTES_MAX, StatusSource, read_status
from ingest.system.clock import monotonic_s
from tests.support.statuses import FakeProcess
from tests.unit.admin.test_exposition import busy

READY = b'{"state":"on_hold","cause":"schema","reason":"writes are paused","refusing":false}'


def test_status_comes_back_as_it_was() -> None:
    """Counters, gauges, state, and the age of the oldest reading."""
    ledger = busy()
    assert ledger.gauges is not None
    gauges = ledger.gauges
    ledger.gauges = gauges._replace(
        figures=lambda: {"stream_bytes": 5, "consumer_pending": {"writer": 2}}
    )
    source = StatusSource(
        "writer", Observed(ledger, lambda: (200, READY), Tail(), lambda: "no table")
    )
    status = read_status(orjson.loads(orjson.dumps(source.status())))
    assert (status.role, status.state, status.message) == ("writer", "on_hold", "no table")
    assert status.ready["cause"] == "schema"
    read = status.ledger.gauges
    assert read is not None
    assert read.buffer()._replace(oldest_received_s=None) == gauges.buffer()._replace(
        oldest_received_s=None
    )
    assert read.buffer().oldest_received_s == pytest.approx(monotonic_s() - 3, abs=0.5)
    assert read.dead_letters() == gauges.dead_letters()
    assert read.figures() == {"stream_bytes": 5, "consumer_pending": {"writer": 2}}
    assert read.hold_reason() == "schema"
    assert status.ledger.imbalance == ledger.imbalance == 0
    assert status.cpu_s > 0
    assert status.memory_bytes > 1_000_000


LINE_PATHS = [
    prefix + path
    for prefix in ("", "/influx")
    for path in (
        *("/write", "/api/v2/write", "/api/v3/write_lp"),
        *("/ping", "/health", "/query", "/settings"),
    )
]


def test_largest_status_is_below_its_bound() -> None:
    """With all labels, and names and bodies that become six times as long in JSON."""
    ledger = busy()
    for code, problem in PROBLEMS.items():
        ledger.rejected[code] += 10**15
        ledger.posts_refused[code] += 1
        for route in ("/v1/readings", "/livez", "/readyz", "other", *LINE_PATHS):
            ledger.request_answered(route, problem.status, 1.0)
    for cause in CLOSED_BY:
        ledger.connection_closed(cause)
    name = "\x01" * NAME_CHARACTERS_MAX
    posts = [
        {
            "at": f"2026-11-27T02:00:{at:02}.123456Z",
            "peer": "2001:db8:1111:2222:3333:4444:5555:6666",
            "code": "too_many_readings",
            "item_code": "name_control_character",
            "field": "device_id",
            "body": "\x01" * BODY_BYTES_MAX,
        }
        for at in range(60)
    ]
    tail = Tail()
    readings = [Reading(10**15, name, name, 1e300)] * 40
    tail.add({"readings": readings, "posts": 9, "rejected": [name] * 99, "rejected_sampled": True})
    source = StatusSource(
        "gateway",
        Observed(
            ledger,
            lambda: (200, json.dumps({"state": "full", "reason": "x" * 1000}).encode()),
            tail,
            lambda: "\x01" * 10_000,
            lambda: posts,
        ),
    )
    sent = orjson.dumps(source.status())
    assert 20_000 < len(sent) < STATUS_BYTES_MAX
    assert read_status(orjson.loads(sent)).state == "full"


def _changed(sent: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *outer, last = path.split(".")
    inside = sent
    for name in outer:
        inside = inside[name]
    if value is KeyError:
        del inside[last]
    else:
        inside[last] = value
    return sent


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("role", KeyError),
        ("counters", KeyError),
        ("counters", 5),
        ("counters.received", "x"),
        ("pid", "none"),
        ("pid", 1e400),
        ("ready", []),
        ("ready", None),
        ("ready.state", KeyError),
        ("gauges.buffer", None),
        ("gauges.buffer.rows", KeyError),
        ("gauges.figures", 3),
        ("gauges.oldest_age_s", "x"),
        ("tail", 1),
        ("refused_posts", None),
        ("cpu_s", None),
    ],
)
def test_what_is_no_status_is_an_error(path: str, value: Any) -> None:
    """And never another exception."""
    with pytest.raises(ValueError, match=r"\w"):
        read_status(_changed(FakeProcess("writer").sent(), path, value))


def test_fields_of_a_newer_version_are_ignored() -> None:
    """The others are read; an unknown state is one that refuses."""
    sent = _changed(FakeProcess("writer").sent(), "gauges.buffer.rows_on_mars", 5)
    sent = _changed(_changed(sent, "sings", True), "ready.state", "dancing")
    assert read_status(sent).state == "starting"
