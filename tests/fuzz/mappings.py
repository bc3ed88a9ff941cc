"""Random tables of sources, and random bodies for them; and how they are compared with the oracle.

A table is drawn with each body. Some are presets, with a body of its sender.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from ingest.formats.mapped.body import MapPost, decode, decode_item
from ingest.formats.mapped.documents import UNREADABLE
from ingest.formats.mapped.source import PRESETS, compile_source
from ingest.formats.post import Points, Post, most_invalid
from ingest.model.block import decode_rows, encode_reading
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.model.errors import Refused
from ingest.model.reading import Reading
from tests.support.map_bodies import BODIES
from tests.support.map_oracle import Expected, Oracle
from tests.support.map_oracle_bodies import NOT_JSON, Bad, Unknown, documents_of
from tests.support.posts import NOW_US, RULES

FORBIDDEN = "q"
FAULTS_TOLD = 10  # of a document
LETTERS_READ = 4  # of a body
SLICED_BYTES_MIN = 32 * 1024
ROWS_MAX, ROWS_BYTES_MAX = 100_000, 1 << 26
NAMES = ("a", "b", "c", "t", "tags", "x", "a.b", "ä", "", "\x01")
TEXTS = ("12", "-1.5e3", " .5", "1.", "x", "q", "", "now", "1777636800", "1777636800.25", "9" * 60)
TIMES = ("2026-05-01T12:00:00Z", "2026-05-01 14:00:00.0000005+02:00", "2026-05-01T12:00:60")
NUMBERS = (0, 1, -0.0, 21.5, 5e-324, 1e308, 2**53 + 1, 2**64, 1777636800, 1777636800123, 10**30)
PATHS = (
    *("a", "b", "c", "t", "a.b", "a.0", "c.x", "^a", "^b.c", ".", "^.", "$key", "tags.x"),
    *("$query", "$query.a", "$query.t", "$path.device", "$token.device", "$header.x-s"),
    *("$topic", "$topic.1", "$topic.2", "$topic.4", "$form.a"),
)
PATTERNS = ("{a}-{b}", "x-{t}", "{$key}", "=fixed", "{^a}.{$key}", "{tags.x}/{c}")
MANY = ("a[]", "b{}", "a.b[]", "[]", "{}", "^a[]", "^b{}", "c.x{}", "tags{}")
GLOBS = ("a", "*b*", "?", "a.*", "[ab]", "*", "t", "[!a]*")
WANTED: tuple[Any, ...] = ("*", "x", 1, True, "12", [1, "x"], [False], 12, 21.5)
ROOTS = (
    {"query": {"a": "q", "t": "1777636800"}, "token": {"device": "tok"}, "topic": "x//d2"},
    {"path": {"device": "p"}, "header": {"x-s": "h"}, "topic": "a/ä/c/d/e"},
    {"token": {"device": ""}, "query": {}},
)


class Case(NamedTuple):
    """A table, what comes beside the body, and the body."""

    table: dict[str, Any]
    roots: dict[str, Any]
    body: bytes


def a_leaf(chance: random.Random) -> Any:
    """Return a value that is no list and no object."""
    kind = chance.random()
    if kind < 0.45:
        return chance.choice(NUMBERS)
    if kind < 0.85:
        return chance.choice(TIMES if kind < 0.55 else TEXTS)
    return chance.choice((True, False, None, chance.uniform(-9, 9)))


def a_part(chance: random.Random, depth: int) -> Any:
    """Return a value, a list or an object."""
    kind = chance.random()
    if depth <= 0 or kind < 0.5:
        return a_leaf(chance)
    if kind < 0.65:
        return [a_part(chance, depth - 1) for _ in range(chance.randrange(4))]
    return an_object(chance, depth - 1)


def an_object(chance: random.Random, depth: int) -> dict[str, Any]:
    """Return an object."""
    names = NAMES if chance.random() < 0.3 else NAMES[:6]
    return {chance.choice(names): a_part(chance, depth) for _ in range(chance.randrange(5))}


def a_document(chance: random.Random) -> Any:
    """Return a document; most are objects with a device."""
    if chance.random() < 0.05:
        return a_part(chance, 2)
    document = an_object(chance, 2)
    if chance.random() < 0.8:
        document["a"] = chance.choice(("d1", 7, {"b": "d2"}, [{"a": "d3", "x": 1}]))
    return document


def some(chance: random.Random, texts: tuple[str, ...]) -> Any:
    """Return a text, or a list of two."""
    return chance.choice(texts) if chance.random() < 0.7 else chance.choices(texts, k=2)


def a_table(chance: random.Random) -> dict[str, Any]:
    """Return a valid table."""
    both = PATHS + PATTERNS
    table: dict[str, Any] = {"name": "s"}
    if chance.random() < 0.8:
        table["device"] = "a" if chance.random() < 0.4 else some(chance, both)
    if chance.random() < 0.5:
        table["time"] = "t" if chance.random() < 0.5 else some(chance, PATHS)
        if chance.random() < 0.4:
            table["time_unit"] = chance.choice(("s", "ms", "us", "ns", "utc"))
    if chance.random() < 0.25:
        table["values"], table["value"] = some(chance, MANY + PATHS), some(chance, both)
        table["metric"] = some(chance, both)
    else:
        if chance.random() < 0.6:
            table["values"] = some(chance, PATHS)
        if chance.random() < 0.3:
            table["metric"] = some(chance, both)
    for key, part, texts in (("only", 0.1, GLOBS), ("except", 0.2, GLOBS), ("tags", 0.3, PATHS)):
        if chance.random() < part:
            table[key] = some(chance, texts)
    if chance.random() < 0.25:
        table["rows"] = chance.choice(MANY)
    if chance.random() < 0.4:
        table["numeric_strings"] = chance.random() < 0.8
    table["lists"] = chance.random() < 0.3
    if chance.random() < 0.15:
        table["when"] = {chance.choice(PATHS): chance.choice(WANTED)}
    return table


def a_case(chance: random.Random) -> Case:
    """Return a table, and a body for it."""
    roots = chance.choice(ROOTS)
    if chance.random() < 0.15:
        name = chance.choice(tuple(BODIES))
        body, beside, _ = BODIES[name]
        return Case({"preset": name}, {**roots, **beside}, body.encode())
    table = a_table(chance)
    kind = chance.random()
    if kind < 0.1:
        names = chance.sample(NAMES, chance.randrange(1, 6))
        form = {name: str(chance.choice((*NUMBERS, *TEXTS, *TIMES))) for name in names}
        return Case(table, roots, a_form(form))
    documents = [a_document(chance) for _ in range(chance.choice((1, 1, 1, 2, 4)))]
    if kind < 0.4:
        return Case(table, roots, json.dumps(documents[0]).encode())
    if kind > 0.999:  # a large document; its letter has only the rows with a fault
        rows = [a_document(chance) for _ in range(9)]
        table = {**table, "rows": "b{}" if chance.random() < 0.3 else "b[]"}
        many = rows * (1 + 9_000 // len(json.dumps(rows)))
        document: dict[str, Any] = {"a": "d1", "b": many}
        if table["rows"] == "b{}":
            document["b"] = {f"row-{at}": row for at, row in enumerate(many)}
        return Case(table, roots, json.dumps(document).replace("1e+308", "1e+999").encode())
    is_escaped = chance.random() < 0.5
    texts = [json.dumps(each, ensure_ascii=is_escaped) for each in documents]
    if chance.random() < 0.1:
        texts = [each.replace("1e+308", "1e999") for each in texts]
    if kind > 0.998:  # a large body is cut into slices
        texts *= 1 + 70_000 // (sum(map(len, texts)) + 1)
    if kind < 0.7:
        return Case(table, roots, chance.choice(("\n", "\r\n", "\n \n")).join(texts).encode())
    return Case(table, roots, b"[%b]" % chance.choice((",", " ,\n")).join(texts).encode())


def a_form(fields: Any) -> bytes:
    """Return a form."""
    return "&".join(f"{quote_plus(name)}={quote_plus(fields[name])}" for name in fields).encode()


def compare(case: Case) -> str:
    """Compare one body with the oracle; return what became of it."""
    post = Post(None, False, NOW_US, 7.0, RULES, allows=lambda device: device != FORBIDDEN)
    read = MapPost(post, compile_source(case.table), case.roots, ROWS_MAX, ROWS_BYTES_MAX)
    try:
        expected = expected_of(case)
    except Unknown:
        expected = None
    try:
        mapped = decode(case.body, read)
    except Refused as refused:
        if not is_right_refusal(refused.code, case, expected):
            raise AssertionError(case) from refused
        return "refused"
    assert all(each.code in ITEM_CODES for each in mapped.errors), case
    compare_letters(case, read, mapped)
    if expected is None:
        return "with faults"
    assert not isinstance(expected, str), case
    compare_documents(case, mapped, expected)
    return "readings" if mapped.blocks and not mapped.errors else "with faults"


def expected_of(case: Case) -> list[Expected] | str:
    """Return what the oracle says of each document, or NOT_JSON. Raises Unknown."""
    documents = documents_of(case.body)
    if isinstance(documents, str):
        return documents
    table = {**PRESETS.get(case.table.get("preset", ""), {}), **case.table}
    latest_us = NOW_US + RULES.ts_ahead_us_max
    oracle = Oracle(table, case.roots, NOW_US, RULES.ts_min_us, latest_us, forbidden=FORBIDDEN)
    return [
        Expected([], [each.code], 0, 0) if isinstance(each, Bad) else oracle.read(each)
        for each in documents
    ]


def is_right_refusal(code: str, case: Case, expected: list[Expected] | str | None) -> bool:
    """Whether a body may be refused so: it is not JSON, or begins with very many faults."""
    if code == "invalid_items" and expected is not None and not isinstance(expected, str):
        heads = itertools.takewhile(lambda each: not each.readings, expected)
        return sum(bool(each.faults) for each in heads) > most_invalid(len(case.body))
    if expected == NOT_JSON and len(case.body) > SLICED_BYTES_MIN:
        return code in (NOT_JSON, "invalid_items")  # whichever it meets first
    return 400 <= PROBLEMS[code].status < 500 and expected in (None, code)


def compare_documents(case: Case, mapped: Points, expected: list[Expected]) -> None:
    """Compare the readings and the faults of each document, and what is counted."""
    rows = []
    for block in mapped.blocks:
        items = range(block.rows) if block.items is None else block.items
        rows += list(zip(items, map(encode_reading, decode_rows(block.tuples)), strict=True))
    wanted = [
        (at, encode_reading(Reading(*each)))
        for at, document in enumerate(expected)
        for each in document.readings
    ]
    assert sorted(rows) == sorted(wanted), case
    errors = mapped.errors
    faulty = [(at, each.faults) for at, each in enumerate(expected) if each.faults]
    assert len(errors) + mapped.not_kept == len(faulty), case
    for error, (at, faults) in zip(errors, faulty, strict=False):
        codes = sorted([error.code, *(code for _, code in error.also)])
        assert error.item == at, case
        is_whole = len(faults) <= FAULTS_TOLD
        assert codes == sorted(faults) if is_whole else {*codes} <= {*faults}, case
    ignored = [each.ignored or not (each.readings or each.faults) for each in expected]
    assert mapped.ignored == (sum(ignored) if expected else 1), case
    assert mapped.rounded == sum(each.rounded for each in expected), case


def compare_letters(case: Case, read: MapPost, mapped: Points) -> None:
    """A document with a fault, read again alone as a dead letter, has the same faults again."""
    for error in mapped.errors[:LETTERS_READ]:
        is_json = error.code == UNREADABLE  # a line like a=5 is no form when it is alone
        try:
            again = decode_item(error.original, read.source, case.roots, read.post, is_json=is_json)
        except Refused as refused:
            is_not_json = is_json and refused.code == "not_json"
            assert is_not_json, case
        else:
            told = [(each.code, {code for _, code in each.also}) for each in again.errors]
            assert told == [(error.code, {code for _, code in error.also})], case
