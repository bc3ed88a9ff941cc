"""The formats in which posts are sent: from items as JSON texts to a body, and where it goes.

Pure. Promises: the same items give the same bytes. A body has the same readings in each format:
times to the microsecond, values to the last bit.
"mapped" is JSON of a form of its own: the service needs the source of docs/reference/loadgen.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

READINGS_PATH = "/v1/readings"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TAG_MARKS = re.compile(r"([,= \\])")
_MEASUREMENT_MARKS = re.compile(r"([, \\])")


class Format(NamedTuple):
    """A format: how its bodies are written, and the media type and path that they have.

    `is_answered`: the answer names the readings that were not kept. Without it a 2xx promises only
    what could be read: invalid readings are dead letters, and the sender does not hear which.
    `takes_ack`: a post may ask how safely it is kept.
    """

    media_type: str
    body: Callable[[Sequence[str]], bytes]
    path: str = READINGS_PATH
    is_answered: bool = True
    takes_ack: bool = True


def _json(texts: Sequence[str]) -> bytes:
    return (texts[0] if len(texts) == 1 else f"[{','.join(texts)}]").encode()


def _ndjson(texts: Sequence[str]) -> bytes:
    return "\n".join(texts).encode()


def _msgpack(texts: Sequence[str]) -> bytes:
    items = [*map(json.loads, texts)]
    return msgspec.msgpack.encode(items[0] if len(items) == 1 else items)


def _lines(texts: Sequence[str]) -> bytes:
    return "\n".join(line for text in texts for line in _lines_of(json.loads(text))).encode()


def _lines_of(item: dict[str, Any]) -> list[str]:
    """Return a line for each metric of an item."""
    device = _TAG_MARKS.sub(r"\\\1", item["device_id"])
    values = item.get("values") or {item["metric"]: item["value"]}
    time_us = _time_us(item["ts"])
    return [
        f"{measurement},device_id={device} value={json.dumps(value)} {time_us}"
        for measurement, value in (
            (_MEASUREMENT_MARKS.sub(r"\\\1", metric), value) for metric, value in values.items()
        )
    ]


def _mapped(texts: Sequence[str]) -> bytes:
    items = [*map(json.loads, texts)]
    documents = [
        {
            "id": item["device_id"],
            "at": _time_us(item["ts"]),
            "data": item.get("values") or {item["metric"]: item["value"]},
        }
        for item in items
    ]
    return json.dumps(documents[0] if len(documents) == 1 else documents).encode()


def _time_us(ts: str | int) -> int:
    if isinstance(ts, int):
        return ts
    return (datetime.fromisoformat(ts) - _EPOCH) // timedelta(microseconds=1)


FORMATS = {
    "json": Format("application/json", _json),
    "ndjson": Format("application/x-ndjson", _ndjson),
    "msgpack": Format("application/msgpack", _msgpack),
    "lines": Format("text/plain; charset=utf-8", _lines, "/write", is_answered=False),
    "mapped": Format(
        "application/json", _mapped, "/v1/in/loadgen", is_answered=False, takes_ack=False
    ),
}


def letter_text(name: str, text: str) -> str:
    """Return what a dead letter of this item has as its original; bytes as characters."""
    if name == "msgpack":
        return msgspec.msgpack.encode(json.loads(text)).decode("latin-1")
    return text
