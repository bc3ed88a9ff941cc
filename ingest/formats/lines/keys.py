r"""From the key of a line of line protocol to the names of its readings.

`cpu,cpu=cpu0,host=h idle=1` is a reading of the device `h` and the metric `cpu.idle,cpu=cpu0`. The
device is the first tag of a list that the line has, else a default. The metric is the
measurement, a point and the field (no field if its name is `value`). The other tags follow, sorted,
each as `,tag=value`. A name is written with `\` before `,`, `=` and `\`, in measurement and field
also before `.`. So a metric can be read back, and two series never have the same one.
Nothing is kept for each series: the names of a reading are what the device of its key gives, and
then what the field gives to the shape of its key. Keys with the same parts around the device have
the same shape. A fleet has few shapes. Some keys are kept: to find one is faster than to cut it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ingest.formats.block_builder import SERIES, SeriesCache, valid_needles
from ingest.formats.line_escapes import (
    BACKSLASH,
    ESCAPED_EQUALS,
    INFLUXDB,
    MARK_BYTE,
    SPECIAL,
    escaped,
    name_marked,
    name_of,
    tags_text,
)
from ingest.formats.moments import Placing, placing_of
from ingest.model.block import device_needle, metric_after
from ingest.model.codes import NO_DEVICE
from ingest.model.reading import NAME_BYTES_MAX, NAME_CHARACTERS_MAX, name_fault
from ingest.model.tables import Homes, Tables

VALUE = "value"  # a field of this name is not in the metric
# When there are more, all are dropped in one step. So larger ones would make it longer than 5 ms.
KEY_BYTES_KEPT_MAX = 4 * 1024 * 1024  # of all keys: some 12,000
SHAPE_BYTES_MAX = 4 * 1024 * 1024  # of all shapes and their fields: some 3,000
FIELD_BYTES_MAX = 2 * NAME_BYTES_MAX  # of a name in which each character may be escaped
KEY_BYTES_MAX = 2 * FIELD_BYTES_MAX + 512  # a device, a metric, and the tag of the device
NEW_BYTES_MAX = 32 * 1024  # of keys and fields that one step may read: 1 ms
NEW_BYTES = 64  # so many count for each of them, besides its own
UNREADABLE = "line_unreadable"
_ENTRY_BYTES = 200  # of a field or a shape in its dict, besides the bytes
_KEY_BYTES = 280  # of a key in its dict, besides its own bytes

_PLAIN = bytes({*range(0x21, 0x7F)} - {BACKSLASH, *b",="})
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
        return f"{self.head}.{escaped(field, SPECIAL)}{self.tail}"


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
    device_id = naming.device
    for name in naming.device_tags:
        if name in tags:
            device_id = tags.pop(name)
            break
    if not device_id:
        return NO_DEVICE, "the line has none of the tags that name a device"
    fault = name_fault(device_id)
    if fault is not None:
        return fault[0], f"the device {fault[1]}"
    head = escaped(measurement, SPECIAL)
    if naming.prefix:
        head = f"{escaped(naming.prefix, SPECIAL)}.{head}"
    tail = tags_text(tags)
    if len(head) + len(tail) > NAME_CHARACTERS_MAX:
        return "name_too_long", f"the metric has more than {NAME_CHARACTERS_MAX} characters"
    return Key(device_id, head, tail)


class LineKind:
    """What lines with the same fields become: rows of tables, and places of rows of `readings`.

    Each row has its form, and the places of its values among the fields. `joins`: it may be one row
    with lines of other keys.
    """

    __slots__ = ("joins", "plain", "rows")

    def __init__(self, placing: Placing) -> None:
        self.rows = [(form, places) for form, _, places in placing.rows]
        self.plain = placing.plain
        self.joins = not all(form.table.measurement for form, _ in self.rows)


class Shape(dict[bytes, bytes]):
    """What keys share that differ in the device only: the metric of each field.

    Fields are marked; metrics are as `metric_after` writes them. It has the fields that no declared
    table takes, and `taken` the others. `series` is what rows of a table have of the other tags. A
    field that is not known yet is read. That raises KeyError if a table takes it, if the metric is
    invalid, or if enough was read in this step, and UnicodeDecodeError.
    """

    __slots__ = ("_kept", "_kinds", "_tables", "key", "series", "taken")

    def __init__(self, key: Key, tables: Tables, kept: KeptKeys) -> None:
        super().__init__()
        self.key = key  # one of them
        self.series = device_needle(key.tail[1:])
        self.taken: dict[bytes, bytes] = {}
        self._tables = tables
        self._kept = kept
        self._kinds: dict[tuple[Homes, bytes], LineKind] = {}

    def __missing__(self, field: bytes) -> bytes:
        if not 0 < len(field) <= FIELD_BYTES_MAX or field in self.taken:
            raise KeyError(field)
        self._kept.read_one(field)
        metric = self.key.metric(name_of(field))
        if name_fault(metric):
            raise KeyError(field)
        after = metric_after(metric)
        self._kept.shape_bytes += len(field) + len(after) + _ENTRY_BYTES
        if self._tables.home(metric) is not None:
            self.taken[field] = after
            self._kept.are_taken = True
            raise KeyError(field)
        self[field] = after
        return after

    def after(self, field: bytes) -> bytes:
        """Return the metric of a field, whether a table takes it or not."""
        try:
            return self[field]
        except KeyError:
            return self.taken[field]

    def metric(self, field: bytes) -> str:
        """Do what `after` does; return the name."""
        return self.after(field)[4:-4].decode()

    def kind(self, fields: bytes, homes: Homes) -> LineKind:
        """Return what lines with these fields become: marked names, with commas between them."""
        try:
            return self._kinds[homes, fields]
        except KeyError:
            self._kept.read_one(fields)
            self._kept.shape_bytes += 2 * len(fields) + 2 * _ENTRY_BYTES
            metrics = [*map(self.metric, fields.split(b","))]
            kind = self._kinds[homes, fields] = self._kept.kind(placing_of(metrics, homes))
            return kind


# What a row of a key has of the device, as `device_needle` writes it, and how its names go on.
Named = tuple[bytes, Shape]
# A key without the device: what is before the tag that names it, `,tag=`, a comma if there is one
# behind the device, and what follows. As one text they would not tell which device is left out.
Around = tuple[bytes, bytes, bytes, bytes]


class Keys:
    """The keys with one naming that had a valid reading, by their marked bytes.

    Most new keys differ from others in the device only. Such a key is not read: what is around the
    device tells the shape.
    """

    def __init__(self, naming: Naming, tables: Tables, kept: KeptKeys) -> None:
        self.naming = naming
        self.tables = tables
        self.known: dict[bytes, Named] = {}
        self.kept = kept
        self._shapes: dict[Around, Shape] = {}
        # By the tag of the device, measurement and names of tags: what metrics begin with, if the
        # other tags are already in order. If they are plain, they follow as they stand in the key.
        self._heads: dict[tuple[bytes, ...], str] = {}
        self._marks = [b",%b=" % name_marked(tag, naming.escapes) for tag in naming.device_tags]
        self._default = name_marked(naming.device, naming.escapes)

    def named(self, texts: list[bytes]) -> tuple[list[Named], dict[bytes, Named]]:
        """Return what each key tells, and the same of those that are not known, by key.

        When their readings are found to be valid, `keep` is to be called. Raises KeyError or
        ValueError if a key is invalid, may be, or is one too many.
        """
        known = self.known
        try:
            return [*map(known.__getitem__, texts)], {}
        except KeyError:
            new = self._read([text for text in texts if text not in known])
        return [known.get(text) or new[text] for text in texts], new

    def keep(self, new: dict[bytes, Named]) -> None:
        """Keep keys that had a valid reading."""
        self.known.update(new)
        self.kept.posted(new)

    def shape(self, key: Key) -> Shape:
        """Return the shape of a key that was read."""
        self.kept.shape_bytes += 2 * (len(key.head) + len(key.tail)) + 8 * _ENTRY_BYTES
        return Shape(key, self.tables, self.kept)

    def _read(self, texts: list[bytes]) -> dict[bytes, Named]:
        joined = b"\n".join(texts)
        marks = [mark for mark in self._marks if mark in joined]
        devices: list[bytes] = []
        shapes: list[Shape] = []
        for text in texts:
            for mark in marks:
                before, found, rest = text.partition(mark)
                if found:
                    device, comma, after = rest.partition(b",")
                    around = before, mark, comma, after
                    break
            else:
                device, around = self._default, (text, b"", b"", b"")
            shape = self._shapes.get(around)
            if shape is None:
                shape = self._shapes[around] = self._shape_around(around)
            devices.append(device)
            shapes.append(shape)
        joined = b"\n".join(devices)
        if b"=" in joined:  # without an escape
            raise KeyError(joined)
        if MARK_BYTE in joined:
            device_ids = [*map(name_of, devices)]
        else:
            device_ids = joined.decode().split("\n")
        named = zip(valid_needles(device_ids), shapes, strict=True)
        return dict(zip(texts, named, strict=True))

    def _shape_around(self, around: Around) -> Shape:
        """Return the shape of all keys with these parts. Raises KeyError if they tell none.

        They do if a space in the place of the device is read as it: no key has another one. So a
        key that has the tag twice, or one that comes before it, is not taken for another. Where
        each key has tags of its own (container ids), most of them are found by `_heads`, unread.
        """
        before, mark, comma, after = around
        text = b"".join((before, mark, b" " if mark else b"", comma, after))
        self.kept.read_one(text)
        cells = (before + comma + after).replace(b"=", b",").split(b",")
        tail = (before + comma + after)[len(cells[0]) :]
        form = mark, cells[0], *cells[1::2]
        is_plain = b"" not in cells and tail.translate(None, _PLAIN) == b",=" * (len(cells) // 2)
        head = self._heads.get(form) if is_plain else None
        if head is not None and len(head) + len(tail) <= NAME_CHARACTERS_MAX:
            return self.shape(Key("", head, tail.decode()))
        key = read_key(text, self.naming)
        if not isinstance(key, Key) or key.device_id != (" " if mark else self.naming.device):
            raise KeyError(text)
        if is_plain and key.tail.encode() == tail:
            self._heads[form] = key.head
            self.kept.shape_bytes += len(text) + 5 * _ENTRY_BYTES
        return self.shape(key)


class KeptKeys:
    """All keys and shapes that are kept, by their naming.

    A key is kept only until the next `SERIES.look`. So a device that posts is always told to it.
    """

    def __init__(self, series: SeriesCache) -> None:
        self.new_bytes_left = 0  # of keys and fields that may still be read in this step
        self.key_bytes = 0  # of all that is in `known`
        self.shape_bytes = 0  # of all shapes
        self._series = series
        self.are_taken = False  # a declared table takes a field of one of the keys
        self._looks = series.looks
        self._kinds: dict[object, LineKind] = {}
        self._by_naming: dict[tuple[Naming, Tables], Keys] = {}

    def of(self, naming: Naming, tables: Tables) -> Keys:
        """Return the keys of a naming, for one step."""
        if self.shape_bytes > SHAPE_BYTES_MAX:
            self._by_naming.clear()
            self._kinds.clear()
            self.key_bytes = self.shape_bytes = 0
        elif self._looks != self._series.looks or self.key_bytes > KEY_BYTES_KEPT_MAX:
            self._looks = self._series.looks
            for each in self._by_naming.values():
                each.known.clear()
            self.key_bytes = 0
        keys = self._by_naming.get((naming, tables))
        if keys is None:
            keys = self._by_naming[naming, tables] = Keys(naming, tables, self)
            self.shape_bytes += 10 * _ENTRY_BYTES
        self.new_bytes_left = NEW_BYTES_MAX
        return keys

    def kind(self, placing: Placing) -> LineKind:
        """Return the same kind for all lines that become rows of the same forms."""
        alike = tuple((form, places) for form, _, places in placing.rows), placing.plain
        return self._kinds.setdefault(alike, LineKind(placing))

    def read_one(self, text: bytes) -> None:
        """Count a key or a field that is read. Raises KeyError if it is one too many."""
        self.new_bytes_left -= NEW_BYTES + len(text)
        if self.new_bytes_left < 0:
            raise KeyError(text)

    def posted(self, new: dict[bytes, Named]) -> None:
        """Count keys that are kept now, and tell which devices they are of."""
        needles = {needle for needle, _ in new.values()}
        self.key_bytes += sum(map(len, new)) + len(new) * _KEY_BYTES
        self._series.found += len(new) - len(needles)
        self._series.posted([needle[4:].decode() for needle in needles])


KEPT_KEYS = KeptKeys(SERIES)
