"""Laws of mappings: any valid table reads any document as an independent oracle reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.formats.mapped.body import MapPost, begin, decode, decode_item
from ingest.formats.mapped.source import compile_source
from ingest.formats.post import Points, Post
from ingest.model.block import decode_rows
from ingest.model.errors import KeyFault, Refused
from tests.support.examples import examples
from tests.support.map_oracle import Oracle
from tests.support.map_oracle_bodies import parsed
from tests.support.posts import NOW_US, RULES

ROOTS = {
    "query": {"a": "q", "t": "1777636800"},
    "token": {"device": "tok"},
    "path": {"device": "p"},
    "topic": "x//d2",
}
TIMES = ("2026-05-01T12:00:00Z", "2026-05-01T14:00:00.5+02:00", "2026-05-01 12:00:60")
NAMES = st.sampled_from(["a", "b", "c", "t", "tags", "x", ""])
LEAVES = st.one_of(
    st.sampled_from(
        ["12", "-1.5e3", ".5", "1.", "x", "", "now", *TIMES, "1777636800", "9" * 60, "1e999"]
    ),
    st.sampled_from([0, 1, -0.0, 1.5, 1e308, 2**53 + 1, 2**64, -(2**63), 5, 1777636800123, 10**30]),
    st.booleans(),
    st.none(),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
)
PARTS = st.recursive(
    LEAVES,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, PARTS, max_size=5)
USUAL = st.fixed_dictionaries(
    {"a": st.sampled_from(["d1", 7]) | OBJECTS | st.lists(OBJECTS, max_size=3), "b": PARTS},
    optional={"t": LEAVES, "c": PARTS},
)
DOCUMENTS = USUAL | OBJECTS | PARTS
PATHS = st.sampled_from(
    [
        *(".", "a", "b", "t", "a.b", "a.0", "c.x", "^a", "^b.c", "^.", "$key", "$query.a"),
        *("$query.t", "$path.device", "$token.device", "tags.x"),
        *("$topic", "$topic.1", "$topic.2", "$topic.3", "$topic.4"),
    ]
)
TEXTS = PATHS | st.sampled_from(["{a}-{b}", "x-{t}", "{$key}", "=fixed", "{^a}.{$key}"])
MANY = st.sampled_from(["a[]", "b{}", "a.b[]", "[]", "{}", "^a[]", "^b{}", "c.x{}"])
GLOBS = st.lists(
    st.sampled_from(["a", "*b*", "?", "a.*", "[ab]", "*", "t"]), min_size=1, max_size=2
)
WANTED = st.sampled_from(["*", "x", 1, True, "12", [1, "x"], [False]])


def some(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Draw a text or a list of texts."""
    return texts | st.lists(texts, min_size=1, max_size=2)


BASES = st.fixed_dictionaries(
    {"name": st.just("s")},
    optional={
        "rows": MANY,
        "device": some(TEXTS),
        "time": some(PATHS),
        "only": GLOBS,
        "except": GLOBS,
        "numeric_strings": st.booleans(),
        "lists": st.booleans(),
        "tags": some(PATHS),
        "when": st.dictionaries(PATHS, WANTED, max_size=1),
    },
)
VALUES = st.one_of(
    st.fixed_dictionaries({}, optional={"values": some(PATHS), "metric": TEXTS}),
    st.fixed_dictionaries(
        {"values": some(MANY | PATHS), "metric": some(TEXTS), "value": some(TEXTS)}
    ),
)


@st.composite
def a_table(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a valid table."""
    table = {**draw(BASES), **draw(VALUES)}
    if "time" in table and draw(st.booleans()):
        table["time_unit"] = draw(st.sampled_from(["s", "ms", "us", "ns", "utc"]))
    return table


def map_post(table: dict[str, Any]) -> MapPost:
    """Return what a post that was received at NOW_US is read with."""
    post = Post(None, False, NOW_US, 7.0, RULES)
    return MapPost(post, compile_source(table), ROOTS, 1_000, 1 << 20)


def told(mapped: Points) -> tuple[list[Any], list[str], int, int]:
    """Return what the oracle knows of a result, in its form."""
    rows = [tuple(each) for block in mapped.blocks for each in decode_rows(block.tuples)]
    codes = [
        code for each in mapped.errors for code in (each.code, *(code for _, code in each.also))
    ]
    return sorted(rows), sorted(codes), mapped.ignored, mapped.rounded


@examples(200)
@given(table=a_table(), document=DOCUMENTS)
@example(table={"name": "s", "device": "a", "values": "."}, document={"a": "d", "b": 1, "t": "x"})
@example(
    table={"name": "s", "time": "t", "time_unit": "ns"}, document={"t": 1777636800000001500, "b": 2}
)
@example(
    table={"name": "s", "rows": "b{}", "device": "$key", "values": "."},
    document={"b": {"x": {"a": 1}}},
)
def test_any_table_reads_any_document_as_the_oracle_reads_it(
    table: dict[str, Any], document: Any
) -> None:
    """Readings bit by bit, codes of faults, events left out, rounded integers."""
    body = json.dumps([document]).encode()
    oracle = Oracle(table, ROOTS, NOW_US, RULES.ts_min_us, NOW_US + RULES.ts_ahead_us_max)
    expected = oracle.read(parsed(body)[0])
    readings, codes, ignored, rounded = told(decode(body, map_post(table)))
    assert readings == sorted(expected.readings)
    assert codes == sorted(expected.faults)[:10] or len(expected.faults) > 10
    is_silent = not (expected.readings or expected.faults or expected.ignored)
    assert ignored == expected.ignored + is_silent
    assert rounded == expected.rounded


@examples(60)
@given(
    table=a_table(),
    body=st.binary(max_size=60)
    | st.text('{}[]",:=&\n\\ab1.e-tu\ud800'.replace("\ud800", ""), max_size=60).map(str.encode)
    | DOCUMENTS.map(json.dumps).map(str.encode),
)
def test_any_body_is_read_or_refused(table: dict[str, Any], body: bytes) -> None:
    """Nothing but Refused is raised, and a letter can be replayed alone with the same result."""
    post = map_post(table)
    try:
        mapped = decode(body, post)
    except Refused:
        return
    for error in mapped.errors:
        try:
            again = decode_item(error.original, post.source, ROOTS, post.post)
        except Refused:
            continue
        assert any(each.code == error.code for each in again.errors)


@examples(40)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=6), table=a_table())
def test_list_and_lines_are_read_alike(documents: list[Any], table: dict[str, Any]) -> None:
    """As an array, and as a line for each."""
    objects = [each for each in documents if isinstance(each, dict)]
    if len(objects) < 2:
        return
    lines = b"\n".join(json.dumps(each).encode() for each in objects)
    array = json.dumps(objects).encode()
    assert told(decode(lines, map_post(table))) == told(decode(array, map_post(table)))


@examples(60)
@given(
    table=st.dictionaries(
        st.sampled_from(
            ["name", "rows", "device", "time", "values", "value", "metric", "when", "x"]
        ),
        st.recursive(
            st.text('a.{}[]$^"=* ', max_size=8) | st.integers() | st.booleans(),
            lambda each: (
                st.lists(each, max_size=2) | st.dictionaries(st.text(max_size=3), each, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_any_table_is_compiled_or_its_key_is_named(table: dict[str, Any]) -> None:
    """A table that compiles never fails with a document."""
    try:
        source = compile_source({"name": "s", **table})
    except KeyFault as fault:
        keys = {*table, "name", "values", "metric", "time"}
        if fault.key not in keys:
            raise
        return
    post = Post(None, False, NOW_US, 7.0, RULES)
    begin(b'{"a":{"b":[1,{"a":2}]},"t":"x"}', MapPost(post, source, ROOTS, 100, 1 << 20))


def test_number_is_read_alike_whatever_stands_beside_it() -> None:
    """An integer of more than 64 bits is a float, also beside a number that no float64 holds."""
    table = {"name": "s", "device": "d", "values": "."}
    alone = b'{"d":18446744073709551616,"a":1000000000000000000000000000001}'
    rows, _, _, rounded = told(decode(b"[%b]" % alone, map_post(table)))
    assert rows
    assert not rounded
    beside, codes, _, also_rounded = told(
        decode(b'[%b,{"d":1,"a":1e999}]' % alone, map_post(table))
    )
    assert (beside, codes, also_rounded) == (rows, ["value_out_of_range"], 0)


def test_letter_of_a_large_document_keeps_a_number_that_does_not_fit() -> None:
    """It is not written again as null, which is no fault."""
    rows = b'{"d":"x","a":1e999},' + b",".join([b'{"d":"x","a":1}'] * 600)
    post = map_post({"name": "s", "rows": "r[]", "device": "d", "values": "."})
    (error,) = decode(b'{"r":[%b]}' % rows, post).errors
    again = decode_item(error.original, post.source, ROOTS, post.post)
    assert [each.code for each in again.errors] == [error.code] == ["value_out_of_range"]


@pytest.mark.parametrize("body", [b'"a":1,"b":"x=y"}', b'a":1,"b=":2}', b"<v a='1'/>", b"[a=1"])
def test_json_that_lost_its_beginning_is_no_form(body: bytes) -> None:
    """Also if a text in it has a `=`."""
    with pytest.raises(Refused) as refused:
        decode(body, map_post({"name": "s", "device": "=d"}))
    assert refused.value.code == "not_json"
