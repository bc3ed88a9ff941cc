"""What the stream must be: each setting that could lose a message is seen."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.roles.nats.streams import (
    FIXED,
    NOT_BY_APPLY,
    UNDECLARED,
    Found,
    changed,
    degraded,
    differences,
    faults,
    for_tables,
    wanted_readings,
)

WANTED = wanted_readings(replicas=3, bytes_max=1_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention", "interest"),
        ("retention", "workqueue"),
        ("discard", "old"),
        ("storage", "memory"),
        ("max_age", 10**9),
        ("max_msgs", 5),
        ("max_msg_size", 100),
        ("max_bytes", 2_000),
        ("num_replicas", 1),
        ("duplicate_window", 10**9),
        ("subjects", ["other.>"]),
        ("deny_delete", False),
        ("deny_purge", True),
        ("persist_mode", "async"),
        ("allow_rollup_hdrs", True),
        ("no_ack", True),
        ("sealed", True),
        ("mirror", {"name": "x"}),
        ("sources", [{"name": "x"}]),
        ("subject_transform", {"src": "a", "dest": "b"}),
    ],
)
def test_each_setting_that_loses_messages_is_a_difference(name: str, value: Any) -> None:
    """It is named with both values, and an update sets the wanted one."""
    config = changed(WANTED.stream, {}) | {"metadata": {"_nats.ver": "2.15.1"}}
    assert list(differences(WANTED.stream, config)) == []
    (found,) = differences(WANTED.stream, config | {name: value})
    assert (found.name, found.found) == (name, value)
    assert str(value) in str(found)
    update = changed(WANTED.stream, config | {name: value})
    assert list(differences(WANTED.stream, update)) == []
    assert update["metadata"], "what is not ours stays"


@pytest.mark.parametrize(
    ("name", "value", "fixed"),
    [
        ("ack_policy", "none", True),
        ("deliver_policy", "new", True),
        ("max_deliver", 5, False),
        ("ack_wait", 10**9, False),
        ("filter_subject", "ingest.in.1", False),
        ("inactive_threshold", 10**9, False),
        ("pause_until", "2030-01-01T00:00:00Z", False),
        ("headers_only", True, False),
        ("mem_storage", True, False),
    ],
)
def test_each_setting_of_the_consumer_that_skips_messages_is_a_difference(
    name: str, value: Any, fixed: bool
) -> None:
    """Some of them cannot be changed."""
    config = changed(WANTED.consumers["writer"], {})
    assert list(differences(WANTED.consumers["writer"], config)) == []
    (found,) = differences(WANTED.consumers["writer"], config | {name: value})
    assert (found.name, found.fixed) == (name, fixed)


def test_settings_that_a_server_leaves_out_have_their_defaults() -> None:
    """A server leaves out what is false, empty or nothing, and writes some defaults in words."""
    config = {name: value for name, value in WANTED.stream.items() if value}
    assert list(differences(WANTED.stream, config | {"persist_mode": "default"})) == []
    consumer = {name: value for name, value in WANTED.consumers["writer"].items() if value}
    unpaused = {"pause_until": "0001-01-01T00:00:00Z"}
    assert list(differences(WANTED.consumers["writer"], consumer | unpaused)) == []
    del config["deny_delete"]
    (found,) = differences(WANTED.stream, config)
    assert str(found) == "deny_delete is False, not True"
    assert {"subjects", "retention", "storage"} <= FIXED


def test_stream_that_may_hold_rows_of_tables_is_marked_once_and_stays_so() -> None:
    """Earlier versions find a difference that they cannot change. Who has no tables leaves it."""
    with_tables = for_tables(WANTED).stream
    config, marked = changed(WANTED.stream, {}), changed(with_tables, {})
    (found,) = differences(with_tables, config)
    assert (found.name, found.fixed) == ("subjects", False)
    assert changed(with_tables, config) == marked
    for wanted in (WANTED.stream, with_tables):
        assert list(differences(wanted, marked)) == []
        assert changed(wanted, marked | {"max_age": 5}) == marked
    (found,) = differences(with_tables, config | {"subjects": ["other.>"]})
    assert found.fixed
    there = Found({"config": marked, "cluster": {"leader": "n1"}}, None)
    assert [each.fault for each in degraded(there, WANTED)] == [UNDECLARED]
    assert degraded(there, for_tables(WANTED)) == []
    assert "subjects" in FIXED, "earlier versions have it there, and refuse"


def test_faults_name_what_is_missing_or_behind() -> None:
    """No stream, no consumer, no leader, a copy that is behind, one that is away."""
    assert [str(each) for each in faults(Found(None, None), WANTED)] == [
        "the stream INGEST: is missing"
    ]
    replicas = [
        {"name": "n2", "current": True, "active": 5},
        {"name": "n3", "current": False, "active": 5},
        {"name": "n4", "current": False},
    ]
    stream = {"config": WANTED.stream, "cluster": {"leader": "n1", "replicas": replicas}}
    assert [str(each) for each in faults(Found(stream, None), WANTED)] == [
        "the consumer writer of INGEST: is missing",
        "the stream INGEST: its copy on n3 is behind",
        "the stream INGEST: its copy on n4 is out of reach: start that server. Posts are taken "
        "while most servers run",
    ]
    stream["cluster"] = {"replicas": []}
    consumer = {"config": WANTED.consumers["writer"]}
    (found,) = faults(Found(stream, consumer), WANTED)
    assert found.fault == "has no leader"
    assert found.fault.startswith(NOT_BY_APPLY)
