"""Messages for a mapped source: any JSON, and beside it the topic and the time of each message.

    X-Topic         the topic, percent-encoded: so all messages of a post have one topic
    X-Received-At   Unix microseconds: one for each document, or one for all of them

Promises: each message is read as if it came alone. A message that is not JSON is refused here: it
would cost the others of its post.
Does not: know the table of the source. So a time is told also where the table finds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from urllib.parse import quote

import orjson

from ingest.model.letter import MAPPED
from ingest.mqtt.connection import MqttMessage
from ingest.mqtt.gathering import MessageForm, MessagePart, Unusable, json_in

# Their times have 4 KiB in a header; servers and proxies take 8 KiB.
DOCUMENTS_MAX = 240
TOPIC_BYTES_MAX = 4_096


class SourceForm(MessageForm):
    """Documents of POST /v1/in/NAME."""

    media_type = "application/json"
    name = MAPPED

    def __init__(self, source: str) -> None:
        self.path = f"/v1/in/{source}"

    def part(self, message: MqttMessage) -> MessagePart | None:
        """Return a message's documents, without the brackets of an array."""
        found = json_in(message)
        if found is None:
            return None
        body, document = found
        if len(encoded(message.topic)) > TOPIC_BYTES_MAX:
            raise Unusable("headers_too_large", "the topic is too long for a header")
        count = 1
        if isinstance(document, list):
            body, count = body[1:-1], len(document)
        return MessagePart(message, body, count, group=message.topic)

    def join(self, parts: Sequence[MessagePart]) -> bytes:
        """Return one array."""
        return b"[%b]" % b",".join([each.body for each in parts])

    def headers(self, parts: Sequence[MessagePart]) -> Mapping[str, str]:
        """Return the topic of these messages, and their times."""
        times = [str(each.message.received_us) for each in parts]
        if len(parts) > 1:  # else one time is for all documents
            counts = [each.rows for each in parts]
            times = list(chain.from_iterable(map(repeat, times, counts)))
        return {"X-Topic": encoded(parts[0].message.topic), "X-Received-At": ",".join(times)}

    def context(self, message: MqttMessage) -> str:
        """Return what a dead letter keeps beside the message."""
        return orjson.dumps({"topic": message.topic}).decode()


def encoded(topic: str) -> str:
    """Return a topic as a header may have it."""
    return quote(topic, safe="/")
