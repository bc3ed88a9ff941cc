"""The fast way for lines with values that declared tables take: to their encoded rows.

Lines with the same fields are read together: their numbers in one call, and their rows column by
column. Lines of one key and time become one row, as Telegraf sends the values of its `system`.
Promises: each reading has the home that `encode_placed` gives it. It accepts nothing that
careful.py would refuse. At a doubt it returns None.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson
from msgspec import Struct

from ingest.formats.lines.fast import DOUBTS, NO_MARKS, Columns, TakenLines, values_of
from ingest.formats.lines.keys import LineKind, Named
from ingest.formats.moments import METRICS_MAX, Items, picked, place_items
from ingest.formats.post import EXACT_MAX, Post
from ingest.model.placed_rows import PlacedRows
from ingest.model.tables import Homes, Tables

LINES_MAX = 1_000  # of a slice: a row with COLUMNS_MAX takes 3 us
MOMENT_BYTES_MAX = 8 * 1024  # a slice gets so many more
GROUPS_MAX = 64  # of lines of a slice, each with other fields
_NUMBERS = b"0123456789.-"
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123)) + b"_"
_SPACE_FOR_EQUALS = bytes.maketrans(b"=", b" ")


class PlacedLines(Struct, frozen=True, gc=False):
    """Some lines, encoded. The owner of a reading is the number of its line in the post."""

    tuples: bytes
    owners: Sequence[int]
    newest_us: int
    lines: int


class LineGroup(NamedTuple):
    """Lines with the same fields: marked names, with commas between them.

    `values` are those of the first line, then those of the next one; so are `owners`, the numbers
    of their lines. Without them, all values of a line are of the line itself.
    """

    fields: bytes
    numbers: list[int]
    times_pg_us: list[int]
    named: list[Named]
    values: list[float]
    owners: list[int] | None

    def of(self, places: list[int]) -> LineGroup:
        """Return some of the lines."""
        count = len(self.values) // len(self.named)
        spread = [place * count + at for place in places for at in range(count)]
        return LineGroup(
            self.fields,
            [self.numbers[place] for place in places],
            [self.times_pg_us[place] for place in places],
            [self.named[place] for place in places],
            [self.values[place] for place in spread],
            None if self.owners is None else [self.owners[place] for place in spread],
        )

    def owners_of(self, places: Sequence[int]) -> Sequence[int]:
        """Return the owners of the values with these places of each line."""
        if self.owners is not None:
            return picked(self.owners, places, len(self.values) // len(self.named))
        numbers, count = array("L", self.numbers), len(places)
        owners = array("L", bytes(numbers.itemsize * count * len(numbers)))
        for place in range(count):
            owners[place::count] = numbers
        return owners


def place_lines(lines: TakenLines, first: int, post: Post) -> PlacedLines | Columns | None:
    """Encode the values of lines, each in its home, or return None if there is a doubt.

    `first` is the number of the first line. Returns columns if they cannot be encoded together.
    """
    rules, times = post.rules, lines.times
    homes = rules.tables.era(times.oldest_us, times.newest_us)
    if homes:
        try:
            tuples, owners = _placed(lines, first, homes, rules.tables)
            if len(owners) <= rules.post_rows_max:
                return PlacedLines(tuples, owners, times.newest_us, len(lines.keys))
        except DOUBTS:
            pass
    return lines.columns(are_taken=homes is None or bool(homes))


def _placed(
    lines: TakenLines, first: int, homes: Homes, tables: Tables
) -> tuple[bytes, Sequence[int]]:
    """Encode the values of lines of one era, each in its home. Raises DOUBTS."""
    rows = PlacedRows()
    joining = list[LineGroup]()
    for group in _groups(lines, first):
        kinds = [shape.kind(group.fields, homes) for _, shape in group.named]
        for kind in {*kinds}:
            places = [place for place, each in enumerate(kinds) if each is kind]
            of_kind = group if len(places) == len(kinds) else group.of(places)
            if kind.joins:
                joining.append(of_kind)
            else:
                _add(rows, of_kind, kind)
    tuples, owners = rows.encoded()
    if joining:
        more, more_owners = place_items(_items(joining), tables)
        return tuples + more, [*owners, *more_owners]
    return tuples, owners


def _add(rows: PlacedRows, group: LineGroup, kind: LineKind) -> None:
    """Add lines that become rows of the same forms."""
    values, count = group.values, len(group.values) // len(group.named)
    for form, places in kind.rows:
        names = [needle + shape.series for needle, shape in group.named]
        columns = [values[place::count] for place in places]
        rows.add(form, group.times_pg_us, names, columns, group.owners_of(places))
    if kind.plain:
        fields = group.fields.split(b",")
        for place in kind.plain:
            names = [needle + shape.after(fields[place]) for needle, shape in group.named]
            of_plain = values[place::count], group.owners_of([place])
            rows.plain.add(group.times_pg_us, names, *of_plain)


def _items(groups: list[LineGroup]) -> Items:
    """Return lines that become one row with others of the same device and time."""
    metrics: dict[tuple[int, bytes], tuple[str, ...]] = {}
    all_metrics, device_ids = list[tuple[str, ...]](), list[str]()
    for group in groups:
        for needle, shape in group.named:
            key = id(shape), group.fields
            if key not in metrics:
                metrics[key] = tuple(map(shape.metric, group.fields.split(b",")))
            all_metrics.append(metrics[key])
            device_ids.append(needle[4:].decode())
    return Items(
        [each for group in groups for each in group.times_pg_us],
        device_ids,
        all_metrics,
        [each for group in groups for each in group.values],
        [each for group in groups for each in group.owners_of(range(group.fields.count(b",") + 1))],
    )


def _groups(lines: TakenLines, first: int) -> Iterator[LineGroup]:
    """Yield the lines with the same fields together. Raises DOUBTS."""
    times_pg_us, named = lines.times.pg_us, lines.named
    texts, joined = _joined(lines)
    alike: dict[bytes, list[int]] = {}
    for line, skeleton in enumerate(b"\n".join(texts).translate(None, _NUMBERS).split(b"\n")):
        alike.setdefault(skeleton, []).append(line)
    alike.pop(b"", None)  # of lines that are joined with others
    if len(alike) > GROUPS_MAX:
        raise KeyError(len(alike))
    for skeleton, places in alike.items():
        for fields, of_group, values in _read(skeleton, places, texts):
            if not math.hypot(*values) < EXACT_MAX:
                raise ValueError(fields)
            owners = None
            if not joined.keys().isdisjoint(of_group):
                own = [joined.get(line) or [line] * (fields.count(b",") + 1) for line in of_group]
                owners = [first + line for of_line in own for line in of_line]
            yield LineGroup(
                fields,
                [first + line for line in of_group],
                [times_pg_us[line] for line in of_group],
                [named[line] for line in of_group],
                values,
                owners,
            )


def _joined(lines: TakenLines) -> tuple[list[bytes], dict[int, list[int]]]:
    """Return the fields of each line; lines of one key and time become the first one of them.

    Of such a line also returns the line of each field. The others have no fields then. Raises
    KeyError if a moment has too many.
    """
    texts = lines.fields
    moments = [*zip(lines.keys, lines.times.pg_us, strict=True)]
    if len({*moments}) == len(moments):
        return texts, {}
    firsts: dict[tuple[bytes, int], int] = {}
    joined: dict[int, list[int]] = {}
    texts = [*texts]
    for line, moment in enumerate(moments):
        place = firsts.setdefault(moment, line)
        if place != line:
            owners = joined.setdefault(place, [place] * texts[place].count(b"="))
            owners += [line] * texts[line].count(b"=")
            if len(owners) > METRICS_MAX:
                raise KeyError(len(owners))
            texts[place] += b"," + texts[line]
            texts[line] = b""
    return texts, joined


# The fields of some lines, the lines, and their values.
_Read = tuple[bytes, list[int], list[float]]


def _read(skeleton: bytes, places: list[int], texts: list[bytes]) -> Iterator[_Read]:
    """Read lines whose fields are alike without digits. Raises DOUBTS."""
    cells = skeleton.replace(b"=", b",").split(b",")
    count = len(cells) // 2
    if skeleton.translate(None, NO_MARKS) != b"=," * (count - 1) + b"=":
        raise KeyError(skeleton)
    names, suffixes = cells[::2], cells[1::2]
    joined = b",".join([texts[place] for place in places])
    if {*suffixes} <= {b"", b"i"} and not b"".join(names).translate(None, _LETTERS):
        values = _numbers(joined, suffixes, len(places))
        if values is not None:
            _check_names(names)
            yield b",".join(names), places, values
            return
    groups: dict[bytes, tuple[list[int], list[bytes]]] = {}
    for place in places:
        cells = texts[place].replace(b"=", b",").split(b",")
        of_fields, value_texts = groups.setdefault(b",".join(cells[::2]), ([], []))
        of_fields.append(place)
        value_texts += cells[1::2]
    if len(groups) > GROUPS_MAX:
        raise KeyError(len(groups))
    for fields, (of_fields, value_texts) in groups.items():
        _check_names(fields.split(b","))
        read = values_of(value_texts)
        if read is None or len(read) != len(value_texts):
            raise ValueError(fields)
        yield fields, of_fields, read


def _check_names(names: list[bytes]) -> None:
    """Raise KeyError if a field stands twice: then two values have one place."""
    if len({*names}) < len(names):
        raise KeyError(names[0])


def _numbers(joined: bytes, suffixes: list[bytes], lines: int) -> list[float] | None:
    """Return all numbers of such lines, whose names are letters; None if there is a doubt.

    `suffixes` are what stands behind the numbers of a line: `i` behind integers. A digit in a name
    leaves two numbers without a comma, which is no JSON, and a field without a value a space before
    a comma.
    """
    integers = [place for place, suffix in enumerate(suffixes) if suffix]
    if integers and (joined + b",").count(b"i,") != len(integers) * lines:
        return None
    text = joined.translate(_SPACE_FOR_EQUALS, _LETTERS)
    if b" ," in text or text.endswith(b" "):
        return None
    try:
        numbers: list[Any] = orjson.loads(b"[%b]" % text)
    except ValueError:
        return None
    if len(numbers) != len(suffixes) * lines:
        return None
    if any({*map(type, numbers[place :: len(suffixes)])} != {int} for place in integers):
        return None
    return [number + 0.0 for number in numbers] if b"-0" in joined else numbers


def end_of_slice(body: bytes, at: int, stop: int) -> int:
    """Move the end of a slice so that it has no more lines than a step may have rows.

    It also moves behind the lines of the last tags and time, if they are few: they become one row.
    Where they are in two slices, the table has a row in conflict.
    """
    while body.count(b"\n", at, stop) > LINES_MAX:
        half = body.rfind(b"\n", at, (at + stop) // 2) + 1
        if not half:
            break  # the first line is long, and the others are short
        stop = half
    most = min(stop + MOMENT_BYTES_MAX, len(body))
    last = _moment(body[body.rfind(b"\n", max(0, stop - MOMENT_BYTES_MAX), stop - 1) + 1 : stop])
    while any(last) and (end := body.find(b"\n", stop, most) + 1):
        if _moment(body[stop:end]) != last:
            break
        stop = end
    return stop


def _moment(line: bytes) -> tuple[bytes, bytes]:
    """Return the tags of a plain line and its time, if it has one."""
    key, _, rest = line.partition(b" ")
    return key.partition(b",")[2], rest.partition(b" ")[2].strip()
