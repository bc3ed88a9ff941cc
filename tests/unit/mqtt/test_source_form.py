"""Messages for a mapped source: a post has one topic, and each document its own time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.reading import MAPPED
from ingest.mqtt.bridge import letter_of
from ingest.mqtt.connection import MqttMessage
from ingest.mqtt.gathering import (
    DOCUMENTS_MAX,
    MessagePart,
    PostBounds,
    SourceForm,
    Unusable,
    WaitingMessages,
)
from tests.unit.mqtt.test_gathering import JSON_ITEMS, NOW_US

FORM = SourceForm("house")
BOUNDS = PostBounds(1000, DOCUMENTS_MAX, 1024**2)
TOPICS = st.sampled_from(["a/b", "a/c", "/", "ü/% ,\t😀"])


def posts(messages: list[MqttMessage]) -> Iterator[list[MessagePart]]:
    """Yield the messages of each post."""
    waiting = WaitingMessages(BOUNDS)
    for each in messages:
        if (part := FORM.part(each)) is not None:
            waiting.add(part)
    while waiting:
        yield waiting.gather()
    assert waiting.size == 0
    assert waiting.gather() == []


@given(st.lists(st.tuples(TOPICS, JSON_ITEMS), max_size=8))
def test_each_document_has_the_topic_and_the_time_of_its_message(
    sent: list[tuple[str, object]],
) -> None:
    """As a message says it that is posted alone; the order of a topic stays."""
    found: dict[str, list[tuple[int, object]]] = {}
    wanted: dict[str, list[tuple[int, object]]] = {}
    messages = []
    for at, (topic, document) in enumerate(sent):
        messages.append(MqttMessage(topic, json.dumps(document, indent=1).encode(), NOW_US + at))
        items = document if isinstance(document, list) else [document]
        wanted.setdefault(topic, []).extend((NOW_US + at, each) for each in items)
    for parts in posts(messages):
        documents = json.loads(FORM.join(parts))
        headers = FORM.headers(parts)
        topic = unquote(headers["X-Topic"], errors="strict")
        times = [int(each) for each in headers["X-Received-At"].split(",")]
        if len(times) == 1:
            times *= len(documents)
        found.setdefault(topic, []).extend(zip(times, documents, strict=True))
    assert found == {topic: items for topic, items in wanted.items() if items}


def test_headers_have_bounds() -> None:
    """8 KiB is what servers take. A message with more documents has one time for all."""
    small = [MqttMessage("t", b"1", 10**17 - 1) for _ in range(1_000)]
    large = MqttMessage("t", json.dumps([1] * 5_000).encode(), NOW_US)
    found = list(posts([*small, large]))
    assert [len(each) for each in found] == [240, 240, 240, 240, 40, 1]
    for parts in found:
        assert all(len(text) < 5_000 for text in FORM.headers(parts).values())
    assert FORM.headers(found[-1])["X-Received-At"] == str(NOW_US)


def test_topics_take_turns() -> None:
    """One that has many messages does not hold the others back."""
    many = [MqttMessage("busy", b"1", NOW_US + at) for at in range(300)]
    found = posts([*many, MqttMessage("quiet", b"2", NOW_US + 300)])
    assert [each[0].group for each in found] == ["busy", "quiet", "busy"]


@pytest.mark.parametrize("payload", [b"{", b"1],[2", b"ON", b"21,5", b"a=1", b"1\n2", b"nan"])
def test_message_that_is_not_json_is_refused_here(payload: bytes) -> None:
    """Its dead letter has what a source reads beside the message."""
    message = MqttMessage("a/ü", payload, NOW_US)
    with pytest.raises(Unusable) as caught:
        FORM.part(message)
    letter = letter_of(message, FORM, caught.value.code, str(caught.value))
    assert (letter.code, letter.format, letter.source) == ("not_json", MAPPED, "/v1/in/house")
    assert json.loads(letter.context) == {"topic": "a/ü"}
    with pytest.raises(Unusable, match="too long"):
        FORM.part(MqttMessage("ü" * 1_000, b"1", NOW_US))
    assert FORM.part(MqttMessage("a", b"[]", NOW_US)) is None


def test_first_message_of_a_topic_waits_and_the_rest_of_a_post_does_not() -> None:
    """For as long as a post may wait for more."""
    waiting = WaitingMessages(BOUNDS)
    assert waiting.due_in_s(60) == 0
    for at in range(250):
        part = FORM.part(MqttMessage("t", b"1", NOW_US + at))
        assert part is not None
        waiting.add(part)
    assert waiting.oldest_us == NOW_US
    assert 0 < waiting.due_in_s(60) <= 60
    assert waiting.due_in_s(0) == 0
    waiting.gather()
    assert (len(waiting), waiting.oldest_us) == (10, NOW_US + 240)
