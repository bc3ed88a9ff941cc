"""Tables of sources: what is refused at the start, and what single keys do."""

from __future__ import annotations

import math
from functools import partial
from time import thread_time as thread_s
from typing import Any

import orjson
import pytest

from ingest.formats.mapped.body import HINTED_MAX, MapPost, begin, decode, decode_item
from ingest.formats.mapped.rows import HINTS_MAX, STEP_PARTS
from ingest.formats.mapped.source import compile_source
from ingest.formats.post import Post
from ingest.formats.timestamp import text_us
from ingest.model.block import decode_rows
from ingest.model.errors import KeyFault, Refused
from tests.support.decode_cost import Cost, least_cost
from tests.support.posts import NOW_US, RULES

BASE = {"name": "s", "device": "id"}
# The commonest MQTT messages: a bare number, or an object with one.
MESSAGE = {"device": "$topic.2", "metric": "=m", "values": ".", "value": ["v", "."]}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "letters, digits"),
    ({"name": "line"}, "name", "another page"),
    ({"name": 5}, "name", "letters"),
    ({"preset": "ttm"}, "preset", "there are ttn, chirpstack"),
    ({"colour": 1}, "colour", "there are name, preset"),
    ({"path": "data"}, "path", "write it as in /my/{device}/data"),
    ({"path": "/{a}"}, "path", "is no path"),
    ({"path": "/x/{a"}, "path", "brace"),
    ({"path": "/x/{a}/{a}"}, "path", "twice"),
    ({"path": "/x/{1a}"}, "path", "number"),
    ({"rows": "a"}, "rows", r"ends in \[\]"),
    ({"rows": "a[].b[]"}, "rows", "is no path"),
    ({"device": []}, "device", "list of texts"),
    ({"device": "a..b"}, "device", 'write a.b, a.0 or "odd name".c'),
    ({"device": "$quer.a"}, "device", r"there is no \$quer"),
    ({"device": "x{a"}, "device", "has a brace without its partner"),
    ({"device": "$.id"}, "device", "begins with a name"),
    ({"device": "a[0]"}, "device", "as in a.0"),
    ({"device": "{a}{b"}, "device", "brace"),
    ({"device": "$header.Authorization"}, "device", r"use \$token.device"),
    ({"device": "$path.token"}, "device", r"use \$token.device"),
    ({"device": "$header"}, "device", "needs a name"),
    ({"device": "$topic.0"}, "device", r"write \$topic.1"),
    ({"device": "x-{$topic.a}"}, "device", r"write \$topic.1"),
    ({"device": "$topic.2.3"}, "device", r"write \$topic.1"),
    ({"time": 5}, "time", "write a text"),
    ({"time_unit": "s"}, "time_unit", "needs `time`"),
    ({"time": "t", "time_unit": "h"}, "time_unit", "none of s, ms"),
    ({"values": "a[]"}, "values", "needs `metric` and `value`"),
    ({"value": "v"}, "value", "needs `values`"),
    ({"only": "a", "except": 3}, "except", "list of texts"),
    ({"numeric_strings": "yes"}, "numeric_strings", "true or false"),
    ({"lists": 1}, "lists", "true or false"),
    ({"zone": "UTC"}, "zone", "needs `time`"),
    *(
        ({"time": "t", "zone": zone}, "zone", "write one like Europe/Berlin, or install tzdata")
        for zone in ("Europe/Berlinn", "Europe", "", "../../etc/passwd", 5)
    ),
    ({"when": "a"}, "when", "path ="),
    ({"when": {"a": []}}, "when", "are texts"),
    ({"when": {"a": {"b": 1}}}, "when", "are texts"),
]


@pytest.mark.parametrize(("table", "key", "why"), WRONG)
def test_wrong_table_names_its_key_and_what_to_write(
    table: dict[str, Any], key: str, why: str
) -> None:
    """Before any post comes."""
    with pytest.raises(KeyFault, match=why) as raised:
        compile_source({**BASE, **table})
    assert raised.value.key == key


def read(table: dict[str, Any], body: bytes, **roots: Any) -> tuple[list[Any], list[str]]:
    """Return the readings without their times, and the codes of the faults."""
    mapped = decode(body, map_post(table, roots))
    rows = [each[1:] for block in mapped.blocks for each in decode_rows(block.tuples)]
    return rows, [each.code for each in mapped.errors]


def map_post(table: dict[str, Any], roots: dict[str, Any] | None = None) -> MapPost:
    """Return what a post that was received at NOW_US is read with."""
    post = Post(None, False, NOW_US, 7.0, RULES)
    return MapPost(post, compile_source({**BASE, **table}), roots or {}, 100_000, 1 << 22)


@pytest.mark.parametrize(
    ("table", "body", "expected"),
    [
        ({"device": '"odd name"."a.b"'}, b'{"odd name":{"a.b":"d"},"v":1}', [("d", "v", 1.0)]),
        ({"device": "=cellar"}, b'{"v":1}', [("cellar", "v", 1.0)]),
        ({"device": 'x-{"odd name"}'}, b'{"odd name":7,"v":1}', [("x-7", "v", 1.0)]),
        (
            {"values": ".", "metric": "=t", "value": "."},
            b"21.5",
            [],
        ),
        (
            {"rows": "[]"},
            b'[[{"id":"a","v":1},{"id":"b","v":2}]]',
            [("a", "v", 1.0), ("b", "v", 2.0)],
        ),
        ({"only": ["t*"], "except": ["*x"]}, b'{"id":"a","t1":1,"tx":2,"h":3}', [("a", "t1", 1.0)]),
        (
            {"when": {"k": [1, "b"]}},
            b'[{"id":"a","k":"b","v":1},{"id":"a","k":2}]',
            [("a", "v", 1.0)],
        ),
        (
            {"tags": "tags", "device": "tags.h", "values": "f"},
            b'{"tags":{"h":"d","z":1,"a":"x,y"},"f":{"v":1}}',
            [("d", r"v,a=x\,y,z=1", 1.0)],
        ),
        ({"device": ["no", "$token.device"]}, b'{"v":true}', [("tok", "v", 1.0)]),
        *(
            ({**MESSAGE, "metric": ["m", "$topic.3"]}, body, [("hall", metric, value)])
            for body, metric, value in [
                (b"21.5", "temp", 21.5),
                (b" -3\n", "temp", -3.0),
                (b"[true]", "temp", 1.0),
                (b'{"v":21.5}', "temp", 21.5),
                (b'{"v":21.5,"m":"t"}', "t", 21.5),
            ]
        ),
        (
            {"lists": True, "except": ["*.z"]},
            b'{"id":"a","P":[31,0,"2"],"x":{"y":[[7],{"z":true},null]},"e":[]}',
            [("a", "x.y.0.0", 7.0), ("a", "P.0", 31.0), ("a", "P.1", 0.0)],
        ),
        ({"lists": True, "values": "d"}, b'{"id":"a","d":[1.5]}', [("a", "0", 1.5)]),
        ({**MESSAGE, "device": "$topic"}, b"1", [("sensors/hall/temp/", "m", 1.0)]),
        ({**MESSAGE, "device": ["$topic.4", "$topic.5", "=x"]}, b"1", [("x", "m", 1.0)]),
    ],
)
def test_key_does_what_the_page_says(
    table: dict[str, Any], body: bytes, expected: list[Any]
) -> None:
    """One case of each."""
    token = {"device": "" if "metric" in table else "tok"}
    rows, _ = read(table, body, token=token, topic="sensors/hall/temp/")
    assert rows == expected


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"id":"a","x":1e400}', "value_out_of_range"),
        (b'{"id":"a","%b":1}' % (b"x" * 300), "name_too_long"),
        (b'{"id":"a","x\\u0000":1}', "name_control_character"),
        (b'{"id":"a","x":{"y":1},"x.y":2}', "repeated_field"),
        (b'{"id":"a","x":1,"x":2}', "repeated_field"),
        (b'{"id":"a","x":{"":1,"\\u0022:":1},"y" :1,"y":2}', "repeated_field"),
        (b'{"id":"a","x\\u003a":1,"x:":2}', "repeated_field"),
        (b'{"id":"a","x\\\\u003a":1,"x\\\\u003a":2}', "repeated_field"),
        (b'{"id":"a","x":1,"x":2,"y":1e400,"z":%b}' % (b"9" * 30), "repeated_field"),
        (b'{"id":"%b","x":1}' % (b"x" * 600), "name_too_long"),
        (b'{"id":true,"x":1}', "no_device"),
        (b'{"id":"a"}', "no_value"),
        (b"id=a&x=1&x=2", "repeated_field"),
        (b'"text"', "no_device"),
        (b'{"id":"a","x":1}\n{"id":', "document_unreadable"),
    ],
)
def test_fault_of_a_document_is_named(body: bytes, code: str) -> None:
    """It is a dead letter, and the answer is 200 all the same."""
    _, codes = read({"numeric_strings": True}, body)
    assert codes == [code]


@pytest.mark.parametrize(
    ("unit", "time", "expected"),
    [
        (None, b"1777636800", 1777636800000000),
        (None, b'"1777636800123"', 1777636800123000),
        ("s", b"1777636800.12", 1777636800120000),
        ("us", b"1777636800000001", 1777636800000001),
        ("ns", b"1777636800000001500", 1777636800000002),
        ("utc", b'"2026-05-01 12:00:00"', 1777636800000000),
        ("utc", b'"2026-05-01T14:00:00+02:00"', 1777636800000000),
        (None, b'"2026-05-01 12:00:00"', "ts_without_offset"),
        (None, b'"soon"', "ts_unreadable"),
        (None, b"{}", "ts_unreadable"),
        ("s", b"12", "ts_too_old"),
        ("s", b"1e300", "ts_in_future"),
        (None, b'""', NOW_US),
        (None, b"null", NOW_US),
    ],
)
def test_time_is_read_in_its_unit(unit: str | None, time: bytes, expected: int | str) -> None:
    """Without a unit its size decides; without a time it is that of the receipt."""
    table = {"time": "t", **({"time_unit": unit} if unit else {})}
    mapped = decode(b'{"id":"a","v":1,"t":%b}' % time, map_post(table))
    if isinstance(expected, str):
        assert [each.code for each in mapped.errors] == [expected]
    else:
        (row,) = decode_rows(mapped.blocks[0].tuples)
        assert row.ts_us == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-07-01T12:00:00", "2026-07-01T10:00:00Z"),
        ("2026-01-01 12:00:00.25", "2026-01-01T11:00:00.25Z"),
        ("2026-07-01T12:00:00-03:00", "2026-07-01T15:00:00Z"),
        ("2026-03-29T02:30:00", "2026-03-29T01:30:00Z"),  # there is no such time
        ("2026-10-25T01:59:59", "2026-10-24T23:59:59Z"),
        ("2026-10-25T02:30:00", "2026-10-25T00:30:00Z"),  # this one comes twice: the first
        ("2026-10-25T03:00:00", "2026-10-25T02:00:00Z"),
        ("9999-12-31T23:59:60", "ts_in_future"),
        ("0001-01-01T00:00:00", "ts_too_old"),
        ("2026-07-01T12:00:00." + "1" * 44, "ts_unreadable"),
    ],
)
def test_local_time_is_read_in_the_zone_of_the_source(time: str, expected: str) -> None:
    """Also in the hours when the clocks change."""
    table = {"time": "t", "zone": "Europe/Berlin"}
    post = map_post(table)
    mapped = decode(orjson.dumps({"id": "a", "v": 1, "t": time}), post)
    if expected.startswith("ts_"):
        assert [each.code for each in mapped.errors] == [expected]
    else:
        (row,) = decode_rows(mapped.blocks[0].tuples)
        assert row.ts_us == text_us(expected)
    assert decode(b'{"id":"a","v":1,"t":1777636800}', post).blocks


def test_what_may_not_be_meant_is_hinted_at() -> None:
    """Each name once with its count; a bounded number of names, and of documents."""

    def hints(body: bytes, **table: Any) -> list[str]:
        return [*decode(body, map_post(table)).hints]

    body = (
        b'[{"id":"1","a":{"t":"21.4"},"ts":12},'
        b'{"id":"2","a":{"t":"1e3"},"l":[1],"n":["x"],"s":"on"}]'
    )
    in_quotes = "`a.t` is a number in quotes, not stored: numeric_strings = true (2 x)"
    a_list = "`l` is a list, not stored: lists = true (1 x)"
    a_time = "`ts` looks like a time, and the source has none: time = 'ts' (1 x)"
    assert hints(body) == [a_time, in_quotes, a_list]
    assert hints(body, time="ts", numeric_strings=True, lists=True) == []
    assert [
        each.split("`")[1]
        for each in hints(b'{"id":"a","When":1,"s":1764600000,"ms":1.7e12,"n":2147483647,"u":9e99}')
    ] == ["When", "s", "ms"]
    assert hints(body, only=["ts", "l*"]) == [a_time, a_list]
    assert hints(body, **{"except": ["ts", "a.*"]}) == [a_list]
    failed = b'{"id":"a","a":"NaN","b":" -inf","c":"","d":null,"on":"on","v":1}'
    assert [each[:3] for each in hints(failed)] == ["`a`", "`b`", "`c`", "`d`"]
    assert (hints(failed, numeric_strings=True), hints(failed, only="v")) == (hints(failed), [])
    many = b",".join(b'{"id":"a","v%d":"1","%b":1}' % (at, b"x" * 200) for at in range(500))
    assert len(hints(b"[%b]" % many)) == HINTS_MAX
    assert hints(b'{"id":"a","v":"1","w":1}\n' * 500)[0].endswith(f"({HINTED_MAX} x)")
    entries = {"values": "l[]", "metric": "n", "value": "v"}
    (hint,) = hints(b'{"id":"a","l":[{"n":"t","v":"1"},{"n":"u","v":[1]},{"n":"w"}]}', **entries)
    assert hint.startswith("`t` is a number in quotes")
    (hint,) = hints(b'{"id":"a","l":[{"n":"t","v":"nan"},{"n":"u","v":1}]}', **entries)
    assert hint == "`t` is a text or null, no number: not stored (1 x)"
    assert len(hints(b'{"id":"a","t":"21.4"}')) == 1  # beside the fault, no_value


HALF = 500 * 1024
HOSTILE = {
    "many keys": b'{"id":"a",%b}' % b",".join(b'"k%d":1' % at for at in range(HALF // 12)),
    "many names": b"[%b]" % b",".join(b'{"id":"%d","v":1}' % at for at in range(4_000)),
    "deep": b'{"id":"a","x":%b1%b}' % (b'{"%b":' % (b"y" * 400) * 900, b"}" * 900),
    "one large list": b'{"id":"a","x":[%b1]}' % (b"1," * 90_000),
    "lists in lists": b'{"id":"a","x":%b%b}' % (b"[1," * 900, b"]" * 900),
    "many faults": b'[{"id":"a","v":1},%b1]' % (b"1," * 10_000),
    "long name": b'{"id":"a","%b":1}' % (b"x" * HALF),
    "lines": b'{"id":"a","v":1}\n' * 4_000,
    "one line feed each": b'{"v":1}' + b"\n" * HALF,
    "no JSON": b"{" * HALF,
    "numbers in texts": b'{"id":"a",%b}' % b",".join(b'"k%d":"1e5"' % at for at in range(20_000)),
    "escapes": b'{"id":"a","v":1,"\\u003a":"%b"}' % (b"\\\\" * (HALF // 2)),
    "twice": b'{"id":"a",%b}' % b",".join([b'"k":1'] * 60_000),
}
STEP_S_MAX = 0.010


@pytest.mark.parametrize("name", HOSTILE)
def test_body_takes_short_steps(name: str) -> None:
    """Whatever it has: others wait for so long."""
    post = map_post({"numeric_strings": True, "lists": True})
    step_s = least_cost(partial(begin, HOSTILE[name], post), 24, Cost(math.inf, STEP_S_MAX)).step_s
    assert step_s <= STEP_S_MAX


def test_globs_are_remembered_up_to_a_bound() -> None:
    """Devices may invent names for ever."""
    source = compile_source({**BASE, "only": "a*"})
    assert source.wants is not None
    assert [source.wants(f"a{at}") for at in range(5_000)] == [True] * 5_000
    assert not source.wants("b")


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"\\u003c","v":1}',
        b'{"id":"<","v":1,"a\\u003A":"\\\\u003a\\\\\\u003a"}',
        b'{"id":"<" , "v" : 1,"text":"\\":"}',
        b'{"id":"<","v":1,"deep":%b0%b}' % (b"[" * 400, b"]" * 400),
    ],
)
def test_odd_document_without_a_fault_is_read(body: bytes) -> None:
    """Escapes, blanks before colons, colons in texts, and deep lists are no names that repeat."""
    assert read({}, body) == ([("<", "v", 1.0)], [])


def test_letter_of_a_large_document_has_what_stands_around_its_rows() -> None:
    """The time of the rows without one is that of the document."""
    tags = b",".join(b'"d%d":{"v":%d}' % (at, at) for at in range(900))
    body = b'{"data":{"timestamp":1777636800,"tags":{%b,"":{"v":5}}}}' % tags
    post = map_post({"preset": "ruuvi", "device": "$key"})
    points = decode(body, post)
    (error,) = points.errors
    assert error.original == b'{"data":{"timestamp":1777636800,"tags":{"":{"v":5}}}}'
    assert sum(each.rows for each in points.blocks) == 900
    assert decode_item(error.original, post.source, {}, post.post).errors[0].code == "no_device"


@pytest.mark.parametrize("times_us", [(NOW_US - 9,), (NOW_US - 9, NOW_US - 5)])
def test_document_without_a_time_has_that_of_its_message(times_us: tuple[int, ...]) -> None:
    """Who posts for others says when it got what; a time in the document is better."""
    post = map_post({"time": "t"})._replace(times_us=times_us)
    body = b'[{"id":"a","v":1},{"id":"a","v":1},{"id":"a","v":1,"t":1777636800}]'
    (block,) = decode(body, post).blocks
    found = [each.ts_us for each in decode_rows(block.tuples)]
    assert found == [times_us[0], times_us[-1], 1777636800_000_000]


@pytest.mark.parametrize(
    ("time_us", "code"), [(0, "ts_too_old"), (10**17 - 1, "ts_in_future"), (NOW_US + 1, None)]
)
def test_time_of_a_message_has_the_limits_of_all_times(time_us: int, code: str | None) -> None:
    """The clock of who posts it may be wrong."""
    mapped = decode(b'{"id":"a","v":1}', map_post({})._replace(times_us=(time_us,)))
    assert [each.code for each in mapped.errors] == ([code] if code else [])


def test_letter_of_a_large_list_of_rows_is_the_whole_list() -> None:
    """Its rows are at a place in a list, and not in an object."""
    body = b'[[[{"id":"a","v":1,"pad":"%b"},{"id":"","v":2}]]]' % (b"x" * 9_000)
    points = decode(body, map_post({"rows": "0[]"}))
    assert [each.code for each in points.errors] == ["no_device"]
    assert points.errors[0].original == body[1:-1]


def rows_below(shared: bytes) -> bytes:
    """Return a document with 3,000 rows, and what all of them share."""
    return b'{%b,"rows":[%b]}' % (shared, b",".join([b'{"v":1}'] * 3_000))


@pytest.mark.parametrize(
    ("key", "shared"),
    [
        ("tags", b"{%b}" % b",".join(b'"t%d":"a"' % at for at in range(3_000))),
        ("time", b'"%b"' % (b" " * HALF)),
    ],
)
def test_what_rows_share_is_not_read_for_each_of_them(key: str, shared: bytes) -> None:
    """Else a small body would keep the service busy for minutes."""
    began_s = thread_s()
    table = {"rows": "rows[]", "device": "=a", key: "^x"}
    _, codes = read(table, rows_below(b'"x":%b' % shared))
    assert codes == ["name_too_long" if key == "tags" else "ts_unreadable"]
    assert thread_s() - began_s < 1.0


def test_values_that_rows_share_count_for_each_of_them() -> None:
    """They are counted before they fill the memory."""
    post = map_post({"rows": "rows[]", "device": "=a", "values": "^x"})._replace(rows_max=50_000)
    shared = b",".join(b'"k%d":1' % at for at in range(3_000))
    began_s = thread_s()
    with pytest.raises(Refused, match="50000"):
        decode(rows_below(b'"x":{%b}' % shared), post)
    assert thread_s() - began_s < 1.0


def test_shared_values_that_are_no_numbers_count_too() -> None:
    """A body of 20 kB would be read for a minute, and give no reading."""
    table = {"rows": "rows[]", "device": "=a", "values": "^x[]", "metric": "n", "value": "v"}
    shared = b'"x":[%b]' % b",".join([b'{"n":"a"}'] * 500)
    with pytest.raises(Refused, match="share values") as raised:
        decode(rows_below(shared), map_post(table)._replace(rows_max=5_000))
    assert raised.value.code == "too_many_readings"


@pytest.mark.parametrize("documents", [1, 1_000])
def test_shared_values_are_counted_wherever_a_step_ends(documents: int) -> None:
    """A row with as many parts as a step has, or many documents that are smaller than a step."""
    table = {"rows": "rows[]", "device": "=a", "values": "^x[]", "metric": "n", "value": "v"}
    entries = [b'{"n":"a","v":1}', *[b"{}"] * (STEP_PARTS - 2)]
    body = rows_below(b'"x":[%b]' % b",".join(entries))
    if documents > 1:
        body = b"[%b]" % b",".join([b'{"x":[%b1],"rows":[%b1]}' % (b"1," * 15, b"1," * 15)] * 1_000)
    with pytest.raises(Refused, match="share values"):
        decode(body, map_post(table)._replace(rows_max=5_000))


@pytest.mark.parametrize("code", ["too_many_readings", "body_too_large"])
def test_post_with_too_much_is_refused(code: str) -> None:
    """Nothing of it is kept."""
    post = map_post({})
    post = (
        post._replace(rows_max=5)
        if code == "too_many_readings"
        else post._replace(rows_bytes_max=99)
    )
    with pytest.raises(Refused) as raised:
        decode(b'[%b{"id":"a","v":1}]' % (b'{"id":"a","v":1},' * 9), post)
    assert raised.value.code == code
