"""Line protocol: what each corner of its grammar means, what is counted, and how it is cut."""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain, product

import pytest

from ingest.formats.block_builder import SERIES
from ingest.formats.lines import keys as lines_keys
from ingest.formats.lines.body import (
    SLICE_BYTES,
    WHOLE_BYTES,
    LinePost,
    begin,
    decode,
    has_usable_time,
)
from ingest.formats.lines.careful import LINE_BYTES_MAX
from ingest.formats.lines.keys import KEPT_KEYS, NEW_BYTES, UNREADABLE, KeptKeys, Naming, read_key
from ingest.formats.post import Points, Post, Rules, most_invalid
from ingest.model.block import decode_rows
from ingest.model.errors import Refused
from ingest.model.reading import Reading
from ingest.model.tables import NO_TABLES
from tests.support.posts import NOW_US, RULES

TAGS = ("device_id", "entity_id", "host")
NAMING = Naming(TAGS)
S = NOW_US // 1_000_000


def points(
    body: bytes | str,
    *,
    naming: Naming = NAMING,
    precision: str | None = None,
    rules: Rules = RULES,
    rows_max: int = 100_000,
    rows_bytes_max: int = 1 << 24,
) -> Points:
    """Decode a body that was received at NOW_US."""
    text = body.encode() if isinstance(body, str) else body
    post = Post(precision, False, NOW_US, 7.0, rules)
    return decode(text, LinePost(post, naming, rows_max, rows_bytes_max))


def readings(found: Points) -> list[Reading]:
    """Return all readings, in order."""
    return [*chain.from_iterable(decode_rows(block.tuples) for block in found.blocks)]


def refused(body: bytes, **options: int) -> Refused:
    """Return the refusal of a body."""
    with pytest.raises(Refused) as caught:
        points(body, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("line", "device", "metric", "value"),
    [
        ("cpu,host=h value=1", "h", "cpu", 1.0),
        ("cpu,host=h idle=1", "h", "cpu.idle", 1.0),
        ("cpu,host=h,cpu=cpu0,b=2 idle=1", "h", "cpu.idle,b=2,cpu=cpu0", 1.0),
        ("cpu,b=2,cpu=cpu0,host=h idle=1", "h", "cpu.idle,b=2,cpu=cpu0", 1.0),
        ("m,host=h,device_id=d value=1", "d", "m,host=h", 1.0),
        ("a.b,host=h c.d=1", "h", r"a\.b.c\.d", 1.0),
        (r"a\,b\ c=d,host=h value=1", "h", r"a\,b c\=d", 1.0),
        (r"a\=b,host=h value=1", "h", r"a\\\=b", 1.0),  # a measurement has no such escape
        (r"m,host=a\ b\,c\=d value=1", "a b,c=d", "m", 1.0),
        (r"m,host=h,t\=a\,g=x\y.z value=1", "h", r"m,t\=a\,g=x\\y.z", 1.0),
        (r"m,host=\\nas\a value=1", r"\\nas\a", "m", 1.0),  # a backslash is itself
        (r"m,host=a\\ b,t=\\\,\x value=1", r"a\ b", r"m,t=\\\\\,\\x", 1.0),
        (r"m,host=h,a\\=b=c f\\=1=2", "h", r"m.f\\\=1,a\\\=b=c", 2.0),
        (r"m,host=h,t=a\nb value=1", "h", r"m,t=a\\nb", 1.0),  # as the Python client writes it
        (r"m,host=h f\ \=g=1", "h", r"m.f \=g", 1.0),
        ('m,host="h" value=1', '"h"', "m", 1.0),  # quotes are special in values only
        ("m,host=h value=1.", "h", "m", 1.0),
        ("m,host=h value=.5", "h", "m", 0.5),
        ("m,host=h value=-1e+3", "h", "m", -1000.0),
        ("m,host=h value=1E5", "h", "m", 100_000.0),
        ("m,host=h value=-9223372036854775808i", "h", "m", -(2.0**63)),
        ("m,host=h value=-0", "h", "m", 0.0),
        ("m,host=h value=5i", "h", "m", 5.0),
        ("m,host=h value=-5i", "h", "m", -5.0),
        ("m,host=h value=5u", "h", "m", 5.0),
        ("m,host=h value=T", "h", "m", 1.0),
        ("m,host=h value=False", "h", "m", 0.0),
        ("  m,host=h   value=1  ", "h", "m", 1.0),
        ("m,host=h value=1\r", "h", "m", 1.0),
        ("°C,entity_id=x value=21.5", "x", "°C", 21.5),
    ],
)
def test_line_becomes_a_reading(line: str, device: str, metric: str, value: float) -> None:
    """The names and values that each spelling means; the time of receipt, as there is none."""
    found = points(line)
    assert readings(found) == [Reading(NOW_US, device, metric, value)]
    assert (found.errors, found.texts, found.rounded) == ([], 0, 0)


NUMBERS = (
    *("1", "-0", "0.0", "-0.0", "007", "1.", ".5", "21.50", "999999999999999.123456789012345"),
    *("9007199254740993", "9007199254740992", "1e5", "-", "1.5.2", "5i", "nan"),
)


@pytest.mark.parametrize("key", ["m,host=h", "#m,host=h", "m", "m,host=h,", "m,host=h,host=i"])
def test_single_reading_is_read_as_among_others(key: str) -> None:
    """The quick way for a body of one reading gives what the careful one does."""
    stamps = ("", f" {S}", f" {S}123456789", " -5", " 0", " 01", " " + "9" * 19)
    for number, stamp, end in product(NUMBERS, stamps, ("", "\n")):
        line = f"{key} f={number}{stamp}"
        careful = points(f'{line}\nx,host=h text="y"')
        if readings(careful):
            alone = points(line + end)
            assert readings(alone) == readings(careful), line
            assert (alone.rounded, alone.errors) == (careful.rounded, careful.errors)
        elif (careful.errors and careful.errors[0].code == UNREADABLE) or not careful.errors:
            assert refused((line + end).encode()).code in {"not_lines", "empty"}
        else:
            assert points(line + end).errors == careful.errors, line


@pytest.mark.parametrize(
    ("stamp", "precision", "ts_us"),
    [
        (f"{S}", None, S * 1_000_000),
        (f"{S}123", None, S * 1_000_000 + 123_000),
        (f"{S}123456", None, S * 1_000_000 + 123_456),
        (f"{S}123456789", None, S * 1_000_000 + 123_457),
        (f"{S}123456500", "ns", S * 1_000_000 + 123_456),  # a half goes to the even microsecond
        (f"{S}123457500", "ns", S * 1_000_000 + 123_458),
        (f"{S}", "s", S * 1_000_000),
        (f"{S // 60}", "m", S // 60 * 60_000_000),
        (f"{S // 3600}", "h", S // 3600 * 3_600_000_000),
    ],
)
def test_time_has_the_given_unit_or_one_by_its_size(
    stamp: str, precision: str | None, ts_us: int
) -> None:
    """A common mistake, seconds without `precision=s`, does no harm."""
    for body in (f"m,host=h value=1 {stamp}", f'm,host=h value=1,s="x" {stamp}'):
        assert readings(points(body, precision=precision))[0].ts_us == ts_us


@pytest.mark.parametrize(
    ("line", "code", "field"),
    [
        ("m value=1", "no_device", None),
        ("m,host=h,a=1,a=1 value=1", "repeated_field", None),
        ("m,host=h value=nan", "value_out_of_range", "value"),
        ("m,host=h value=-inf", "value_out_of_range", "value"),
        ("m,host=h value=1e999", "value_out_of_range", "value"),
        (f"m,host=h value={'9' * 310}i", "value_out_of_range", "value"),
        ("m,host=h value=abc", "wrong_type", "value"),
        ("m,host=h value=+1", "wrong_type", "value"),
        ("m,host=h value=9223372036854775808i", "value_out_of_range", "value"),
        ("m,host=h value=-9223372036854775809i", "value_out_of_range", "value"),
        ("m,host=h value=18446744073709551616u", "value_out_of_range", "value"),
        ("m,host=h value=-5u", "wrong_type", "value"),
        ("m,host=h value=i5", "wrong_type", "value"),
        ("m,host=h value=123t", "wrong_type", "value"),
        ('m,host=h a=1,b="a', "line_unreadable", None),
        ("m,region=,host=h value=1", "line_unreadable", None),
        ("m,host=h,t=a=b value=1", "line_unreadable", None),
        ("m,host=h value=1 1.5", "ts_unreadable", "ts"),
        ("m,host=h value=1 1 2", "ts_unreadable", "ts"),
        ("m,host=h value=1 5", "ts_too_old", "ts"),
        ("m,host=h value=1 4999999999", "ts_in_future", "ts"),
        (f"m,host={'h' * 257} value=1", "name_too_long", None),
        (f"m,host=h {'f' * 255}=1", "name_too_long", "f" * 80 + ".."),
        (f"m,host=h{',t=1' * 2_000} value=1", "name_too_long", None),
        ("m,host=h " + "\\," * 60_000 + "=1", "name_too_long", "\\," * 40 + ".."),
        ("m\t,host=h value=1", "name_control_character", "value"),
    ],
)
def test_line_with_a_fault_is_an_error_with_its_text(
    line: str, code: str, field: str | None
) -> None:
    """The code, the field and the original bytes; the lines around it are read."""
    found = points(f"m,host=a value=1\n{line}\nm,host=b value=2")
    (error,) = found.errors
    assert (error.item, error.code, error.field) == (1, code, field)
    assert error.original == line.encode()
    assert 0 < len(error.message) <= 200
    assert [each.device_id for each in readings(found)] == ["a", "b"]


def test_faulty_fields_are_an_error_alone() -> None:
    """A NaN costs only itself: the error has a line without the good fields and the texts."""
    found = points(f'cpu,host=h a=1,b=nan,c="text, x=1",d=x,e=2i {S}\n')
    assert [(each.metric, each.value) for each in readings(found)] == [("cpu.a", 1), ("cpu.e", 2)]
    (error,) = found.errors
    assert (error.original, error.field) == (b"cpu,host=h b=nan,d=x %d" % S, "b")
    assert error.also == (("d", "wrong_type"),)
    assert found.texts == 1
    again = points(error.original)
    assert [each.original for each in again.errors] == [error.original]


def a_body(lines: int, fields: int) -> tuple[bytes, list[Reading]]:
    """Return a body and its readings."""
    facts = [
        Reading((S - i) * 1_000_000, f"d{i % 50}", f"m.f{n}", i + n / 4)
        for i in range(lines)
        for n in range(fields)
    ]
    written = [
        f"m,host=d{i % 50} {','.join(f'f{n}={i + n / 4}' for n in range(fields))} {S - i}"
        for i in range(lines)
    ]
    return "\n".join(written).encode(), facts


@pytest.mark.parametrize("fields", [1, 10])
@pytest.mark.parametrize("lines", [1, 7, 4_000])
def test_readings_come_in_blocks_and_in_order(lines: int, fields: int) -> None:
    """Each block has at most `post_rows_max` rows, and knows the line of each row."""
    body, facts = a_body(lines, fields)
    assert lines < 100 or len(body) > max(WHOLE_BYTES, 3 * SLICE_BYTES)
    found = points(body, rules=RULES._replace(post_rows_max=300))
    assert readings(found) == facts
    assert all(block.rows == 300 for block in found.blocks[:-1])
    owners = [line for block in found.blocks for line in block.items or range(block.rows)]
    assert owners == [row // fields for row in range(len(facts))]
    for block in found.blocks:
        newest_us = max(each.ts_us for each in decode_rows(block.tuples))
        assert (block.received_us, block.received_s) == (NOW_US, 7.0)
        assert block.newest_ts_us >= newest_us


def test_one_odd_line_in_a_large_body_does_not_hide_others() -> None:
    """Lines with text, an escape, a fault or another form stand between plain ones."""
    body, facts = a_body(3_000, 1)
    lines = body.split(b"\n")
    lines[700] = b'm,host=x s="a\nb" 5'
    lines[1500] = b"m,host=a\\ b value=7"
    lines[2200] = b"m value=1"
    found = points(b"\n".join(lines))
    kept = [fact for place, fact in enumerate(facts) if place not in (700, 1500, 2200)]
    kept.insert(1499, Reading(NOW_US, "a b", "m", 7.0))
    assert readings(found) == kept
    assert ([each.item for each in found.errors], found.texts) == ([2201], 1)


def test_limits_of_a_post_are_inclusive() -> None:
    """Readings, errors and texts count as fields; the bytes of the rows count too."""
    body = b'm,host=h a=1,b=nan,c=""\nm,host=h d=1'
    assert len(readings(points(body, rows_max=4))) == 2
    refusal = refused(body, rows_max=3)
    assert (refusal.code, refusal.fields) == ("too_many_readings", {"readings_max": 3})
    (block,) = points(b"m,host=h value=1").blocks
    assert points(b"m,host=h value=1", rows_bytes_max=len(block.tuples)).blocks
    assert refused(b"m,host=h value=1", rows_bytes_max=len(block.tuples) - 1).code == (
        "body_too_large"
    )


def test_too_long_line_is_refused_and_the_longest_one_is_read() -> None:
    """Also when short lines are before it, or nothing follows."""
    for before in (b"", b"m,host=h value=1\n" * 1_000):
        for end in (b"", b"\n", b"\nm,host=h value=1"):
            line = b'm,host=h value=1,s="' + b"x" * (LINE_BYTES_MAX - 21)
            found = points(before + line + b'"' + end)
            assert found.texts == 1
            assert refused(before + line + b"xxxxxxxxxx" + b'"' + end).code == "item_too_large"


def test_more_faults_than_are_kept_are_counted() -> None:
    """A post of tiny lines would become dead letters of many times its size."""
    body = b"m a=1\n" * 1_000 + b"m,host=h value=1"
    found = points(body)
    assert len(readings(found)) == 1
    assert (len(found.errors), found.not_kept) == (most := most_invalid(len(body)), 1_000 - most)
    found = points(b"m a=1\n" * 100)
    assert (len(found.errors), found.not_kept) == (100, 0)
    assert refused(b"m a=1\n" * 300, rows_max=299).code == "too_many_readings"
    assert refused(b"x\n" * 1_000 + b"m,host=h value=1").code == "not_lines"


def test_faulty_lines_count_in_the_bytes_of_a_post() -> None:
    """Room for them is reserved together with that of the rows."""
    faulty = b"m a=1 " + b"5" * 1_000
    assert points(faulty, rows_bytes_max=len(faulty)).errors
    assert refused(faulty, rows_bytes_max=len(faulty) - 1).code == "body_too_large"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the devices that SERIES tells of from now on."""
    SERIES.look()
    told: list[str] = []
    monkeypatch.setattr(SERIES, "listener", told.extend)
    return told


@pytest.mark.parametrize(
    "line",
    [
        *("m,host=mute value=nan", "m,host=mute =1", 'm,host=mute value="x"', "m,host=mute v=1 x"),
        *("m,host=mute \x01=1", "m,host=mute,host=mute v=1", "m,host=other,device_id=mute v="),
    ],
)
def test_a_device_is_told_when_it_has_a_valid_reading(told: list[str], line: str) -> None:
    """The dashboard learns so which devices are active. A key alone tells nothing."""
    for _ in range(2):
        points(f"m,host=other value=1\n{line}")
        points("m,host=alone value=1")
        SERIES.look()
        assert sorted(told) == ["alone", "other"]
        told.clear()
    points("m,host=mute value=1")
    SERIES.look()
    assert "mute" in told


def test_keys_and_shapes_are_kept_within_their_bounds(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """Keys that differ in the device have one shape. Keys are dropped when SERIES is looked at."""
    kept = KeptKeys(SERIES)
    keys = kept.of(Naming(TAGS), NO_TABLES)
    ((needle, shape),), new = keys.named([b"m,host=h"])
    assert (needle[4:], [*new], keys.known) == (b"h", [b"m,host=h"], {})
    keys.keep(new)
    named, new = keys.named([b"m,host=i", b"m,host=h"])
    assert (named[0][1], named[1], [*new]) == (shape, (needle, shape), [b"m,host=i"])
    assert shape[b"a"] is shape[b"a"]
    with pytest.raises(KeyError):
        shape[b""]
    assert kept.key_bytes > 0 < kept.shape_bytes
    SERIES.look()
    assert told == ["h"]
    assert (kept.of(Naming(TAGS), NO_TABLES), keys.known, kept.key_bytes) == (keys, {}, 0)
    keys.keep(new)
    monkeypatch.setattr(lines_keys, "KEY_BYTES_KEPT_MAX", 0)
    assert (kept.of(Naming(TAGS), NO_TABLES), keys.known, kept.key_bytes) == (keys, {}, 0)
    assert keys.named([b"m,host=h"])[0][0][1] is shape
    monkeypatch.setattr(lines_keys, "SHAPE_BYTES_MAX", 0)
    assert kept.of(Naming(TAGS), NO_TABLES) is not keys


def test_one_step_reads_a_bounded_part_of_keys_and_fields() -> None:
    """They are slow to read; a step with many of them ends early, and the next one goes on."""
    naming = Naming(TAGS, "steps")
    keys = KEPT_KEYS.of(naming, NO_TABLES)
    KEPT_KEYS.new_bytes_left = 2 * NEW_BYTES + 2
    ((_, shape),), _ = keys.named([b"m"])
    assert shape[b"a"]
    with pytest.raises(KeyError):
        shape[b"b"]
    assert KEPT_KEYS.of(naming, NO_TABLES).named([b"m"])[0][0][1] is shape
    assert shape[b"b"]


def test_posts_in_turn_are_read_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when all that is kept is dropped before each step."""
    bodies = [
        b"\n".join(
            b"m%d,a=%d,host=h%d f%d=%d,g=nan %d" % (i % 9, i % (7 + each), i, i % 5, i, S - i)
            for i in range(1_500)
        )
        for each in range(3)
    ]
    alone = [points(body) for body in bodies]
    monkeypatch.setattr(lines_keys, "KEY_BYTES_KEPT_MAX", 0)
    monkeypatch.setattr(lines_keys, "SHAPE_BYTES_MAX", 0)
    post = LinePost(Post(None, False, NOW_US, 7.0, RULES), NAMING, 100_000, 1 << 24)
    running = [begin(body, post) for body in bodies]
    ended: dict[int, Points] = {}
    while len(ended) < len(running):
        for place, steps in enumerate(running):
            assert isinstance(steps, Generator)
            try:
                if place not in ended:
                    next(steps)
            except StopIteration as end:
                ended[place] = end.value
    for place, found in enumerate(alone):
        assert readings(ended[place]) == readings(found)
        assert ended[place].errors == found.errors


def test_time_of_a_line_is_found_again() -> None:
    """The id of a dead letter depends on it; the line may have any fault."""
    for line, usable in [
        (b"m value=nan %d" % S, True),
        (b"m value=nan", False),
        (b"m value=nan 5", False),
        (b"m value=nan 1x", False),
        (b"m value=nan " + b"9" * 50, False),
        (b"", False),
    ]:
        assert has_usable_time(line, None, RULES.ts_min_us, NOW_US) is usable
    assert has_usable_time(b"m v=x %d" % S, "s", RULES.ts_min_us, NOW_US)
    assert not has_usable_time(b"m v=x %d" % S, "h", RULES.ts_min_us, NOW_US)


def test_key_names_what_is_wrong() -> None:
    """Each fault of measurement and tags has its own text."""
    for key in (b"", b"#m", b"m,", b"m,a", b"m,=b", b"m,a=1,", b"m,a=", b"m,a=b=c"):
        fault = read_key(key, Naming(TAGS, "d"))
        assert fault[0] == "line_unreadable", key


def test_lines_of_other_devices_are_not_allowed() -> None:
    """Plain lines, others, and lines of texts only, which are not judged."""
    body = b'm,host=a f=1\nm,host=b f=2\nm,host=b s="x"\nm,host=a f=3,s="y"\nm,host=b f=4,s="z"'
    post = Post(None, False, NOW_US, 7.0, RULES, lambda device_id: device_id == "a")
    found = decode(body, LinePost(post, NAMING, 100, 100_000))
    assert [each.value for each in readings(found)] == [1.0, 3.0]
    assert [(each.item, each.code) for each in found.errors] == [
        (1, "not_allowed"),
        (4, "not_allowed"),
    ]
    assert found.texts == 2  # that of the line that is not allowed is in its letter
