"""Cuts a large JSON body into slices of whole items, and parses each one alone.

Promises: together the slices are the items of the body; a body that is not JSON is refused. One
slice takes a millisecond, whatever it has.
How it can be right without parsing the body first: a parser goes from left to right. If a part of
the body that begins after the array's bracket, or after a comma between two items, is an array of
items once it has brackets, then the comma after it stands between two items too. So a place to cut
may be guessed. If the guess was wrong (it is within a text, or within an item), the parser finds no
end, and the next guess is farther away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson
from msgspec import Raw

from ingest.formats.post import too_many
from ingest.model.errors import Refused

SLICE_BYTES = 32 * 1024
ITEM_BYTES_MAX = 512 * 1024
# A slice has whole items, and its size doubles until the last one has ended. So an item may be a
# little larger than it is allowed to be.
SLICE_BYTES_MAX = 2 * (ITEM_BYTES_MAX + SLICE_BYTES)
# A reading has a comma before it. An item with many more parts is refused unparsed: each part takes
# memory and time.
COMMAS_PER_READING_MAX = 2
COMMAS_MIN = 8_192
BYTES_PER_BRACKET_MIN = 24  # to make an array costs as much as 12 bytes of other JSON
CROWD_BYTES = 64 * 1024  # a slice of this size may have any number of parts
NESTED_MAX = 20_000  # lists and objects of a large item, if all of them are made: some 3 ms
INT_DIGITS_MAX = 400  # a float64 has at most 309; the time of int() grows with their square
SPACE = b" \t\n\r"

MOMENT_BYTES_MAX = 8 * 1024  # a slice gets so many more, if they are of its last device and time

# The value of a field. It need not be right: it only tells where a cut is better.
_FIELD = re.compile(rb'[ \t\n\r]*:[ \t\n\r]*("[^"]*"|[^",} \t\n\r]*)')
# Between two items: as it is nearly always, and in every case.
_CUTS = (re.compile(rb"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)"), re.compile(rb","))
_RAW = msgspec.json.Decoder(Raw)
RAWS = msgspec.json.Decoder(list[Raw])
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_OBJECTS = msgspec.json.Decoder(list[dict[str, Raw]])
_MEMBERS_DEPTH = 2  # an item has members, and its `values` has members

Slice = tuple[list[Any], bytes]  # the parsed items, and their bytes: an array, or one item


def whole_number(digits: str) -> int | float:
    """Return an integer of JSON; one that no float64 holds may be infinite."""
    return int(digits) if len(digits) <= INT_DIGITS_MAX else float(digits)


def _number_of_64_bits(digits: str) -> int | float:
    """Return an integer as the fast parser reads it: as a float if it has more than 64 bits."""
    number = whole_number(digits)
    return number if -(2**63) <= number < 2**64 else float(digits)


_LENIENT = json.JSONDecoder(parse_int=whole_number)
_LENIENT_OF_64_BITS = json.JSONDecoder(parse_int=_number_of_64_bits)
_TOO_DEEP = "the body is nested too deeply"


class _Unfinished(ValueError):
    """The JSON has no end."""


def parsed(text: bytes, *, is_suspect: bool = False) -> Any:
    """Parse JSON. Raises ValueError; a number beyond float64 is infinite.

    If there are many arrays, what is within an item's fields is not made: no reading has an array.
    If the text `is_suspect`, it is also not made if there are many objects.
    """
    try:
        has_arrays = text.find(b"[", 1) > 0 and _is_nested(text, b"[")
        if has_arrays or (is_suspect and _is_nested(text, b"{")):
            return _parsed_shallowly(text)
        return _parsed_fully(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _parsed_fully(text: bytes, lenient: json.JSONDecoder = _LENIENT) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as fault:
        if fault.msg.startswith("number is infinity"):
            try:
                _check(text)
                return lenient.decode(text.decode())
            except RecursionError:
                raise ValueError(_TOO_DEEP) from None
        if "UTF-8" in fault.msg:
            raise ValueError("it is not UTF-8") from fault
        if fault.pos >= len(text.decode()) - 1:
            raise _Unfinished(fault.msg) from fault
        # The text, and not the place: this is a slice of a body.
        near = f"{fault.msg}, at {fault.doc[fault.pos : fault.pos + 16]!r}"
        raise ValueError(_TOO_DEEP if "depth" in fault.msg else near) from fault


def _is_nested(text: bytes, bracket: bytes) -> bool:
    """Whether there are more arrays or objects than readings have."""
    return text.count(bracket) > len(text) // BYTES_PER_BRACKET_MIN + 8


def parsed_leniently(text: bytes) -> Any:
    """Parse what is known to be JSON: integers are exact, a number beyond float64 is infinite."""
    return _LENIENT.decode(text.decode())


def _parsed_shallowly(text: bytes) -> Any:
    """Parse JSON; arrays and objects within an item's fields are empty, except `values`."""
    text.decode()  # the parser does not check the text that it skips
    if text.lstrip(SPACE)[:1] != b"[":
        _check(text)
        return _shallow(text.strip(SPACE), _MEMBERS_DEPTH)
    try:
        return [_members(each) for each in _OBJECTS.decode(text)]
    except msgspec.ValidationError:
        _check(text)
        return [_shallow(bytes(raw), _MEMBERS_DEPTH) for raw in RAWS.decode(text)]
    except msgspec.DecodeError as fault:
        raise _fault_of(fault, text) from None


def _members(members: dict[str, Raw]) -> dict[str, Any]:
    return {name: _shallow(bytes(raw), name == "values") for name, raw in members.items()}


def _shallow(text: bytes, depth: int) -> Any:
    first = text[:1]
    if first == b"[":
        return []
    if first != b"{":
        return _parsed_fully(text)  # a name may have many brackets
    if not depth:
        return {}
    members = _MEMBERS.decode(text)
    if depth == _MEMBERS_DEPTH:
        return _members(members)
    return {name: _shallow(bytes(raw), 0) for name, raw in members.items()}


def _check(text: bytes) -> None:
    """Raise ValueError if a text is not JSON."""
    text.decode()  # the parser does not check the text that it skips
    try:
        _RAW.decode(text)
    except msgspec.DecodeError as fault:
        raise _fault_of(fault, text) from None


def _fault_of(fault: msgspec.DecodeError, text: bytes) -> ValueError:
    why = str(fault)
    is_at_end = "truncated" in why or why.endswith(f"(byte {len(text) - 1})")
    return _Unfinished(why) if is_at_end else ValueError(why)


def parsed_in_full(text: bytes) -> Any:
    """Parse JSON with all that is in it. Raises ValueError, Refused (`too_many_readings`).

    A number is read in the same way whatever stands beside it.
    """
    if len(text) > CROWD_BYTES and text.count(b"[") + text.count(b"{") > NESTED_MAX:
        raise Refused(
            "too_many_readings",
            f"a document of more than {CROWD_BYTES} bytes may have at most {NESTED_MAX} lists and "
            "objects; split it",
        )
    try:
        return _parsed_fully(text, _LENIENT_OF_64_BITS)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def slices(
    body: bytes, rows_max: int, parse: Callable[[bytes], Any], *, keeps_moments: bool
) -> Iterator[Slice | None]:
    """Yield the slices of a body, and None after a part that was no slice.

    `parse` is `parsed` or `parsed_in_full`. `keeps_moments`: see `after_moment`.
    Raises Refused: `not_json`, `too_many_readings`, `item_too_large`.
    """
    at, end = 0, len(body)
    while at < end and not body[at : at + SLICE_BYTES].lstrip(SPACE):
        at += SLICE_BYTES
        yield None
    begin = body[at : at + SLICE_BYTES]
    at += len(begin) - len(begin.lstrip(SPACE))
    if body[at : at + 1] != b"[":
        check_slice(body, at, end, rows_max)
        body = body[at:]
        try:
            item = parse(body)
        except ValueError as fault:
            raise not_json(fault) from None
        yield [item], body
        return
    first, size = at + 1, SLICE_BYTES
    at = first
    while True:
        stop = _cut(body, at, at + size)
        if keeps_moments:
            stop = after_moment(body, stop, _CUTS[0])
        check_slice(body, at, stop, rows_max)
        text = b"[%b" % body[at:] if stop == end else b"[%b]" % body[at : stop - 1]
        try:
            items = parse(text)
        except ValueError as fault:
            if stop < end and isinstance(fault, _Unfinished):
                size *= 2
                yield None
                continue
            raise not_json(fault) from None
        if not items and (at > first or stop < end):
            raise Refused("not_json", "the body is not valid JSON: a comma without an item")
        yield items, text
        if stop == end:
            return
        at, size = stop, SLICE_BYTES


def _cut(body: bytes, at: int, first: int) -> int:
    """Return where a slice that begins at `at` may end: after a comma, or at the body's end."""
    window = SLICE_BYTES
    while first < len(body) and first < at + SLICE_BYTES_MAX:
        for cut in _CUTS:
            found = cut.search(body, first, first + window)
            if found:
                return found.end()
        first += window
        window *= 2
    return len(body)


def after_moment(body: bytes, stop: int, cut: re.Pattern[bytes]) -> int:
    """Move the end of a slice behind the items of its last device and time, if they are few.

    So they become one row. Where they are in two slices, the table has a row in conflict.
    """
    most = min(stop + MOMENT_BYTES_MAX, len(body))
    last = _moment(body, max(0, stop - MOMENT_BYTES_MAX), stop)
    while last[0] and (found := cut.search(body, stop, most)):
        if _moment(body, stop, found.end()) != last:
            break
        stop = found.end()
    return stop


def _moment(body: bytes, at: int, stop: int) -> list[bytes]:
    """Return the last device and the last time in a part of a body; empty if it has none."""
    found = list[bytes]()
    for name in (b'"device_id"', b'"ts"'):
        place = body.rfind(name, at, stop)
        value = _FIELD.match(body, place + len(name), stop) if place >= 0 else None
        found.append(value[1] if value else b"")
    return found


def check_slice(body: bytes, at: int, stop: int, rows_max: int) -> None:
    """Raise Refused if a slice would take too long to parse. Only a large item makes it large."""
    if stop - at > SLICE_BYTES_MAX:
        raise Refused(
            "item_too_large",
            f"an item may have at most {ITEM_BYTES_MAX} bytes",
            item_bytes_max=ITEM_BYTES_MAX,
        )
    if stop - at > CROWD_BYTES and _is_crowd(
        body, at, stop, max(COMMAS_MIN, COMMAS_PER_READING_MAX * rows_max)
    ):
        raise too_many(rows_max, "an item has too many commas")


def _is_crowd(body: bytes, at: int, stop: int, commas_max: int) -> bool:
    """Whether a part of the body has very many commas. Stops counting when it has."""
    commas = 0
    for start in range(at, stop, CROWD_BYTES):
        commas += body.count(b",", start, min(start + CROWD_BYTES, stop))
        if commas > commas_max:
            return True
    return False


def not_json(fault: ValueError | RecursionError) -> Refused:
    """Return the refusal of a body that the parser did not take."""
    if isinstance(fault, RecursionError) or str(fault) == _TOO_DEEP:
        return Refused("not_json", _TOO_DEEP)
    return Refused("not_json", f"the body is not valid JSON: {fault}")
