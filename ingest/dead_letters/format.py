"""A dead letter as a line of JSON: writes and reads the line and its checksum.

    {"v":1,"id":"<32 hex>","reason":..,"code":..,"message":..,"attempts":..,"received_at":..,
     "failed_at":..,"item":..,"field":..,"precision":..,"reading":{..}|null,
     "format":..,"source":..,"ignore_unknown":..,"device":..,"prefix":..,"context":..,
     "sender":..,"devices":[..],"original":..,"sum":..}

A line with a reading has no `format` and no `source`. Lines of earlier versions have none either:
then it is JSON, posted to /v1/readings. `device` is of line protocol and SenML, `prefix` of line
protocol, `context` of mapped documents, `devices` of a token that may speak for these only; an
empty one is left out.
Promises: values and original bytes are read exactly as they were written. `sum` is the CRC-32 of
all bytes before it, so a line that was cut or changed is found out. `v`, `id` and `reason` are at
fixed offsets.
Does not: read or write files.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from ingest.model.reading import JSON, READINGS, Letter, Reading
from ingest.system.clock import rfc3339_or_us

VERSION = 1
LINE_BYTES_MAX = 64 * 1024 * 1024  # readers take no longer line into memory
_IF_ANY = ("device", "prefix", "context", "sender")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUM_BYTES = len(b',"sum":"00000000"}\n')
ID_AT = len(b'{"v":1,"id":"')
ID_CHARACTERS = 32
REASON_CHARACTERS = 3  # enough to tell the reasons apart
REASON_AT = ID_AT + ID_CHARACTERS + len(b'","reason":"')


class BadLine(ValueError):
    """A line that is no letter. The text is for users and says why."""


class Line(NamedTuple):
    """The content of one line. `failed_us` is when it was written, in Unix microseconds."""

    id: str
    failed_us: int
    letter: Letter


def encode_line(letter: Letter, *, id_: str, failed_us: int) -> bytes:
    """Write a letter as one line with its line feed. It fails on no content of a letter."""
    fields: dict[str, Any] = {
        "v": VERSION,
        "id": id_,
        "reason": letter.reason,
        "code": letter.code,
        "message": letter.message,
        "attempts": letter.attempts,
        "received_at": rfc3339_or_us(letter.received_us),
        "failed_at": rfc3339_or_us(failed_us),
        "item": letter.item,
        "field": letter.field,
        "precision": letter.precision,
        "reading": None if letter.reading is None else reading_object(letter.reading),
    }
    if letter.original is not None:
        fields["format"], fields["source"] = letter.format, letter.source
        fields["ignore_unknown"] = letter.ignore_unknown
        for name in _IF_ANY:
            if text := getattr(letter, name):
                fields[name] = text
        if letter.devices:
            fields["devices"] = letter.devices
        try:
            fields["original"] = letter.original.decode()
        except UnicodeDecodeError:
            fields["original_base64"] = base64.b64encode(letter.original).decode()
    try:
        return seal(orjson.dumps(fields))
    except TypeError:  # a text has half of a surrogate pair; such a letter must be kept too
        for name in ("code", "message", "field", "precision", *_IF_ANY):
            if fields.get(name) is not None:
                fields[name] = utf8(fields[name]).decode()
        return seal(orjson.dumps(fields))


def reading_object(reading: Reading) -> dict[str, Any]:
    """Return a reading as the JSON object of a post."""
    return {
        "ts": rfc3339_or_us(reading.ts_us),
        "device_id": reading.device_id,
        "metric": reading.metric,
        "value": reading.value,
    }


def decode_line(line: bytes) -> Line:
    """Read one whole line. Raises BadLine if it was altered or is of another version."""
    return line_of(parse(line, check_sum=True))


def parse(line: bytes, *, check_sum: bool) -> dict[str, Any]:
    """Return a line's JSON object, its version checked. Raises BadLine."""
    body = unseal(line) if check_sum else line
    if body is None:
        raise BadLine("the checksum does not match: the line was cut, or altered (use --edited)")
    try:
        fields = orjson.loads(body)
    except ValueError as error:
        raise BadLine(f"not JSON: {error}") from error
    if not isinstance(fields, dict) or "v" not in fields:
        raise BadLine("not a dead letter")
    if fields["v"] != VERSION:
        raise BadLine(f"version {fields['v']!r} is not known here")
    return fields


def line_of(fields: dict[str, Any]) -> Line:
    """Turn a parsed line into a letter. Raises BadLine if a field is missing or of a wrong kind."""
    try:
        letter = Letter(
            reason=_text(fields["reason"]),
            code=_text(fields["code"]),
            message=_text(fields["message"]),
            received_us=time_in(fields["received_at"]),
            reading=_reading_in(fields["reading"]),
            original=original_in(fields),
            precision=_text_or_none(fields["precision"]),
            field=_text_or_none(fields["field"]),
            item=_whole_or_none(fields["item"]),
            attempts=_whole_or_none(fields["attempts"]) or 0,
            format=_text(fields.get("format", JSON)),
            source=_text(fields.get("source", READINGS)),
            ignore_unknown=fields.get("ignore_unknown") is True,
            device=_text(fields.get("device", "")),
            prefix=_text(fields.get("prefix", "")),
            context=_text(fields.get("context", "")),
            sender=_text(fields.get("sender", "")),
            devices=devices_in(fields),
        )
        return Line(id_in(fields), time_in(fields["failed_at"]), letter)
    except KeyError as error:
        raise BadLine(f"the field {error} is missing") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise BadLine(str(error)) from error


def id_in(fields: dict[str, Any]) -> str:
    """Return the id of a parsed line. Raises KeyError, TypeError or ValueError."""
    id_ = _text(fields["id"])
    if len(id_) != ID_CHARACTERS or not id_.isalnum() or not id_.isascii():
        raise ValueError(f"{id_!r:.80} is not an id")
    return id_


def original_in(fields: dict[str, Any]) -> bytes | None:
    """Return the original bytes of a parsed line. Raises TypeError or ValueError."""
    if fields.get("original") is not None:
        return _text(fields["original"]).encode()
    if fields.get("original_base64") is not None:
        return base64.b64decode(_text(fields["original_base64"]), validate=True)
    return None


def devices_in(fields: dict[str, Any]) -> tuple[str, ...]:
    """Return the devices that the sender may speak for. Raises TypeError."""
    return tuple(map(_text, fields.get("devices", ())))


def time_in(value: Any) -> int:
    """Return a time of a line as Unix microseconds. Raises TypeError or ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError(f"the time {value!r} has no offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def seal(body: bytes) -> bytes:
    """Append the checksum to a JSON object, and a line feed."""
    return b'%b,"sum":"%08x"}\n' % (body[:-1], crc32(body[:-1]))


def unseal(line: bytes) -> bytes | None:
    """Return the JSON object without its checksum, or None if that does not match."""
    head = line[:-_SUM_BYTES]
    return head + b"}" if line == seal(head + b"}") else None


def _reading_in(value: Any) -> Reading | None:
    if value is None:
        return None
    number = value["value"]
    if not isinstance(number, float):
        raise TypeError("the reading's value is not a number")
    return Reading(time_in(value["ts"]), _text(value["device_id"]), _text(value["metric"]), number)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not text")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _whole_or_none(value: Any) -> int | None:
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{value!r:.80} is not a whole number")
    return value


def utf8(text: str) -> bytes:
    """Encode a text, also one that has half of a surrogate pair."""
    return text.encode(errors="replace")


def key_of(id_: str, reason: str) -> bytes:
    """Return the key of a letter: its id and the start of its reason."""
    return (id_ + reason[:REASON_CHARACTERS]).encode()
