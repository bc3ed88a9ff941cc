"""From messages to the bodies of posts: what a message must be, and how several are joined.

    json    a message is an item, or an array of items  -> one array
    lines   a message has lines of line protocol        -> all lines
    source  a message is any JSON, for a mapped source  -> one array for each topic

A post for a source has two headers beside its documents:

    X-Topic         the topic, percent-encoded: all messages of a post have this one
    X-Received-At   Unix microseconds: one for each document, or one for all of them

Promises: each message is read as if it came alone. What would change how another one is read, such
as a text that is not JSON, is refused here, or is the last of its post. Readings without a time get
that of their message: with the time of the post, two of one series would be one row. Of an item, no
other byte is changed.
Does not: know the table of a source. So a time is told also where the table finds one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import orjson

from ingest.model.reading import JSON, LINE, MAPPED
from ingest.mqtt.connection import MqttMessage
from ingest.mqtt.options import MqttOptions
from ingest.system.clock import monotonic_s

BLANKS = b" \t\r\n"
# Their times have 4 KiB in a header; servers and proxies take 8 KiB.
DOCUMENTS_MAX = 240
TOPIC_BYTES_MAX = 4_096
# A line with texts, each closed in its line: then no text goes on in the next message. It is
# stricter than line protocol is; other lines with texts are the last of their post.
_KEY = rb'(?:[^"\\ \n]|\\[^"\n])+'
_FIELD = rb'[^"\\ ,=\n]+=(?:[^"\\ ,=\n]+|"(?:[^"\\\n]|\\[^\n])*+")'
_TIMELESS = _KEY + rb" +" + _FIELD + rb"(?:," + _FIELD + rb")*"
_LINE = _TIMELESS + rb" *(?:-?[0-9]+ *)?\r?"
_WITHOUT_TIME = re.compile(_TIMELESS)
_CLOSED_LINES = re.compile(_LINE + rb"(?:\n+" + _LINE + rb")*\n*")


class MessagePart(NamedTuple):
    """What a message adds to a post. `is_last`: nothing may come behind it. `rows` is a guess.

    All messages of a post have one `group`.
    """

    message: MqttMessage
    body: bytes
    rows: int
    is_last: bool = False
    group: str = ""


class Unusable(ValueError):
    """A message that no service would take. The text says why; `code` is a problem code."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class MessageForm(ABC):
    """How messages are written. What a post needs is in its body, unless a form says more."""

    name: str
    path: str
    media_type = "application/json"
    rows_max = 100_000  # in a post

    def headers(self, _parts: Sequence[MessagePart]) -> Mapping[str, str]:
        """Return the headers of a post that are about its messages."""
        return {}

    def context(self, _message: MqttMessage) -> str:
        """Return the `context` of a message's dead letter."""
        return ""

    @abstractmethod
    def part(self, message: MqttMessage) -> MessagePart | None:
        """Return what a message adds to a post; None if it has no reading. Raises Unusable."""

    def join(self, parts: Sequence[MessagePart]) -> bytes:
        """Return the body of a post: one array."""
        return b"[" + b",".join([each.body for each in parts]) + b"]"


def _json_in(message: MqttMessage) -> tuple[bytes, Any] | None:
    """Return the JSON of a message, and what it is; None if there is nothing. Raises Unusable."""
    body = message.payload.strip(BLANKS)
    if not body:
        return None
    try:
        document = orjson.loads(body)
    except ValueError as error:
        raise Unusable("not_json", f"the message is not JSON: {error}") from None
    return None if document == [] else (body, document)


class JsonForm(MessageForm):
    """Items of POST /v1/readings."""

    name, path = JSON, "/v1/readings"

    def part(self, message: MqttMessage) -> MessagePart | None:
        """Return a message's items, without the brackets of an array."""
        found = _json_in(message)
        if found is None:
            return None
        body, document = found
        if not isinstance(document, list):
            return MessagePart(message, _stamped(body, document, message), _rows(document))
        if all(map(_has_time, document)):
            body = body[1:-1]
        else:
            try:
                raws = msgspec.json.decode(body, type=list[msgspec.Raw])
            except RecursionError:  # this parser reads less deeply than the other one
                raise Unusable("not_json", "the message is nested too deeply") from None
            items = zip(raws, document, strict=True)
            body = b",".join([_stamped(bytes(raw), item, message) for raw, item in items])
        return MessagePart(message, body, sum(map(_rows, document)))


def _has_time(item: object) -> bool:
    return not isinstance(item, dict) or "ts" in item


def _stamped(body: bytes, item: object, message: MqttMessage) -> bytes:
    """Return an item with a time: that of its message, if it has none of its own."""
    if _has_time(item):
        return body
    head = b'{"ts":%d,' if item else b'{"ts":%d'
    return head % message.received_us + body[1:]


def _rows(item: object) -> int:
    values = item.get("values") if isinstance(item, dict) else None
    return len(values) if isinstance(values, dict) and values else 1


class LineForm(MessageForm):
    """Line protocol, posted to /write."""

    name, path, media_type = LINE, "/write", "text/plain; charset=utf-8"

    def part(self, message: MqttMessage) -> MessagePart | None:
        """Return a message's lines."""
        body = message.payload.strip(b"\r\n")
        if not body:
            return None
        rows = body.count(b"=")
        is_open = b'"' in body and _CLOSED_LINES.fullmatch(body) is None
        if is_open or body.endswith(b"\\"):
            return MessagePart(message, body, rows, is_last=True)
        lines = [_with_time(line, message) for line in body.split(b"\n")]
        return MessagePart(message, b"\n".join(lines), rows)

    def join(self, parts: Sequence[MessagePart]) -> bytes:
        """Return all lines."""
        return b"\n".join([each.body for each in parts])


def _with_time(line: bytes, message: MqttMessage) -> bytes:
    stripped = line.removesuffix(b"\r").rstrip(b" ")
    if _WITHOUT_TIME.fullmatch(stripped) is None:
        return line  # as it is: behind a backslash a space has a meaning
    return b"%b %d" % (stripped, message.received_us)


class SourceForm(MessageForm):
    """Documents of POST /v1/in/NAME."""

    name = MAPPED
    rows_max = DOCUMENTS_MAX

    def __init__(self, source: str) -> None:
        self.path = f"/v1/in/{source}"

    def part(self, message: MqttMessage) -> MessagePart | None:
        """Return a message's documents, without the brackets of an array."""
        found = _json_in(message)
        if found is None:
            return None
        body, document = found
        if len(_encoded(message.topic)) > TOPIC_BYTES_MAX:
            raise Unusable("headers_too_large", "the topic is too long for a header")
        count = 1
        if isinstance(document, list):
            body, count = body[1:-1], len(document)
        return MessagePart(message, body, count, group=message.topic)

    def headers(self, parts: Sequence[MessagePart]) -> Mapping[str, str]:
        """Return the topic of these messages, and their times."""
        times = [str(each.message.received_us) for each in parts]
        if len(parts) > 1:  # else one time is for all documents
            counts = [each.rows for each in parts]
            times = list(chain.from_iterable(map(repeat, times, counts)))
        return {"X-Topic": _encoded(parts[0].message.topic), "X-Received-At": ",".join(times)}

    def context(self, message: MqttMessage) -> str:
        """Return what a dead letter keeps beside the message."""
        return orjson.dumps({"topic": message.topic}).decode()


def _encoded(topic: str) -> str:
    """Return a topic as a header may have it."""
    return quote(topic, safe="/")


FORMS: dict[str, type[JsonForm | LineForm]] = {"json": JsonForm, "lines": LineForm}


def form_of(form: str, source: str) -> MessageForm:
    """Return the form of messages for a source, if there is one, or that of FORMS."""
    return SourceForm(source) if source else FORMS[form]()


@dataclass(slots=True)
class _Group:
    """Messages for the same posts. The next post of them is due `send_linger_s` after `since_s`."""

    parts: deque[MessagePart] = field(default_factory=deque)
    since_s: float = field(default_factory=monotonic_s)


class WaitingMessages:
    """The messages that wait: their groups take turns, each has the order in which they came.

    A post has the bounds of `options`. A message that is larger is a post of its own.
    """

    def __init__(self, form: MessageForm, options: MqttOptions) -> None:
        self.size = 0  # bytes
        self._count = 0
        self._options = options
        self._rows_max = min(options.send_rows_max, form.rows_max)
        self._groups: dict[str, _Group] = {}  # none is empty

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a post."""
        options = self._options
        return len(self) >= options.send_messages_max or self.size >= options.send_bytes_max

    @property
    def oldest_us(self) -> int | None:
        """When the oldest one was received, in Unix microseconds."""
        first = (each.parts[0].message.received_us for each in self._groups.values())
        return min(first, default=None)

    def due_in_s(self) -> float:
        """Return how long the next post should wait for more messages, in seconds."""
        since_s = next((each.since_s for each in self._groups.values()), float("-inf"))
        return max(0.0, since_s + self._options.send_linger_s - monotonic_s())

    def add(self, part: MessagePart) -> None:
        """Let it wait."""
        group = self._groups.get(part.group)
        if group is None:
            group = self._groups[part.group] = _Group()
        group.parts.append(part)
        self._count += 1
        self.size += len(part.body)

    def gather(self) -> list[MessagePart]:
        """Take the messages of the next post. Those that the broker sends again are left out."""
        for name, group in self._groups.items():
            found = self._gather(group.parts)
            del self._groups[name]
            if group.parts:  # the others go before it
                self._groups[name] = group
            return found
        return []

    def _gather(self, parts: deque[MessagePart]) -> list[MessagePart]:
        found: list[MessagePart] = []
        rows = size = 0
        bytes_max = self._options.send_bytes_max
        while parts and len(found) < self._options.send_messages_max:
            part = parts[0]
            if part.message.is_wanted:
                rows += part.rows
                size += len(part.body) + 1
                if found and (rows > self._rows_max or size > bytes_max):
                    return found
                found.append(part)
            parts.popleft()
            self._count -= 1
            self.size -= len(part.body)
            if found and part.is_last and found[-1] is part:
                return found
        return found
