r"""Line protocol, one line at a time: with escapes, strings and comments, and the faults of a line.

    measurement[,tag=value].. field=value[,field=value].. [timestamp]

Spaces part key, fields and time; there may be several, also before and after. Names and tag values
are any characters. `,`, `=` and space in them are written with `\` before them; in a measurement
`=` needs none. For the other escapes see line_escapes.py. A line feed ends a line, but not within a
string. A `\r` before it is not of the line. A line that begins with `#` is a comment.
A value is a float (`1`, `1.`, `.5`, `-1e+3`), an integer (`5i` of 64 bits, `5u` without a sign), a
boolean (`t`, `T`, `true`, `True`, `TRUE`; alike for false) or a string in quotes, where `\` stands
before `"` and `\`. Strings are no readings. If one field has a fault, the others are readings all
the same. A field that stands twice is two readings. The unit of a time may be behind it, as
QuestDB's clients write it: `n`, `t` for microseconds, `m` for milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator
from typing import NamedTuple

from ingest.formats.line_escapes import as_posted, marked, name_of
from ingest.formats.lines.fast import BOOLEANS
from ingest.formats.lines.keys import (
    FIELD_BYTES_MAX,
    UNREADABLE,
    Fault,
    Key,
    Keys,
    Named,
    Shape,
    read_key,
)
from ingest.formats.post import ItemError, Post
from ingest.formats.timestamp import number_us
from ingest.model.block import device_needle
from ingest.model.codes import NOT_ALLOWED
from ingest.model.errors import Refused
from ingest.model.reading import name_fault
from ingest.system.words import quoted

LINE_BYTES_MAX = 128 * 1024
STEP_FIELDS = 25  # read in one step, of 1 ms at most: a name of FIELD_BYTES_MAX takes 35 us
STEP_BYTES = 2 * 1024  # of lines read in one step, of 1 ms at most; a field may have 4 bytes
FIELD_CHARACTERS_MAX = 80  # of a name in an error
ALSO_MAX = 20  # further faults of a line that are told
NUMBER_BYTES_MAX = 400  # of a value; a float64 has at most 309 digits before the point
STAMP_BYTES_MAX = 40

_NAME = rb"[^ \n,=]*+"
_STRING = rb'(?:"[^"\\]*+(?:\\[\s\S][^"\\]*+)*+"|(?!"))'
_REST = rb"[^ \n,]*+"
# Before Python 3.11.5 a possessive group that fails behind its first character is not taken back.
# So such a group here fails at once, or is atomic.
_FIELD = rb"(?>%b(?:=%b%b)?)" % (_NAME, _STRING, _REST)
# Some lines without content; then comment, key, fields and rest of one line, marked. The rest
# begins with _OPEN if a string has no end.
EMPTY = re.compile(rb"(?: *+(?:#[^\n]*+|\r)?\n)+")
_LINE = re.compile(
    rb" *+(#[^\n]*+)?([^ \n]*+)(?: ++(%b(?:,%b)*+))?([^\n]*+)(\n?)" % (_FIELD, _FIELD)
)
_OPEN = b'="'
_ONE_FIELD = re.compile(rb"(%b)(?:=(%b)(%b))?" % (_NAME, _STRING, _REST))
_FLOAT = re.compile(rb"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(rb"(?:(-?[0-9]+)i|([0-9]+)u)")
_INT64, _UINT64 = (-(2**63), 2**63 - 1), (0, 2**64 - 1)
_NOT_FINITE = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_STAMP = re.compile(rb"-?[0-9]+")
# Values in the binary form of QuestDB's clients: an array, a float64, a decimal.
_BINARY = (b"=\x0e", b"=\x10", b"=\x17")
_UNITS = {b"n": "ns", b"t": "us", b"m": "ms"}  # of a time, as in QuestDB
_SET_VERSION = (
    "values in QuestDB's binary form cannot be read: set protocol_version=1 in its client"
)
_NO_FIELD: Fault = (
    UNREADABLE,
    "the line has no field, or a field has no name, no `=`, or a text without an end",
)


class RawLine(NamedTuple):
    """One line: its number in the body from 0, its bytes, and their parts, which are marked."""

    number: int
    text: bytes
    key: bytes
    fields: bytes
    stamp: bytes


class LineRead(NamedTuple):
    """What a line has: its readings, the number of its strings, and the error of the rest.

    `rounded` of the values are integers that float64 cannot hold.
    """

    ts_us: int
    names: list[bytes]
    values: list[float]
    strings: int
    rounded: int
    error: ItemError | None


def next_line(body: bytes, at: int, number: int, escapes: str) -> tuple[RawLine | None, int, int]:
    """Read the line at a place; return it, where it ends, and the number of the next line.

    It is None if the line has no content. Raises Refused (`item_too_large`).
    """
    most = min(len(body), at + LINE_BYTES_MAX + 1)
    after = at
    while True:
        # A string may have line feeds: twice as much is looked at until it has its end.
        after = body.find(b"\n", after + (after - at), most) + 1 or most
        text = body[at:after]
        match = _LINE.match(marked(text, escapes))
        assert match is not None, "it matches any bytes"
        comment, key, fields, rest, end = match.groups()
        if (end and rest[:2] != _OPEN) or after == most or comment is not None:
            break
    if match.end() < len(text):
        text = text[: match.end()]
        after = at + match.end()
    if len(text) - len(end) > LINE_BYTES_MAX:
        raise line_too_large()
    lines = text.count(b"\n")
    text = text.removesuffix(b"\n").removesuffix(b"\r")
    if rest:
        rest = rest.removesuffix(b"\r").strip(b" ")
    elif fields is not None:
        fields = fields.removesuffix(b"\r")
    else:
        key = key.removesuffix(b"\r")
    if comment is not None or not (key or fields or rest):
        return None, after, number + lines
    return RawLine(number, text.strip(b" "), key, fields or b"", rest), after, number + lines


def line_too_large() -> Refused:
    """Return the refusal of a post with a line that has too many bytes."""
    return Refused(
        "item_too_large",
        f"a line may have at most {LINE_BYTES_MAX} bytes",
        item_bytes_max=LINE_BYTES_MAX,
    )


class LineReader:
    """What has been read of one line."""

    def __init__(self, line: RawLine, keys: Keys, post: Post) -> None:
        self._line = line
        self._keys = keys
        self._post = post
        self._needle: bytes
        self._shape: Shape
        self._new: dict[bytes, Named] = {}  # to be kept if there is a reading
        self._names: list[bytes] = []
        self._values: list[float] = []
        self._strings = 0
        self._rounded = 0
        self._bad: list[bytes] = []  # fields with a fault, as posted
        self._faults: list[tuple[str | None, Fault]] = []

    def read(self) -> Generator[None, None, LineRead]:
        """Split the fields; read what they have in common, and then each of them.

        Each step reads some of them. The result comes with StopIteration. Raises Refused for a
        value in QuestDB's binary form: its sender can be set to write text.
        """
        numbers = yield from self._split()
        if numbers is None:
            return self._refused(None, _NO_FIELD)
        try:
            self._line.text.decode()
        except UnicodeDecodeError:
            return self._refused(None, (UNREADABLE, "the line is not UTF-8"))
        fault = self._find_key()
        if fault is not None:
            is_told = numbers or fault[0] == UNREADABLE
            return self._refused(None, fault) if is_told else self._result(0)
        if not numbers:
            return self._result(0)
        ts_us = self._ts_us()
        if not isinstance(ts_us, int):
            return self._refused("ts", ts_us)
        for place, (name, value) in enumerate(numbers):
            if place and not place % STEP_FIELDS:
                yield
                self._keys.kept.new_bytes_left = LINE_BYTES_MAX
            fault = self._read_field(name, value)
            if fault is not None:
                self._bad.append(b"%b=%b" % (name, value))
                if len(self._faults) <= ALSO_MAX:
                    self._faults.append((_shown(name), fault))
        if self._names and self._new:
            self._keys.keep(self._new)
        return self._result(ts_us)

    def _split(self) -> Generator[None, None, list[tuple[bytes, bytes]] | None]:
        """Return name and value of all fields but strings; None if one is not readable."""
        fields = self._line.fields
        may_be_binary = fields.find(b"==") >= 0
        numbers: list[tuple[bytes, bytes]] = []
        at = -1
        while at < len(fields):
            match = _ONE_FIELD.match(fields, at + 1)
            assert match is not None, "it matches any bytes"
            at = match.end()
            name, string, rest = match.groups()
            if rest is None or not name or fields[at : at + 1] not in (b"", b","):
                return None
            if may_be_binary and rest.startswith(_BINARY):
                raise Refused("not_lines", _SET_VERSION)
            if string and not rest:
                self._strings += 1
            else:
                numbers.append((name, string + rest))
            if not (len(numbers) + self._strings) % STEP_FIELDS:
                yield
        return numbers

    def _find_key(self) -> Fault | None:
        """Find what the key tells, or return its fault."""
        text, keys = self._line.key, self._keys
        keys.kept.new_bytes_left = LINE_BYTES_MAX  # STEP_FIELDS is the bound here
        try:
            (named,), self._new = keys.named([text])
        except KeyError:
            key = read_key(text, keys.naming)
            if not isinstance(key, Key):
                return key
            named = device_needle(key.device_id), keys.shape(key)
            self._new = {text: named}
        self._needle, self._shape = named
        allows = self._post.allows
        if allows is not None and not allows(self._needle[4:].decode()):
            return NOT_ALLOWED, "the token may not speak for this device"
        return None

    def _ts_us(self) -> int | Fault:
        stamp, post = self._line.stamp, self._post
        if not stamp:
            return post.received_us
        ts_us = stamp_us(stamp, post.precision)
        if not isinstance(ts_us, int):
            return ts_us
        if fault := post.ts_fault(ts_us):
            return fault[0], f"{_text(stamp)} {fault[1]}"
        return ts_us

    def _read_field(self, name: bytes, text: bytes) -> Fault | None:
        """Add a reading, or return the fault of the field."""
        value = self._value(text)
        if not isinstance(value, float):
            return value
        try:
            after = self._shape.after(name)
        except KeyError:
            return _name_fault(self._shape.key, name)
        self._names.append(self._needle + after)
        self._values.append(value)
        return None

    def _value(self, text: bytes) -> float | Fault:
        if len(text) > NUMBER_BYTES_MAX:
            return "wrong_type", f"the value has more than {NUMBER_BYTES_MAX} characters"
        if _FLOAT.fullmatch(text):
            value = float(text) + 0.0  # -0.0 becomes 0.0
        elif integer := _INTEGER.fullmatch(text):
            exact = int(integer[1] or integer[2])
            least, most = _INT64 if integer[1] else _UINT64
            if not least <= exact <= most:
                return "value_out_of_range", f"{quoted(_text(text))} does not fit into 64 bits"
            value = exact + 0.0
            self._rounded += int(value) != exact
        elif text in BOOLEANS:
            value = float(BOOLEANS[text])
        elif _NOT_FINITE.fullmatch(text):
            return "value_out_of_range", f"{_text(text)} is not a finite number"
        else:
            return "wrong_type", f"{quoted(_text(text))} is not a number, boolean or string"
        if math.isinf(value):
            return "value_out_of_range", f"{quoted(_text(text))} does not fit into a float64"
        return value

    def _refused(self, field: str | None, fault: Fault) -> LineRead:
        """Return that nothing of the line is a reading."""
        error = ItemError(self._line.number, field, *fault, self._line.text)
        return LineRead(0, [], [], 0, 0, error)

    def _result(self, ts_us: int) -> LineRead:
        """Return what was read. The error has a line of the fields that have a fault."""
        error = None
        if self._bad:
            line = self._line
            original = line.text
            if self._names or self._strings:
                stamp = b" " + line.stamp if line.stamp else b""
                original = as_posted(b"%b %b%b" % (line.key, b",".join(self._bad), stamp))
            (field, fault), *others = self._faults
            also = tuple((field, code) for field, (code, _) in others)
            error = ItemError(line.number, field, *fault, original, also)
        return LineRead(ts_us, self._names, self._values, self._strings, self._rounded, error)


def stamp_us(stamp: bytes, precision: str | None) -> int | Fault:
    """Return a time in Unix microseconds; its unit is behind it, or is `precision`."""
    unit = _UNITS.get(stamp[-1:])
    digits = stamp[:-1] if unit else stamp
    if len(digits) > STAMP_BYTES_MAX or not _STAMP.fullmatch(digits):
        return "ts_unreadable", f"{quoted(_text(stamp))} is not a whole number"
    return number_us(int(digits), unit or precision)


def _name_fault(key: Key, name: bytes) -> Fault:
    if len(name) > FIELD_BYTES_MAX:
        return "name_too_long", f"the name of a field has more than {FIELD_BYTES_MAX} bytes"
    fault = name_fault(key.metric(name_of(name)))
    code, message = fault or (UNREADABLE, "the name of the metric is invalid")
    return code, f"the metric {message}"


def _shown(name: bytes) -> str:
    text = _text(name)
    return text if len(text) <= FIELD_CHARACTERS_MAX else text[:FIELD_CHARACTERS_MAX] + ".."


def _text(name: bytes) -> str:
    return as_posted(name).decode("utf-8", "replace")
