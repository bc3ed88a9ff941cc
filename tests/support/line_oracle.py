r"""Line protocol once more, for tests: a slow reader that goes from byte to byte.

It shares no code with the service, and has no regular expression and no cache. `read_back` is the
inverse of the names of metrics.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from fractions import Fraction

UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
TRUE = ("t", "T", "true", "True", "TRUE")
FALSE = ("f", "F", "false", "False", "FALSE")
LINE_FEED, BACKSLASH, QUOTE = b'\n\\"'

Reading = tuple[int, str, str, float]
Fields = list[tuple[bytes, bytes | None]]


@dataclass
class Told:
    """What the oracle says of a body. An error is a line from 0, a code, and the original."""

    readings: list[Reading] = field(default_factory=list)
    errors: list[tuple[int, str, bytes]] = field(default_factory=list)
    strings: int = 0
    rounded: int = 0


@dataclass
class Rules:
    """How lines are read. Times in microseconds."""

    device_tags: tuple[str, ...]
    device: str
    prefix: str
    precision: str | None
    received_us: int
    ts_min_us: int
    ts_max_us: int
    escapes: str = "influxdb"

    def escaped(self, marks: str) -> str:
        """Return what a backslash is an escape before: a name that has these as marks."""
        return marks if self.escapes == "influxdb" else marks + "\\\n"


class Bad(Exception):
    """A fault; its first argument is the code."""


def read(body: bytes, rules: Rules) -> Told:
    """Read a whole body."""
    told = Told()
    at = number = 0
    while at < len(body):
        start = at
        at, key, fields, rest = _cut(body, at, rules)
        text = body[start:at].removesuffix(b"\n")
        line, number = number, number + body[start:at].count(b"\n")
        if key is None or not (key or fields or rest):
            continue
        text = text.removesuffix(b"\r").strip(b" ")
        try:
            try:
                text.decode()
            except UnicodeDecodeError:
                raise Bad("line_unreadable") from None
            _read_line(Line(line, text, key, fields, rest), rules, told)
        except Bad as bad:
            told.errors.append((line, bad.args[0], text))
    return told


def _cut(body: bytes, at: int, rules: Rules) -> tuple[int, bytes | None, Fields, bytes]:
    """Return the place after a line, its key (None: a comment), its fields and the rest."""
    while body[at : at + 1] == b" ":
        at += 1
    if body[at : at + 1] == b"#":
        return _line_end(body, at) + 1, None, [], b""
    key, at = _until(body, at, " \n", rules.escaped(",= "))
    fields: Fields = []
    if body[at : at + 1] == b" ":
        fields, at = _fields(body, at, rules)
    end = at
    while body[end : end + 1] not in (b"", b"\n"):
        end += 2 if rules.escapes == "questdb" and body[end : end + 2] == b"\\\n" else 1
    end = min(end, len(body))
    rest = body[at:end]
    if rest:
        rest = rest.removesuffix(b"\r").strip(b" ")
    elif fields:  # the line ends with its last field
        name, value = fields.pop()
        if value is None:
            fields.append((name.removesuffix(b"\r"), None))
        else:
            fields.append((name, value.removesuffix(b"\r")))
    else:
        key = key.removesuffix(b"\r")
    return end + 1, key, [] if fields == [(b"", None)] else fields, rest


def _line_end(body: bytes, at: int) -> int:
    while at < len(body) and body[at] != LINE_FEED:
        at += 1
    return at


def _fields(body: bytes, at: int, rules: Rules) -> tuple[Fields, int]:
    while body[at : at + 1] == b" ":
        at += 1
    fields: Fields = []
    while True:
        name, at = _until(body, at, ",= \n", rules.escaped(",= "))
        value: bytes | None = None
        if body[at : at + 1] == b"=" and not _is_open(body, at + 1):
            value, at = _value(body, at + 1, rules)
        fields.append((name, value))
        if body[at : at + 1] != b",":
            return fields, at
        at += 1


def _until(body: bytes, at: int, marks: str, escaped: str) -> tuple[bytes, int]:
    """Return the bytes before the first of these marks that is not escaped, and its place."""
    start = at
    while at < len(body) and chr(body[at]) not in marks:
        at += (
            2 if body[at] == BACKSLASH and body[at + 1 : at + 2].decode("latin-1") in escaped else 1
        )
    at = min(at, len(body))
    return body[start:at], at


def _is_open(body: bytes, at: int) -> bool:
    return body[at : at + 1] == b'"' and _end_of_string(body, at) is None


def _value(body: bytes, at: int, rules: Rules) -> tuple[bytes, int]:
    start = at
    if body[at : at + 1] == b'"':
        at = _end_of_string(body, at) or at
    _, at = _until(body, at, ", \n", rules.escaped(",= "))
    return body[start:at], at


def _end_of_string(text: bytes, at: int) -> int | None:
    """Return the place after the quote that ends the string at a place, None if there is none."""
    at += 1
    while at < len(text):
        if text[at] == QUOTE:
            return at + 1
        at += 2 if text[at] == BACKSLASH else 1
    return None


@dataclass
class Line:
    """The parts of a line."""

    number: int
    text: bytes
    key: bytes
    fields: Fields
    rest: bytes


def _read_line(line: Line, rules: Rules, told: Told) -> None:
    fields = line.fields
    if not fields or any(not name or value is None for name, value in fields):
        raise Bad("line_unreadable")
    given = [(name, value or b"") for name, value in fields]
    numbers = [each for each in given if _end_of_string_is_end(each[1]) is False]
    strings = len(given) - len(numbers)
    ts_us = 0
    try:
        measurement, tags, device = _key(line.key, rules)
        if numbers:
            ts_us = _time(line.rest, rules)
    except Bad as bad:
        if not numbers and bad.args[0] != "line_unreadable":
            told.strings += strings
            return
        raise
    told.strings += strings
    faults: list[tuple[str, bytes]] = []
    good = 0
    for name, value in numbers:
        try:
            number, rounded = _number(value)
            told.rounded += rounded
            field_name = _plain(name.decode(), rules.escaped(",= "))
            metric = metric_of(measurement, field_name, tags, rules.prefix)
            if len(name) > 1_024:
                raise Bad("name_too_long")
            _check_name(metric)
        except Bad as bad:
            faults.append((bad.args[0], name + b"=" + value))
        else:
            good += 1
            told.readings.append((ts_us, device, metric, number))
    if faults:
        original = line.text
        if good or strings:
            original = line.key + b" " + b",".join(each for _, each in faults)
            if line.rest:
                original += b" " + line.rest
        told.errors.append((line.number, faults[0][0], original))


def _end_of_string_is_end(value: bytes) -> bool:
    return value[:1] == b'"' and _end_of_string(value, 0) == len(value)


def _key(key: bytes, rules: Rules) -> tuple[str, dict[str, str], str]:
    if len(key) > 2_560:
        raise Bad("name_too_long")
    in_tag = rules.escaped(",= ")
    parts = _split(key.decode(), ",", in_tag)
    if not parts[0] or parts[0][0] == "#":
        raise Bad("line_unreadable")
    pairs: list[tuple[str, str]] = []
    for part in parts[1:]:
        pair = _split(part, "=", in_tag)
        if len(pair) != 2 or not all(pair):
            raise Bad("line_unreadable")
        pairs.append((_plain(pair[0], in_tag), _plain(pair[1], in_tag)))
    tags: dict[str, str] = {}
    for name, value in pairs:
        if name in tags:
            raise Bad("repeated_field")
        tags[name] = value
    device = rules.device
    for name in rules.device_tags:
        if name in tags:
            device = tags.pop(name)
            break
    if not device:
        raise Bad("no_device")
    _check_name(device)
    measurement = _plain(parts[0], rules.escaped(", "))
    if len(metric_of(measurement, "value", tags, rules.prefix)) > 256:
        raise Bad("name_too_long")
    return measurement, tags, device


def _split(text: str, mark: str, escaped: str) -> list[str]:
    parts = [""]
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in escaped:
            parts[-1] += text[at : at + 2]
            at += 2
        elif text[at] == mark:
            parts.append("")
            at += 1
        else:
            parts[-1] += text[at]
            at += 1
    return parts


def _plain(text: str, escaped: str) -> str:
    plain = ""
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] and text[at + 1] in escaped:
            at += 1
        plain += text[at]
        at += 1
    return plain


def _check_name(name: str) -> None:
    if len(name) > 256 or len(name.encode()) > 512:
        raise Bad("name_too_long")
    if any(unicodedata.category(each) == "Cc" for each in name):
        raise Bad("name_control_character")


def _time(rest: bytes, rules: Rules) -> int:
    if not rest:
        return rules.received_us
    unit = {b"n": "ns", b"t": "us", b"m": "ms"}.get(rest[-1:], rules.precision)
    if rest[-1:] in (b"n", b"t", b"m"):
        rest = rest[:-1]
    digits = rest[1:] if rest[:1] == b"-" else rest
    if not digits or not all(each in b"0123456789" for each in digits) or len(rest) > 40:
        raise Bad("ts_unreadable")
    number = int(rest)
    if number > 10**21:
        raise Bad("ts_in_future")
    if number < -(10**21):
        raise Bad("ts_too_old")
    if unit is None:
        sizes = {"s": 5 * 10**9, "ms": 5 * 10**12, "us": 5 * 10**15}
        unit = next((name for name, size in sizes.items() if abs(number) < size), "ns")
    ts_us = round(Fraction(number * UNITS_NS[unit], 1_000))
    if ts_us < rules.ts_min_us:
        raise Bad("ts_too_old")
    if ts_us > rules.ts_max_us:
        raise Bad("ts_in_future")
    return ts_us


def _number(value: bytes) -> tuple[float, bool]:
    """Return a value, and whether it was an integer that had to be rounded."""
    if len(value) > 400:
        raise Bad("wrong_type")
    text = value.decode("latin-1")
    if text in TRUE or text in FALSE:
        return float(text in TRUE), False
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned.lower() in ("nan", "inf", "infinity"):
        raise Bad("value_out_of_range")
    whole = text[:-1]
    digits = whole.removeprefix("-") if text[-1:] == "i" else whole
    if text[-1:] in ("i", "u") and digits and set(digits) <= set("0123456789"):
        exact = int(whole)
        bits = 63 if text[-1] == "i" else 64
        if not (-(2**63) if bits == 63 else 0) <= exact < 2**bits:
            raise Bad("value_out_of_range")
        number = float(exact)
        return number + 0.0, int(number) != exact
    if not _is_float(text):
        raise Bad("wrong_type")
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Bad("value_out_of_range")
    return number + 0.0, False


def _is_float(text: str) -> bool:
    at = 1 if text[:1] == "-" else 0
    before = at
    at = _digits(text, at)
    digits = at - before
    if text[at : at + 1] == ".":
        after = at + 1
        at = _digits(text, after)
        digits += at - after
    if not digits:
        return False
    if text[at : at + 1] in ("e", "E"):
        at += 1
        if text[at : at + 1] in ("+", "-"):
            at += 1
        if _digits(text, at) == at:
            return False
        at = _digits(text, at)
    return at == len(text)


def _digits(text: str, at: int) -> int:
    while at < len(text) and text[at] in "0123456789":
        at += 1
    return at


def metric_of(measurement: str, field_name: str, tags: dict[str, str], prefix: str = "") -> str:
    """Return the metric of a series."""
    metric = _marked(measurement, ".,=\\")
    if prefix:
        metric = _marked(prefix, ".,=\\") + "." + metric
    if field_name != "value":
        metric += "." + _marked(field_name, ".,=\\")
    for name in sorted(tags):
        metric += "," + _marked(name, ",=\\") + "=" + _marked(tags[name], ",=\\")
    return metric


def _marked(text: str, special: str) -> str:
    return "".join("\\" + each if each in special else each for each in text)


def read_back(metric: str) -> tuple[str, str, dict[str, str]]:
    """Return measurement, field and tags of a metric without a prefix."""
    head, *pairs = _split(metric, ",", ".,=\\")
    measurement, *field_name = _split(head, ".", ".,=\\")
    tags = {}
    for pair in pairs:
        name, value = _split(pair, "=", ",=\\")
        tags[_plain(name, ",=\\")] = _plain(value, ",=\\")
    plain = [_plain(each, ".,=\\") for each in (measurement, *field_name)]
    return plain[0], plain[1] if len(plain) == 2 else "value", tags
