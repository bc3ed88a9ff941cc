r"""From the key of a line of line protocol to the names of its readings.

`cpu,cpu=cpu0,host=h idle=1` is a reading of the device `h` and the metric `cpu.idle,cpu=cpu0`. The
device is the first tag of a list that the line has, else a default. The metric is the
measurement, a point and the field (no field if its name is `value`). The other tags follow, sorted,
each as `,tag=value`. A name is written with `\` before `,`, `=` and `\`, in measurement and field
also before `.`. So a metric can be read back, and two series never have the same one.
The names of a series are made once and kept by the bytes of the key and the field, as they were
posted. All of them are in SERIES too.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ingest.formats.line_escapes import ESCAPED_EQUALS, INFLUXDB, MARK_BYTE, name_of
from ingest.formats.series import SERIES, Names, SeriesCache
from ingest.model.codes import NO_DEVICE
from ingest.model.reading import NAME_BYTES_MAX, NAME_CHARACTERS_MAX, name_fault

VALUE = "value"  # a field of this name is not in the metric
KEPT_BYTES_MAX = 16 * 1024 * 1024  # of all keys and names that are kept
FIELD_BYTES_MAX = 2 * NAME_BYTES_MAX  # of a name in which each character may be escaped
KEY_BYTES_MAX = 2 * FIELD_BYTES_MAX + 512  # a device, a metric, and the tag of the device
NEW_BYTES_MAX = 16 * 1024  # of keys and names that one step may make: 0.5 ms
NEW_BYTES = 64  # so many count for each of them, besides its own
UNREADABLE = "line_unreadable"
_ENTRY_BYTES = 200  # of a key or a name in its dict, besides the bytes

_SPECIAL_IN_TAG = "\\,="  # the backslash comes first: the others put in some of their own
_SPECIAL = _SPECIAL_IN_TAG + "."
_ANY_SPECIAL = re.compile(r"[\\,=.]")
_KEY = re.compile(rb"([^,#][^,]*+)((?:,[^,=]++=[^,=]++)*)")  # measurement and tags

Fault = tuple[str, str]  # a key of codes.ITEM_CODES, and a message


class Naming(NamedTuple):
    """How keys become names. `prefix` is put in front of each metric, with a point."""

    device_tags: tuple[str, ...]
    device: str = ""  # of a line that has none of these tags
    prefix: str = ""
    escapes: str = INFLUXDB  # whose, see line_escapes.py


class Key(NamedTuple):
    """The device of a key, and the parts of its metrics before and after the field."""

    device_id: str
    head: str
    tail: str

    def metric(self, field: str) -> str:
        """Return the metric of a field."""
        if field == VALUE:
            return self.head + self.tail
        return f"{self.head}.{_escaped(field, _SPECIAL)}{self.tail}"


def read_key(text: bytes, naming: Naming) -> Key | Fault:
    """Read measurement and tags, marked, without the space that ends them.

    Raises UnicodeDecodeError.
    """
    if len(text) > KEY_BYTES_MAX:
        return "name_too_long", f"measurement and tags have more than {KEY_BYTES_MAX} bytes"
    key = _KEY.fullmatch(text)
    if key is None:
        return (
            UNREADABLE,
            "the measurement is missing, or a tag has no name, no value or not one `=",
        )
    read = name_of if MARK_BYTE in text else bytes.decode
    names = [*map(read, key[2].replace(b"=", b",").split(b",")[1:])]
    tags = dict(zip(names[::2], names[1::2], strict=True))
    if 2 * len(tags) < len(names):
        return "repeated_field", "the line has a tag twice"
    return _named(read(key[1].replace(ESCAPED_EQUALS, b"\\=")), tags, naming)


def _named(measurement: str, tags: dict[str, str], naming: Naming) -> Key | Fault:
    named = next((name for name in naming.device_tags if name in tags), None)
    device_id = naming.device if named is None else tags.pop(named)
    if not device_id:
        return NO_DEVICE, "the line has none of the tags that name a device"
    fault = name_fault(device_id)
    if fault is not None:
        return fault[0], f"the device {fault[1]}"
    head = _escaped(measurement, _SPECIAL)
    if naming.prefix:
        head = f"{_escaped(naming.prefix, _SPECIAL)}.{head}"
    tail = tags_text(tags)
    if len(head) + len(tail) > NAME_CHARACTERS_MAX:
        return "name_too_long", f"the metric has more than {NAME_CHARACTERS_MAX} characters"
    return Key(device_id, head, tail)


def tags_text(tags: dict[str, str]) -> str:
    """Return tags as they stand behind a metric."""
    return "".join(
        f",{_escaped(name, _SPECIAL_IN_TAG)}={_escaped(value, _SPECIAL_IN_TAG)}"
        for name, value in sorted(tags.items())
    )


def _escaped(name: str, special: str) -> str:
    if _ANY_SPECIAL.search(name):
        for each in special:
            name = name.replace(each, "\\" + each)
    return name


class Fields(dict[bytes, bytes]):
    """The names of one key's readings, by field, as `names_between` writes them.

    A field that it does not know yet is read; that raises KeyError if the metric is invalid, or if
    enough names were made in this step, and UnicodeDecodeError.
    """

    def __init__(self, key: Key, keys: Keys) -> None:
        super().__init__()
        self.key = key
        self._keys = keys

    def __missing__(self, field: bytes) -> bytes:
        if not 0 < len(field) <= FIELD_BYTES_MAX:
            raise KeyError(field)
        self._keys.make_one(field)
        names = SERIES.names(self.key.metric(name_of(field)), self.key.device_id)
        self[field] = names
        self._keys.keep(len(field) + len(names))
        return names


class Keys(dict[bytes, Fields]):
    """The keys that were read with one naming, by their marked bytes.

    Invalid ones raise KeyError or UnicodeDecodeError.
    """

    def __init__(self, naming: Naming, kept: KeptKeys) -> None:
        super().__init__()
        self.naming = naming
        self.new_bytes_left = 0  # of keys and names that may still be made in this step
        self._kept = kept

    def make_one(self, text: bytes) -> None:
        """Count a key or a name that is made. Raises KeyError if it is one too many."""
        self.new_bytes_left -= NEW_BYTES + len(text)
        if self.new_bytes_left < 0:
            raise KeyError(text)

    def keep(self, size_bytes: int) -> None:
        """Count the bytes of a key or a name that was made."""
        self._kept.size_bytes += size_bytes + _ENTRY_BYTES

    def __missing__(self, text: bytes) -> Fields:
        self.make_one(text)
        key = read_key(text, self.naming)
        if not isinstance(key, Key):
            raise KeyError(text)
        return self.add(text, key)

    def add(self, text: bytes, key: Key) -> Fields:
        """Keep a key that was read."""
        fields = self[text] = Fields(key, self)
        self.keep(len(text) + len(key.head) + len(key.tail) + 4 * _ENTRY_BYTES)
        return fields


class KeptKeys:
    """All keys that are kept, by their naming. They are dropped whenever SERIES begins anew.

    So a series that is posted is always one that SERIES has met.
    """

    def __init__(self, series: SeriesCache) -> None:
        self.size_bytes = 0
        self._series = series
        self._known: Names = series.known
        self._by_naming: dict[Naming, Keys] = {}

    def of(self, naming: Naming) -> Keys:
        """Return the keys of a naming, for one step."""
        if self._known is not self._series.known or self.size_bytes > KEPT_BYTES_MAX:
            self._known = self._series.known
            for each in self._by_naming.values():
                each.clear()  # so that no cycle keeps it alive
            self._by_naming.clear()
            self.size_bytes = 0
        keys = self._by_naming.get(naming)
        if keys is None:
            keys = self._by_naming[naming] = Keys(naming, self)
            keys.keep(4 * _ENTRY_BYTES)
        keys.new_bytes_left = NEW_BYTES_MAX
        return keys


KEPT_KEYS = KeptKeys(SERIES)
