"""A source: how the documents of one sender become readings, compiled from its table of keys.

A table may name one of PRESETS, the mappings for well-known senders; a key of the table replaces
that of the preset.
Promises: a wrong table raises KeyFault, which names the key and what to write instead.
Does not: read a document (rows.py), or the file with the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, tzinfo
from fnmatch import translate
from functools import lru_cache
from typing import Any, NamedTuple

from ingest.formats.mapped.paths import (
    MISSING,
    Read,
    Spot,
    compile_first,
    compile_path,
    compile_text,
    parts_of,
)
from ingest.model.errors import KeyFault

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RESERVED = ("readings", "line")  # what the scope of a token calls other pages
IN = "/v1/in/"
UNITS = ("s", "ms", "us", "ns", "utc")
ANY = "*"  # in `when`: something is there
KEYS = (
    *("name", "preset", "path", "rows", "device", "time", "time_unit", "values", "metric"),
    *("value", "tags", "except", "only", "numeric_strings", "lists", "when", "ignored_paths"),
    "zone",
)
_PATH = re.compile(r"/[\w.~:@!$&'()*+,;=%/{}-]*", re.ASCII)
_HOLE = re.compile(r"\{(\w+)\}")
_HOLES = re.compile(r"\{([^{}]+)\}")
_FOR_READING = ("rows", "device", "time", "values", "metric", "value", "tags", "when")
_KEPT_MAX = 4_096  # names that `wants` has judged


class Members(NamedTuple):
    """Where several rows or entries are: `each` of a "list", or of an "object"."""

    read: Read
    each: str
    parts: tuple[str, ...] | None  # the names from the document, None if it is no plain path

    def within(self, at: Any) -> Iterator[tuple[Any, Any]]:
        """Yield key and content of the rows or entries at a place; none if it is another kind."""
        if self.each == "list" and type(at) is list:
            yield from enumerate(at)
        elif self.each == "object" and type(at) is dict:
            yield from at.items()


class Source(NamedTuple):
    """A compiled table. Where a field is None, the table has no such key.

    `paths` are the templates of its own pages, `ignored_paths` of those that are answered and not
    read. `values` are tried in order. `tags` is the path of an object, `tags_left_out` names of it.
    `nests` are the kinds of what has values below it. `own_names` are members of the values that
    name the device or the time. `headers` are the headers that its paths name, `reads_query`
    whether its values or rows are of the query.
    """

    name: str
    preset: str
    paths: tuple[str, ...]
    ignored_paths: tuple[str, ...]
    rows: Members | None
    device: Read
    time: Read | None
    unit: str | None
    zone: tzinfo | None
    values: tuple[Members | Read, ...]
    metric: Read | None
    value: Read | None
    tags: Read | None
    tags_left_out: frozenset[str]
    own_names: frozenset[str]
    wants: Callable[[str], bool] | None
    numeric_strings: bool
    nests: tuple[type, ...]
    when: tuple[tuple[Read, tuple[Any, ...] | None], ...]
    headers: tuple[str, ...]
    reads_query: bool


def compile_source(table: Mapping[str, Any]) -> Source:
    """Compile one table. Raises KeyFault."""
    return _Table(table).compiled()


def template_pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a page's path; each `{name}` is a group, and has no `/`."""
    text = "".join(
        f"(?P<{piece}>[^/]+)" if at % 2 else re.escape(piece)
        for at, piece in enumerate(_HOLE.split(path))
    )
    return re.compile(text)


class _Table:
    def __init__(self, table: Mapping[str, Any]) -> None:
        preset = table.get("preset", "")
        if not isinstance(preset, str) or (preset and preset not in PRESETS):
            raise KeyFault("preset", f"there is no {preset!r}; there are {', '.join(PRESETS)}")
        for key in table:
            if key not in KEYS:
                raise KeyFault(key, f"there is no such key; there are {', '.join(KEYS)}")
        self._preset = preset
        base = PRESETS.get(preset, {})
        self._keys = {"name": preset, **base, **table}

    def compiled(self) -> Source:
        paths, ignored = self._page_paths("path"), self._page_paths("ignored_paths")
        devices = self._texts("device") or self._default_device(paths)
        has_value = "value" in self._keys
        if has_value and not ("metric" in self._keys and "values" in self._keys):
            raise KeyFault("value", "it needs `values` (where the entries are) and `metric`")
        unit = self._unit()
        tags, value_paths = self._texts("tags"), self._texts("values") or ["."]
        return Source(
            name=self._name(),
            preset=self._preset,
            paths=paths,
            ignored_paths=ignored,
            rows=self._rows(),
            device=self._compiled("device", devices, compile_text),
            time=self._read("time", compile_text),
            unit=None if unit == "utc" else unit,
            zone=self._zone() if "zone" in self._keys else UTC if unit == "utc" else None,
            values=tuple(self._values(text, has_value) for text in value_paths),
            metric=self._read("metric", compile_text),
            value=self._read("value", compile_text),
            tags=self._read("tags", compile_path),
            tags_left_out=_names_below(tags, devices),
            own_names=_names_below(value_paths, [*devices, *self._texts("time")]),
            wants=self._wants(),
            numeric_strings=self._flag("numeric_strings"),
            nests=(dict, list) if self._flag("lists") else (dict,),
            when=self._when(),
            headers=tuple(sorted(self._headers())),
            reads_query=any(
                text.startswith(("$query", "$form"))
                for text in (*value_paths, self._keys.get("rows", ""))
            ),
        )

    def _name(self) -> str:
        name = self._keys.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise KeyFault("name", "write letters, digits, `-`, `_` and points, at most 64")
        if name in RESERVED:
            raise KeyFault("name", f"{name!r} is what tokens call another page; take another")
        return name

    def _texts(self, key: str) -> list[str]:
        """Return the texts of a key that has one or a list of them."""
        given = self._keys.get(key, [])
        texts = [given] if isinstance(given, str) else given
        is_right = isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)
        if not is_right or (key in self._keys and not texts):
            raise KeyFault(key, "write a text, or a list of texts that are not empty")
        return list(texts)

    def _compiled(self, key: str, texts: Sequence[str], one: Callable[[str], Read]) -> Read:
        try:
            return compile_first(texts, one)
        except ValueError as error:
            raise KeyFault(key, str(error)) from None

    def _read(self, key: str, one: Callable[[str], Read]) -> Read | None:
        return self._compiled(key, self._texts(key), one) if key in self._keys else None

    def _default_device(self, paths: Sequence[str]) -> list[str]:
        """Return where a device is if no key says it: in the path, or with the token."""
        in_path = any("{device}" in each for each in paths)
        return ["$path.device", "$token.device"] if in_path else ["$token.device"]

    def _page_paths(self, key: str) -> tuple[str, ...]:
        paths = self._texts(key)
        for path in paths:
            names = _HOLE.findall(path)
            if not _PATH.fullmatch(path) or _HOLE.sub("", path).strip("/") == "":
                raise KeyFault(key, f"{path!r} is no path: write it as in /my/{{device}}/data")
            if "{" in _HOLE.sub("", path) or "}" in _HOLE.sub("", path):
                raise KeyFault(key, f"{path!r} has a brace without its partner")
            if len(set(names)) < len(names) or any(name[0].isdigit() for name in names):
                raise KeyFault(key, f"{path!r} has a name twice, or one that is a number")
        return tuple(paths)

    def _rows(self) -> Members | None:
        if "rows" not in self._keys:
            return None
        text = self._keys["rows"]
        if not isinstance(text, str) or text[-2:] not in ("[]", "{}"):
            raise KeyFault("rows", "write a path that ends in [] (a list) or {} (an object)")
        return self._each("rows", text)

    def _each(self, key: str, text: str) -> Members:
        path = text[:-2]
        each = "list" if text.endswith("[]") else "object"
        try:
            read = compile_path(path or ".")
            plain = path[:1] not in ("^", "$", ".")
            parts = tuple(parts_of(path, path)) if path and plain else () if not path else None
        except ValueError as error:
            raise KeyFault(key, str(error)) from None
        return Members(read, each, parts)

    def _values(self, text: str, has_value: bool) -> Members | Read:
        if text[-2:] not in ("[]", "{}"):
            return self._compiled("values", [text], compile_path)
        if not has_value:
            raise KeyFault("values", f"{text!r} names entries: it needs `metric` and `value`")
        return self._each("values", text)

    def _unit(self) -> str | None:
        unit = self._keys.get("time_unit")
        if unit is not None and unit not in UNITS:
            raise KeyFault("time_unit", f"{unit!r:.80} is none of {', '.join(UNITS)}")
        for key in ("time_unit", "zone"):
            if key in self._keys and "time" not in self._keys:
                raise KeyFault(key, "it needs `time`, the path of the time")
        return unit

    def _zone(self) -> tzinfo:
        """Return the zone of times without an offset."""
        import zoneinfo  # noqa: PLC0415  it would add 4 ms to each start

        try:
            return zoneinfo.ZoneInfo(self._keys["zone"])
        except (TypeError, ValueError, LookupError, OSError):
            raise KeyFault(
                "zone",
                f"this machine knows no time zone {self._keys['zone']!r:.80}: write one like "
                "Europe/Berlin, or install tzdata",
            ) from None

    def _wants(self) -> Callable[[str], bool] | None:
        """Return what tells whether a metric is stored, by globs, and remembers it."""
        only, but = self._texts("only"), self._texts("except")
        is_in, is_out = _any_of(only or ["*"]), _any_of(but)

        def wants(metric: str) -> bool:
            return is_in(metric) is not None and not (but and is_out(metric))

        return lru_cache(maxsize=_KEPT_MAX)(wants) if only or but else None

    def _flag(self, key: str) -> bool:
        flag = self._keys.get(key, False)
        if not isinstance(flag, bool):
            raise KeyFault(key, "write true or false")
        return flag

    def _when(self) -> tuple[tuple[Read, tuple[Any, ...] | None], ...]:
        given = self._keys.get("when", {})
        if not isinstance(given, Mapping):
            raise KeyFault("when", 'write { path = "value" }, or a list of values')
        return tuple(self._condition(path, values) for path, values in given.items())

    def _condition(self, path: str, values: Any) -> tuple[Read, tuple[Any, ...] | None]:
        read = self._compiled("when", [path], compile_path)
        if values == ANY:
            return read, None
        listed = values if isinstance(values, list) else [values]
        if not listed or not all(isinstance(each, str | int | float) for each in listed):
            raise KeyFault("when", f"the values of {path!r} are texts, numbers, true or false")
        return read, tuple(listed)

    def _all_texts(self) -> list[str]:
        texts: list[str] = []
        for key in _FOR_READING:
            given = self._keys.get(key, [])
            texts += [given] if isinstance(given, str) else [t for t in given if isinstance(t, str)]
        return texts

    def _headers(self) -> set[str]:
        found = (re.findall(r"\$header\.([\w-]+)", text) for text in self._all_texts())
        return {name.lower() for names in found for name in names}


def holds(source: Source, row: Any, place: Spot) -> bool:
    """Whether a row is one that `when` asks for."""
    for read, values in source.when:
        found = read(row, place)
        if found is MISSING:
            return False
        if values is not None and not any(_is_equal(found, each) for each in values):
            return False
    return True


def _is_equal(found: Any, wanted: Any) -> bool:
    """Whether both are equal; `true` is not 1, and a number in a text is equal to the number."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        text = str(wanted).lower() if isinstance(wanted, bool) else None
        return found is wanted or (isinstance(found, str) and found == text)
    if isinstance(found, str) and not isinstance(wanted, str):
        return found == str(wanted)
    return bool(found == wanted)


def _names_below(tops: Sequence[str], texts: Sequence[str]) -> frozenset[str]:
    """Return the names, from one of `tops`, of what these texts read."""
    holes = [path for text in texts for path in (_HOLES.findall(text) or [text])]
    paths = [".".join(parts_of(path, path)) for path in holes if path[0] not in ".^$="]
    return frozenset(
        path if top == "." else path[len(top) + 1 :]
        for top in tops
        for path in paths
        if top == "." or path.startswith(f"{top}.")
    )


def _any_of(globs: Sequence[str]) -> Callable[[str], object]:
    return re.compile("|".join(translate(each) for each in globs)).match


# The body of each was read in the sender's own code; tests/unit/formats/mapped/test_presets.py has
# one of each.
PRESETS: dict[str, dict[str, Any]] = {
    # The Things Stack, webhook. Joins and acknowledgements have no uplink_message. The name of a
    # device is its own only within an application.
    "ttn": {
        "when": {"uplink_message": "*"},
        "device": "{end_device_ids.application_ids.application_id}/{end_device_ids.device_id}",
        "time": ["uplink_message.received_at", "received_at"],
        "values": "uplink_message.decoded_payload",
    },
    # ChirpStack 4, by HTTP or MQTT: of all events only an uplink has `rxInfo`.
    "chirpstack": {
        "when": {"rxInfo": ANY},
        "device": "deviceInfo.devEui",
        "time": "time",
        "values": "object",
    },
    # Devices of ThingsBoard; ChirpStack's ThingsBoard integration posts attributes first.
    "thingsboard": {
        "path": "/api/v1/{token}/telemetry",
        "ignored_paths": ["/api/v1/{token}/attributes"],
        "device": "$token.device",
        "time": "ts",
        "time_unit": "ms",
        "values": ["values", "."],
        "except": ["ts"],
        "numeric_strings": True,
    },
    # Sensor.Community airRohr, its own API.
    "airrohr": {
        "device": "airrohr-{esp8266id}",
        "values": "sensordatavalues[]",
        "metric": "value_type",
        "value": "value",
        "numeric_strings": True,
    },
    # AirGradient, with its server set to ours.
    "airgradient": {
        "path": "/sensors/airgradient:{device}/measures",
        "device": "$path.device",
        "values": ".",
        "except": ["boot*"],
    },
    # Ruuvi Gateway, "decoded".
    "ruuvi": {
        "rows": "data.tags{}",
        "device": "$key",
        "time": ["timestamp", "^data.timestamp"],
        "time_unit": "s",
        "values": ".",
        "except": ["timestamp", "ble_*"],
    },
    # Ecowitt and its clones: a form, with times in UTC.
    "ecowitt": {
        "device": "PASSKEY",
        "time": "dateutc",
        "time_unit": "utc",
        "values": ".",
        "except": ["PASSKEY", "runtime", "dateutc"],
        "numeric_strings": True,
    },
    # Telegraf, outputs.http with data_format = "json".
    "telegraf_json": {
        "rows": "metrics[]",
        "device": "tags.host",
        "time": "timestamp",
        "values": "fields",
        "metric": "{name}.{$key}",
        "tags": "tags",
    },
    # Vector, http sink, logs and other events with a host.
    "vector": {"device": "host", "time": "timestamp", "values": "."},
    # Fluent Bit, http output, format json or json_lines.
    "fluentbit": {
        "device": ["host", "hostname"],
        "time": "date",
        "values": ".",
        "except": ["date"],
    },
}
