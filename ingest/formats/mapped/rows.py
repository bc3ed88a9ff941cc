"""One document of a mapped post: its rows to readings, and the faults of the others.

Promises: a step is short, whatever the document has; nothing that it has raises an exception. A
fault of a row's device or time costs the row, one of a value the value. Two values of a row that
would have one metric are both a fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator, Mapping
from datetime import datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from ingest.formats.block_builder import SERIES
from ingest.formats.line_escapes import tags_text
from ingest.formats.mapped.paths import MISSING, Read, Spot, as_text
from ingest.formats.mapped.source import Members, Source, holds
from ingest.formats.post import EXACT_MAX, Post, too_many_of_post
from ingest.formats.timestamp import Fault, number_us, text_us
from ingest.model.codes import NO_DEVICE, NOT_ALLOWED
from ingest.model.errors import Refused
from ingest.model.reading import NAME_CHARACTERS_MAX, name_fault

STEP_PARTS = 300  # members of objects, or values, that are read in one step
FAULTS_MAX = 10  # of a document that are told
NO_VALUE = "no_value"
NOTHING_NAMES_IT = (
    "nothing names a device: `device` of the source names a place that the post does not have, "
    "and the token has no device"
)
_NUMBER_CHARACTERS_MAX = 400
_TIME_CHARACTERS_MAX = 200
HINTS_MAX = 10  # names of a post
FIELD_CHARACTERS_MAX = 80
_TIMES = frozenset(
    {"ts", "time", "timestamp", "datetime", "date", "epoch", "when", "at", "created_at", "utc"}
)
_NO_NUMBERS = frozenset({"", "nan", "inf", "-inf", "null", "none"})  # what a failed sensor sends

_NUMBER = re.compile(
    r"\s*([+-]?)(?:([0-9]+)|(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?)\s*"
)
_UNIX = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?")

RowFault = tuple[str | None, str, str]  # field, code, message


class RowRead(NamedTuple):
    """The readings of one row: they have one time and one device."""

    ts_us: int
    names: list[bytes]
    values: list[float]


class DocumentRead:
    """What has been read of a document. `bad_rows` are the keys of its rows that have a fault."""

    def __init__(self) -> None:
        self.rows: list[RowRead] = []
        self.readings = 0
        self.faults: list[RowFault] = []
        self.fault_count = 0
        self.bad_rows: list[Any] = []
        self.row_count = 0
        self.ignored = 0  # rows that `when` leaves out
        self.rounded = 0
        self.parts = 0  # members and entries that were read
        self.left_out = False  # a value was not stored because of `only` or `except`
        self.has_device = True

    def fault(self, field: str | None, code: str, message: str) -> None:
        """Note a fault."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append((field, code, message))


class DocumentReader:
    """Reads a document; what it has is in `found`.

    It was received at `received_us`, perhaps before its post. `parts_max` members and entries are
    read for all rows together. `hints` are those of its post; None: enough of it was looked at.
    """

    def __init__(
        self,
        document: Any,
        source: Source,
        roots: Mapping[str, Any],
        post: Post,
        *,
        received_us: int,
        readings_max: int,
        parts_max: int,
        hints: Hints | None,
    ) -> None:
        self._received_us, self._hints = received_us, hints
        self._readings_max, self._parts_max = readings_max, parts_max
        self.found = DocumentRead()
        self._document = document
        self._source = source
        self._post = post
        self._place = Spot(document, roots)
        self._tags: Any = None  # of the row before, and what follows its metrics
        self._tags_text = ""

    def read(self) -> Generator[None, None, None]:
        """Read all rows; each step reads some of them.

        Raises Refused (`too_many_readings`): several rows may share the same values, which are read
        for each of them.
        """
        found = self.found
        for key, row in self._rows():
            found.row_count += 1
            if not found.row_count % STEP_PARTS:
                yield
            self._place.key = key if isinstance(key, str) else ""
            if not holds(self._source, row, self._place):
                found.ignored += 1
                continue
            before = found.fault_count
            yield from self._read_row(row)
            if found.parts > self._parts_max:  # one row alone has fewer than its document has bytes
                raise Refused(
                    "too_many_readings",
                    "its rows share values, which are read for each row: for all rows together "
                    "these are too many; split the document",
                )
            if found.fault_count > before:
                found.bad_rows.append(key)
        if not found.readings and not found.fault_count and not self._is_meant():
            if found.has_device:
                found.fault(None, NO_VALUE, "there is no number at the place of the values")
            else:
                found.fault("device", NO_DEVICE, NOTHING_NAMES_IT)

    def _is_meant(self) -> bool:
        """Whether the table says that nothing of the document is to be stored."""
        return self.found.left_out or 0 < self.found.ignored == self.found.row_count

    def _rows(self) -> Iterator[tuple[Any, Any]]:
        rows = self._source.rows
        if rows is None:
            yield "", self._document
        else:
            yield from rows.within(rows.read(self._document, self._place))

    def _read_row(self, row: Any) -> Generator[None, None, None]:
        found, post = self.found, self._post
        key = self._place.key
        device = self._device(row)
        values: dict[str, float] = {}
        repeated: set[str] = set()
        for metric, value, label in self._labelled(row):
            found.parts += 1
            if not found.parts % STEP_PARTS:
                yield
            if metric is None:
                continue  # only a part of the work
            number = self._number(value, label)
            if number is None:
                continue
            if metric in values:
                repeated.add(metric)
            values[metric] = number
        self._place.key = key
        for metric in repeated:
            del values[metric]
            found.fault(shown(metric), "repeated_field", "two values have this metric")
        if not values:
            found.has_device = found.has_device and bool(device)
            return
        if not device:
            found.fault("device", NO_DEVICE, NOTHING_NAMES_IT)
            return
        fault = name_fault(device)
        if fault is not None:
            found.fault("device", fault[0], f"the device {fault[1]}")
            return
        if post.allows is not None and not post.allows(device):
            found.fault("device", NOT_ALLOWED, "the token may not speak for this device")
            return
        ts_us = self._ts_us(row)
        if ts_us is None:
            return
        yield from self._name(values, device, self._tail(row), ts_us)

    def _name(
        self, values: dict[str, float], device: str, tail: str, ts_us: int
    ) -> Generator[None, None, None]:
        """Add the readings of a row; a metric may be no valid name."""
        names: list[bytes] = []
        numbers: list[float] = []
        for metric, number in values.items():
            self.found.parts += 1
            if not self.found.parts % STEP_PARTS:
                yield
            try:
                names.append(SERIES.names(metric + tail, device))
            except KeyError:
                code, message = name_fault(metric + tail) or ("name_empty", "is invalid")
                self.found.fault(shown(metric), code, f"the metric {message}")
            else:
                numbers.append(number)
        if names:
            self.found.rows.append(RowRead(ts_us, names, numbers))
            self.found.readings += len(names)
        if self.found.readings > self._readings_max:
            raise too_many_of_post(self._readings_max)

    def _device(self, row: Any) -> str:
        device = as_text(self._source.device(row, self._place))
        if device:
            return device
        token = self._place.roots.get("token")
        return as_text(token.get("device", "")) if isinstance(token, dict) else ""

    def _tail(self, row: Any) -> str:
        """Return the tags of a row, as they follow its metrics."""
        source = self._source
        tags = source.tags(row, self._place) if source.tags is not None else None
        if type(tags) is not dict:
            return ""
        if tags is self._tags:  # they may be many, and of all rows
            return self._tags_text
        texts: dict[str, str] = {}
        size = 0
        for name, value in tags.items():
            if name not in source.tags_left_out and len(name) <= NAME_CHARACTERS_MAX:
                text = as_text(value)[: NAME_CHARACTERS_MAX + 1]
                if text:
                    texts[name] = text
                    size += len(name) + len(text) + 2
            if size > NAME_CHARACTERS_MAX:
                break  # with these the metric is too long already
        self._tags, self._tags_text = tags, tags_text(texts)
        return self._tags_text

    # Values

    def _labelled(self, row: Any) -> Iterator[tuple[str | None, Any, str]]:
        """Yield (metric, value, its name in the document); without a metric it is only work."""
        source, place = self._source, self._place
        for values in source.values:
            at = (values.read if isinstance(values, Members) else values)(row, place)
            if at is MISSING:
                continue
            if source.value is not None and source.metric is not None:
                entries = values.within(at) if isinstance(values, Members) else iter([("", at)])
                yield from self._entries(entries, source.metric, source.value)
                return
            if type(at) in source.nests:
                yield from self._leaves(at, row)
                return

    def _entries(
        self, entries: Iterator[tuple[Any, Any]], metric: Read, value: Read
    ) -> Iterator[tuple[str | None, Any, str]]:
        place = self._place
        key = place.key
        for name, entry in entries:
            place.key = name if isinstance(name, str) and name else key
            text = as_text(metric(entry, place))
            found = value(entry, place)
            if found is MISSING or not self._is_number(found):
                if type(found) is str and self._hints is not None:
                    self._hints.look("", text, found)
                yield None, None, ""
            elif not text:
                self.found.fault("metric", "name_empty", "an entry has a value and no metric")
                yield None, None, ""
            else:
                yield self._wanted(text), found, text

    def _leaves(self, top: Any, row: Any) -> Iterator[tuple[str | None, Any, str]]:
        source, place = self._source, self._place
        stack, nests, hints = [("", top)], source.nests, self._hints
        while stack:
            prefix, members = stack.pop()
            pairs = members.items() if type(members) is dict else enumerate(members)
            for name, value in pairs:
                label = f"{prefix}{name}"
                if hints is not None:
                    hints.look(name, label, value)
                if type(value) in nests:
                    if len(label) <= NAME_CHARACTERS_MAX:
                        stack.append((f"{label}.", value))
                    else:
                        self.found.fault(shown(label), "name_too_long", "the metric is too long")
                elif self._is_number(value) and label not in source.own_names:
                    metric = label
                    if source.metric is not None:
                        place.key = label
                        metric = as_text(source.metric(row, place))
                        if not metric:
                            self.found.fault(shown(label), "name_empty", "its metric is empty")
                            yield None, None, ""
                            continue
                    yield self._wanted(metric), value, label
                    continue
                yield None, None, ""

    def _wanted(self, metric: str) -> str | None:
        """Return a metric that is stored, else None."""
        if len(metric) > NAME_CHARACTERS_MAX:
            self.found.fault(shown(metric), "name_too_long", "the metric is too long")
            return None
        wants = self._source.wants
        if wants is None or wants(metric):
            return metric
        self.found.left_out = True
        return None

    def _is_number(self, value: Any) -> bool:
        """Whether this is a value: other texts, lists and null are none, and are skipped."""
        kind = type(value)
        if kind is str:
            return self._source.numeric_strings and number_in(value) is not None
        return kind is float or kind is int or kind is bool

    def _number(self, value: Any, label: str) -> float | None:
        """Return the value as a float64; None after a fault."""
        number, is_exact = float_of(value)
        if math.isinf(number):
            code = "value_out_of_range"
            self.found.fault(shown(label), code, "the number does not fit into a float64")
            return None
        self.found.rounded += not is_exact
        return number

    # Time

    def _ts_us(self, row: Any) -> int | None:
        """Return the time of a row; None after a fault."""
        post, read = self._post, self._source.time
        value = MISSING if read is None else read(row, self._place)
        ts_us: int | tuple[str, str]
        if value is MISSING or value in ("", "now"):
            ts_us = self._received_us
        else:
            ts_us = time_us(value, self._source.unit, self._source.zone)
        if not isinstance(ts_us, int):
            code, message = ts_us
        elif fault := post.ts_fault(ts_us):
            code, message = fault[0], f"the time {fault[1]}"
        else:
            return ts_us
        self.found.fault("time", code, message)
        return None


class Hints:
    """What the author of a table may have missed: names of a post, and how often they came.

    Promises: few are kept, whatever a post has.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._found: dict[tuple[str, str], int] = {}

    def look(self, name: str | int, label: str, value: Any) -> None:
        """Look at a value: `name` is the last part of `label`, or a place in a list."""
        source = self._source
        if source.time is None and (
            str(name).lower() in _TIMES
            # or it is the Unix time of a day from 2020 to 2036, in seconds or milliseconds
            or (type(value) in (int, float) and (1.6e9 < value < 2.1e9 or 1.6e12 < value < 2.1e12))
        ):
            hint = "`{0}` looks like a time, and the source has none: time = '{0}'"
        elif type(value) is str and not source.numeric_strings and number_in(value) is not None:
            hint = "`{}` is a number in quotes, not stored: numeric_strings = true"
        elif (
            type(value) is list and list not in source.nests and value and type(value[0]) is not str
        ):
            hint = "`{}` is a list, not stored: lists = true"
        elif value is None or (type(value) is str and value[:10].strip().lower() in _NO_NUMBERS):
            hint = "`{}` is a text or null, no number: not stored"
        else:
            return
        key, wants = (label[:NAME_CHARACTERS_MAX], hint), source.wants
        is_meant = label in source.own_names or (wants is not None and not wants(key[0]))
        if not is_meant and (key in self._found or len(self._found) < HINTS_MAX):
            self._found[key] = self._found.get(key, 0) + 1

    def told(self) -> list[str]:
        """Return a sentence for each name."""
        return [f"{hint.format(shown(name))} ({n} x)" for (name, hint), n in self._found.items()]


def shown(name: str) -> str:
    """Return a name as a text for people: cut off, and with bytes for all of it."""
    cut = name if len(name) <= FIELD_CHARACTERS_MAX else name[:FIELD_CHARACTERS_MAX] + ".."
    return cut.encode("utf-8", "replace").decode()  # half of a surrogate pair has no bytes


def number_in(text: str) -> int | float | None:
    """Return the number that a text is; None if it is none. It may be infinite."""
    found = _NUMBER.fullmatch(text) if len(text) <= _NUMBER_CHARACTERS_MAX else None
    if found is None:
        return None
    return int(found[1] + found[2]) if found[2] else float(text)


def float_of(value: Any) -> tuple[float, bool]:
    """Return a number, a boolean or a numeric text as a float64, and whether an integer is exact.

    It is infinite if it does not fit.
    """
    if type(value) is str:
        value = number_in(value)
    try:
        number = float(value)
    except OverflowError:
        return math.inf, True
    is_exact = type(value) is not int or abs(number) < EXACT_MAX or int(number) == value
    return number + 0.0, is_exact  # -0.0 becomes 0.0


def time_us(value: Any, unit: str | None, zone: tzinfo | None) -> int | Fault:
    """Return a time as Unix microseconds.

    `unit` is that of numbers; None: by magnitude. `zone` is that of a text without an offset. A
    local time that comes twice, at the end of summer time, is the first of both: so a text always
    is the same time, whenever it is sent.
    """
    if type(value) is str:
        if len(value) > _TIME_CHARACTERS_MAX:
            return "ts_unreadable", "the time is no number, and no RFC 3339 time"
        text = value.strip()
        if not _UNIX.fullmatch(text):
            ts_us = text_us(text)
            if zone is None or isinstance(ts_us, int) or ts_us[0] != "ts_without_offset":
                return ts_us
            ts_us = text_us(f"{text}Z")
            if isinstance(ts_us, int):
                offset = zone.utcoffset(datetime.fromisoformat(text[:16])) or timedelta()
                ts_us -= offset // timedelta(microseconds=1)
            return ts_us
        value = float(text) if "." in text else int(text)
    if type(value) is not int and type(value) is not float:
        return "ts_unreadable", "the time is neither a number nor a text"
    return number_us(value, unit)
