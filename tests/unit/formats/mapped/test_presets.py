"""Each preset, with a body as its sender sends it, shortened."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.formats.mapped.body import MapPost, decode
from ingest.formats.mapped.source import PRESETS, compile_source
from ingest.formats.post import Post
from ingest.model.block import decode_rows
from tests.support.map_bodies import BODIES
from tests.support.posts import NOW_US, RULES

EVENTS = {
    "ttn": ('{"end_device_ids":{"device_id":"dev1"},"join_accept":{"session_key_id":"x"}}', {}),
    "chirpstack": ('{"deviceInfo":{"devEui":"01"},"margin":7}', {"query": {"event": "status"}}),
}


def read(table: dict[str, Any], body: str, roots: dict[str, Any]) -> tuple[list[Any], Any]:
    """Return the readings of a body, and what else there is."""
    post = Post(None, False, NOW_US, 7.0, RULES)
    mapped = decode(body.encode(), MapPost(post, compile_source(table), roots, 10_000, 1 << 22))
    rows = [tuple(each) for block in mapped.blocks for each in decode_rows(block.tuples)]
    return rows, (mapped.errors, mapped.ignored)


def test_every_preset_has_a_body() -> None:
    """A new preset needs one."""
    assert BODIES.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", BODIES)
def test_preset_reads_the_body_of_its_sender(name: str) -> None:
    """All its numbers, with their device and time."""
    body, roots, expected = BODIES[name]
    rows, rest = read({"preset": name}, body, roots)
    assert sorted(rows) == sorted(expected)
    assert rest == ([], 0)


def test_chirpstack_reads_what_its_broker_has() -> None:
    """There the event is the last level of the topic."""
    body, _, expected = BODIES["chirpstack"]
    topic = "application/1/device/0101010101010101/event/{}"
    assert read({"preset": "chirpstack"}, body, {"topic": topic.format("up")})[0] == expected
    join = '{"time":"2026-05-01T12:00:00+00:00","deviceInfo":{"devEui":"01"},"devAddr":"00189440"}'
    assert read({"preset": "chirpstack"}, join, {"topic": topic.format("join")}) == ([], ([], 1))


@pytest.mark.parametrize("name", EVENTS)
def test_event_of_another_kind_is_ignored(name: str) -> None:
    """They come to the same address."""
    assert read({"preset": name}, *EVENTS[name]) == ([], ([], 1))


def test_devices_of_two_applications_are_not_one() -> None:
    """The name of a device of The Things Stack is its own only within its application."""
    body, roots, expected = BODIES["ttn"]
    rows, _ = read({"preset": "ttn"}, body.replace("app1", "app2"), roots)
    assert {row[1] for row in rows} == {"app2/dev1"} != {row[1] for row in expected}


def test_key_of_the_table_replaces_that_of_the_preset() -> None:
    """The name too: one preset may be used twice."""
    table = {"preset": "ttn", "name": "ttn2", "device": "end_device_ids.dev_eui"}
    body, roots, _ = BODIES["ttn"]
    rows, _ = read(table, body, roots)
    assert {row[1] for row in rows} == {"0004A30B001C0530"}
    assert compile_source(table).name == "ttn2"
