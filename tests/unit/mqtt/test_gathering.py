"""How messages are joined to posts: bounds, and that no message changes another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import Mock
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.model.reading import MAPPED
from ingest.mqtt.bridge import letter_of
from ingest.mqtt.connection import MqttMessage
from ingest.mqtt.gathering import (
    JsonForm,
    LineForm,
    MessageForm,
    MessagePart,
    SourceForm,
    Unusable,
    WaitingMessages,
)
from ingest.mqtt.options import MqttOptions
from tests.support.line_oracle import Rules, read

NOW_US = 1_790_000_000_000_000
RULES = Rules(("device",), "d", "", None, NOW_US, 0, 2 * NOW_US)
# Bytes that mean something in line protocol, and few others: so they often meet.
LINE_BYTES = st.lists(
    st.sampled_from([*map(bytes, zip(b'ab=, \\"\n\r#1i')), b"m f=1", b' f="', b'",g="x"']),
    max_size=12,
).map(b"".join)
JSON_ITEMS = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.integers(-9, 9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ts", "value", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def message(payload: bytes, at_us: int = NOW_US) -> MqttMessage:
    """Return a message with QoS 0."""
    return MqttMessage("t", payload, at_us)


def bounds(messages_max: int, rows_max: int, bytes_max: int) -> MqttOptions:
    """Return the bounds of a post."""
    return MqttOptions(
        send_messages_max=messages_max, send_rows_max=rows_max, send_bytes_max=bytes_max
    )


def bodies(form: MessageForm, payloads: list[bytes], options: MqttOptions) -> list[bytes]:
    """Return the posts of messages."""
    waiting = WaitingMessages(form, options)
    for each in payloads:
        if (part := form.part(message(each))) is not None:
            waiting.add(part)
    found = []
    while waiting:
        found.append(form.join(waiting.gather()))
    assert waiting.size == 0
    return found


WIDE = bounds(1000, 10_000, 1024**2)


@given(st.lists(JSON_ITEMS, max_size=6))
def test_array_has_the_items_of_all_messages(documents: list[object]) -> None:
    """An item without a time has that of its message; nothing else is changed."""
    wanted: list[object] = []
    for each in documents:
        items = each if isinstance(each, list) else [each]
        wanted += [
            {"ts": NOW_US, **item} if isinstance(item, dict) and "ts" not in item else item
            for item in items
        ]
    payloads = [json.dumps(each, indent=1).encode() for each in documents]
    posts = bodies(JsonForm(), payloads, WIDE)
    assert [item for post in posts for item in json.loads(post)] == wanted


def test_digits_of_an_item_stay_as_they_are() -> None:
    """A number is not read and written again."""
    part = JsonForm().part(message(b'[{"value":1.100}, {"value":0.10, "ts":1.0}]'))
    assert part is not None
    assert part.body == b'{"ts":%d,"value":1.100},{"value":0.10, "ts":1.0}' % NOW_US


def test_message_that_only_one_parser_can_read_is_refused_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How deeply a parser reads depends on the interpreter. An error would end the connection."""
    decode = Mock(side_effect=RecursionError)
    monkeypatch.setattr(msgspec.json, "decode", decode)
    with pytest.raises(Unusable, match="too deeply"):
        JsonForm().part(message(b'[{"a":[[]]}]'))


@pytest.mark.parametrize(
    "payload", [b"{", b'{"a":1},{"b":2}', b"1],[2", b"nan", b"\xff", b"\xef\xbb\xbf{}", b"[1,]"]
)
def test_message_that_is_not_json_is_refused_here(payload: bytes) -> None:
    """Else it would spoil the post, or bring in what is not in it."""
    with pytest.raises(Unusable) as caught:
        JsonForm().part(message(payload))
    assert caught.value.code == "not_json"


@pytest.mark.parametrize("payload", [b"", b" \n", b"[]"])
def test_message_without_an_item_adds_nothing(payload: bytes) -> None:
    """As what clears a retained message."""
    assert JsonForm().part(message(payload)) is None
    assert LineForm().part(message(b"\n")) is None


@example([b"\\ ", b"a"])
@example([b"\\ \na"])
@given(st.lists(LINE_BYTES, max_size=5))
def test_lines_of_a_message_are_read_as_if_it_came_alone(payloads: list[bytes]) -> None:
    """By an oracle that shares no code with us: the same readings, and as many errors."""
    alone = [read(each.strip(b"\r\n"), RULES) for each in payloads]
    joined = [read(each, RULES) for each in bodies(LineForm(), payloads, WIDE)]
    assert [r for told in joined for r in told.readings] == [
        r for told in alone for r in told.readings
    ]
    assert [e[1] for told in joined for e in told.errors] == [
        e[1] for told in alone for e in told.errors
    ]


def test_lines_without_a_time_get_that_of_their_message() -> None:
    """Else two of one series would be one row."""
    payload = b'm,device=a\\ b f=1\nm f=1,s="x y\\"" \nm f=1 7\nm f=1i\r'
    part = LineForm().part(message(payload))
    assert part is not None
    assert not part.is_last
    assert part.body.split(b"\n") == [
        b"m,device=a\\ b f=1 %d" % NOW_US,
        b'm f=1,s="x y\\"" %d' % NOW_US,
        b"m f=1 7",
        b"m f=1i %d" % NOW_US,
    ]


def test_text_that_may_go_on_is_the_last_of_its_post() -> None:
    """A line that is not closed would take the next message into its text."""
    posts = bodies(LineForm(), [b"m f=1 1", b'm f="x', b"m f=2 2", b"m,t=a\\", b"m f=3 3"], WIDE)
    assert posts == [b'm f=1 1\nm f="x', b"m f=2 2\nm,t=a\\", b"m f=3 3"]


def test_posts_have_bounds() -> None:
    """Messages, readings and bytes; a larger message is alone in its post."""
    values = json.dumps({"ts": 1, "values": {str(n): n for n in range(7)}}).encode()
    small = b'{"ts":1}'
    assert len(bodies(JsonForm(), [small] * 10, bounds(4, 100, 10_000))) == 3
    assert len(bodies(JsonForm(), [values] * 4, bounds(100, 14, 10_000))) == 2
    assert len(bodies(JsonForm(), [values] * 3, bounds(100, 1, 10_000))) == 3
    assert len(bodies(JsonForm(), [small] * 10, bounds(100, 100, 40))) == 3


def test_what_the_broker_sends_again_is_left_out() -> None:
    """Its connection has ended, so it is not ours any more."""
    waiting = WaitingMessages(JsonForm(), WIDE)
    gone = MqttMessage("t", b"{}", NOW_US, packet_id=7)
    for each in (gone, message(b'{"ts":1}')):
        part = JsonForm().part(each)
        assert part is not None
        waiting.add(part)
    assert [each.message is gone for each in waiting.gather()] == [False]


# Messages for a mapped source: a post has one topic, and each document its own time.

SOURCE = SourceForm("house")
TOPICS = st.sampled_from(["a/b", "a/c", "/", "ü/% ,\t😀"])


def posts(messages: list[MqttMessage]) -> Iterator[list[MessagePart]]:
    """Yield the messages of each post."""
    waiting = WaitingMessages(SOURCE, WIDE)
    for each in messages:
        if (part := SOURCE.part(each)) is not None:
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
        documents = json.loads(SOURCE.join(parts))
        headers = SOURCE.headers(parts)
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
        assert all(len(text) < 5_000 for text in SOURCE.headers(parts).values())
    assert SOURCE.headers(found[-1])["X-Received-At"] == str(NOW_US)


def test_topics_take_turns() -> None:
    """One that has many messages does not hold the others back."""
    many = [MqttMessage("busy", b"1", NOW_US + at) for at in range(300)]
    found = posts([*many, MqttMessage("quiet", b"2", NOW_US + 300)])
    assert [each[0].group for each in found] == ["busy", "quiet", "busy"]


@pytest.mark.parametrize("payload", [b"{", b"1],[2", b"ON", b"21,5", b"a=1", b"1\n2", b"nan"])
def test_message_for_a_source_that_is_not_json_is_refused_here(payload: bytes) -> None:
    """Its dead letter has what a source reads beside the message."""
    sent = MqttMessage("a/ü", payload, NOW_US)
    with pytest.raises(Unusable) as caught:
        SOURCE.part(sent)
    letter = letter_of(sent, SOURCE, caught.value.code, str(caught.value))
    assert (letter.code, letter.format, letter.source) == ("not_json", MAPPED, "/v1/in/house")
    assert json.loads(letter.context) == {"topic": "a/ü"}
    with pytest.raises(Unusable, match="too long"):
        SOURCE.part(MqttMessage("ü" * 1_000, b"1", NOW_US))
    assert SOURCE.part(MqttMessage("a", b"[]", NOW_US)) is None


def test_first_message_of_a_topic_waits_and_the_rest_of_a_post_does_not() -> None:
    """For as long as a post may wait for more."""
    waiting = WaitingMessages(SOURCE, replace(WIDE, send_linger_s=10.0))
    assert waiting.due_in_s() == 0
    for at in range(250):
        part = SOURCE.part(MqttMessage("t", b"1", NOW_US + at))
        assert part is not None
        waiting.add(part)
    assert waiting.oldest_us == NOW_US
    assert 0 < waiting.due_in_s() <= 10
    waiting.gather()
    assert (len(waiting), waiting.oldest_us) == (10, NOW_US + 240)
