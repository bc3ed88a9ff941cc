"""Laws of line protocol, for random bodies: it is read as an independent oracle reads it."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.formats.line_escapes import marked
from ingest.formats.lines.keys import Naming, read_key
from ingest.formats.timestamp import UNITS
from ingest.model.block import decode_rows
from tests.support.line_oracle import metric_of, read_back
from tests.support.lines import cut_small, expected_of, points_of, told_of

# What others read in 2,000 lines whose names have backslashes, commas, `=`, spaces and quotes: of
# each the line, its measurement, tags and fields (or null: it is wrong), and who says so. Half were
# written by influxdb-client, so their names are known. Half were made from the grammar that
# InfluxData has published (influxdata/line-protocol), right and wrong ones. InfluxDB 1.6.7 decides
# what they mean, but where it differs from that grammar: it also removes the backslash of `\"` in
# measurement and field (so two fields may be one), and of `\=` in a measurement; it does not find
# each measurement with a backslash again; and it takes a tag's value that begins with `=`. There
# line-protocol-parser decides. Both refuse a field with two backslashes before a mark, which the
# grammar allows: of these only influxdb-client's are in the corpus.
CORPUS = Path(__file__).with_name("corpus.jsonl")
TAGS = ("device_id", "host")
PIECES = (
    *("m", "cpu", "é", "value", "device_id", "host", ",host=h", "m,host=h f=1", "\n", "\n", " "),
    *(",", "=", "\\", '"', "#", "\r", "\r\n", "\t", "\0", ".", "-", "+", "1", "23", "i", "u"),
    *("e", "E", "nan", "inf", "t", "True", "f=", "1795600000", "1795600000000000500", " f=1"),
    *("9007199254740993i", "1e999", '"a b"', "18446744073709551616", "\\ ", "\\,", "\\\\"),
)
# Of keys that share what is around a device, or seem to.
TAG_TEXTS = (
    *(
        "host=h",
        "host=i",
        "host=é",
        "host=h=i",
        "host=",
        "host= ",
        "host",
        "host=a\\,b",
        "host=\\ ",
    ),
    *("device_id=h", "device_id=i", "device_id==", "a=1", "a=2", "a=b=c", "a=", "a-b=1", "a=b\\=c"),
    *("", "=", "=h", "b=\\", "ho\\=st=1", "é=1", "b=" + "x" * 250, "host=" + "h" * 257),
)
MEASUREMENTS = ("m", "m", "m", "#m", "", "a.b", "a=b", "m,a=3", "m\\,host=h", "host=h")
NAMES = st.text('ab.,=\\ "#é', min_size=1, max_size=5)
NUMBERS = st.sampled_from(
    [
        *("1", "1.", ".5", "-.5", "-1e+3", "1E5", "007", "+1", "1.5.2", "1e", "-", "", "5i", "-5i"),
        *("5u", "-5u", "1.5i", "i5", "5i3", "t", "F", "TRUE", "truei", "nan", "-inf", "+Inf"),
        *("9007199254740993i", "9007199254740993", "18446744073709551617u", "1e308", "1e309"),
        *("true", "null", "[1]", "{}", "123t", "0x1fi", "1_0", "٣", '"text"', '"a\nb"', '"a'),
    ]
)


def escaped(name: str, marks: str) -> str:
    """Write a name as clients do: with a backslash before each of these."""
    return "".join("\\" + each if each in marks else each for each in name)


@st.composite
def a_line(draw: st.DrawFn) -> str:
    """Write a line that is nearly valid."""
    key = escaped(draw(NAMES), ", ")
    tags = draw(st.dictionaries(NAMES | st.sampled_from(TAGS), NAMES | st.just(""), max_size=3))
    key += "".join(f",{escaped(name, ',= ')}={escaped(tag, ',= ')}" for name, tag in tags.items())
    fields = draw(st.lists(st.tuples(NAMES | st.just("value"), NUMBERS), min_size=1, max_size=3))
    written = ",".join(f"{escaped(name, ',= ')}={value}" for name, value in fields)
    stamps = [
        "",
        " 1795600000",
        " 1795600000123456500",
        " 5",
        " 1.5",
        " x",
        " ",
        " -3",
        "\r",
        " 1795600000\r",
        " \t1795600000",
        " \r1795600000",
    ]
    return f"{key}{draw(st.sampled_from([' ', '  ']))}{written}{draw(st.sampled_from(stamps))}"


def line_of(parts: tuple[str, list[str], str]) -> str:
    """Return a line of these tags."""
    measurement, tags, field = parts
    return f"{','.join([measurement, *tags])} {field}=1"


ALIKE = st.tuples(
    st.sampled_from(MEASUREMENTS),
    st.lists(st.sampled_from(TAG_TEXTS), max_size=4),
    st.sampled_from(["value", "f", "", "g=1,f"]),
).map(line_of)
BODIES = (
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
    | st.lists(a_line(), max_size=12).map("\n".join)
    | st.lists(ALIKE, max_size=12).map("\n".join)
)
PLAIN, WITH_DEFAULT = Naming(TAGS), Naming(TAGS, "gw")
NAMINGS = st.sampled_from(
    [
        *(PLAIN, WITH_DEFAULT, Naming((), "gw", "d.b")),
        *(Naming(TAGS, "", "", "questdb"), Naming((), "gw", "", "questdb")),
    ]
)


@given(
    text=BODIES, naming=NAMINGS, precision=st.sampled_from([None, *UNITS]), cut=st.integers(1, 60)
)
@example(
    text="m,host=h a=5i,b=t,c=truei\nm,host=h a=1 5", naming=Naming(TAGS), precision=None, cut=9
)
@example(text='m,host=h a="x\ny",b=1\\', naming=Naming(TAGS), precision=None, cut=3)
def test_any_body_is_read_as_the_oracle_reads_it(
    text: str, naming: Naming, precision: str | None, cut: int
) -> None:
    """Readings in order, errors, strings, rounded values and refusals; also in small slices."""
    body = text.encode()
    expected = expected_of(body, naming, precision)
    assert told_of(points_of(body, naming, precision)) == expected
    with cut_small(cut):
        assert told_of(points_of(body, naming, precision)) == expected


QUEST = Naming(("a\\b", "host"), "gw", "", "questdb")
# Two bodies: what is kept of the first one must not mislead about the second one.
MISLEADING = {
    "a comma behind the device": (PLAIN, "t1,host=h v=1", "t1,host=i, v=1"),
    "no value": (PLAIN, "t2,host=h,a=1 v=1", "t2,host=h,a= v=1"),
    "no device": (PLAIN, "t3,host=h,a=1 v=1", "t3,host=,a=2 v=1"),
    "`=` in the device": (PLAIN, "t4,host=h v=1", "t4,host=h=i v=1"),
    "`=` in a tag": (PLAIN, "t5,a=1,host=h v=1", "t5,a=1=2,host=h v=1"),
    "the device twice": (PLAIN, "t6,host=h,a=1 v=1", "t6,host=h,host=1 v=1"),
    "another device first": (PLAIN, "t7,host=h,a=1 v=1", "t7,host=h,device_id=1 v=1"),
    "a tag twice": (PLAIN, "t8,a=1,host=h,b=1 v=1", "t8,a=1,host=h,a=1 v=1"),
    "unsorted tags": (PLAIN, "t9,b=1,a=1,host=h v=1", "t9,b=2,a=2,host=h v=1"),
    "long tag": (PLAIN, "t10,a=1,host=h v=1", f"t10,a={'x' * 255},host=h v=1,w=1"),
    "a mark in a tag": (PLAIN, "t11,a=1,host=h v=1", "t11,a=\\,,host=h v=1"),
    "a backslash in a tag": (PLAIN, "t12,a=1,host=h v=1", "t12,a=\\,host=h v=1"),
    "`é` in a tag": (PLAIN, "t13,a=1,host=h v=1", "t13,a=é,host=h v=1"),
    "a control character": (PLAIN, "t14,a=1,host=h v=1", "t14,a=\x01,host=h v=1"),
    "a measurement with `=`": (PLAIN, "t15=b,a=1,host=h v=1", "t15=b,a=2,host=h v=1"),
    "another spelling": (QUEST, "t16,host=h v=1", "t16,a\\b=x,host=i v=1\nt16,a\\b=x v=1"),
    "the default": (WITH_DEFAULT, "t17,a=1 v=1", "t17,a=2 v=1\nt17,host=i,a=1 v=1"),
}


@pytest.mark.parametrize("name", MISLEADING)
def test_what_is_kept_of_a_key_does_not_mislead(name: str) -> None:
    """Keys have much in common, but not all that they seem to."""
    naming, *bodies = MISLEADING[name]
    for body in map(str.encode, bodies):
        expected = expected_of(body, naming, None)
        found = points_of(body, naming)
        assert told_of(found) == expected
        if not isinstance(found, str) and name == "long tag":
            assert all(each.field is None for each in found.errors)


@given(body=st.binary(max_size=60), cut=st.integers(1, 20))
def test_any_bytes_are_read_as_the_oracle_reads_them(body: bytes, cut: int) -> None:
    """Bytes that are not UTF-8 too."""
    naming = Naming(TAGS, "gw")
    expected = expected_of(body, naming, None)
    assert told_of(points_of(body, naming)) == expected
    with cut_small(cut):
        assert told_of(points_of(body, naming)) == expected


@given(
    measurement=NAMES.filter(lambda name: name[0] != "#"),
    field=NAMES | st.just("value"),
    tags=st.dictionaries(NAMES, NAMES, max_size=3),
)
def test_metric_can_be_read_back(measurement: str, field: str, tags: dict[str, str]) -> None:
    """So two series never have the same metric."""
    text = escaped(measurement, ", \\")
    for pair in tags.items():
        text += ",{}={}".format(*(escaped(each, ",= \\") for each in pair))
    key = read_key(marked(text.encode(), "questdb"), Naming((), "gw"))
    assert isinstance(key, tuple)
    assert len(key) == 3
    assert read_back(key.metric(field)) == (measurement, field, tags)


def metrics_in(line: str) -> dict[str, float] | None:
    """Return the metrics of a line and their values; None if something is wrong."""
    points = points_of(line.encode(), Naming((), "gw"))
    if isinstance(points, str) or points.errors:
        return None
    rows = chain.from_iterable(decode_rows(block.tuples) for block in points.blocks)
    return {each.metric: each.value for each in rows}


def test_names_are_read_as_influxdb_and_others_read_them() -> None:
    """2,000 lines with backslashes and marks at each place."""
    different = []
    for line, meant, who in map(json.loads, CORPUS.read_text().splitlines()):
        expected = meant and {
            metric_of(meant[0], name, meant[1]): value
            for name, value in meant[2].items()
            if not isinstance(value, str)
        }
        if metrics_in(line) != expected:
            different.append((line, expected, who))
    assert not different
