"""The formats of loadgen: the service reads the same readings out of each of them."""

from __future__ import annotations

import itertools
import tomllib

import pytest

from ingest.formats.line_protocol import LinePost, decode
from ingest.formats.line_series import Naming
from ingest.formats.map_post import MapPost
from ingest.formats.map_post import decode as map_decode
from ingest.formats.map_source import compile_source
from ingest.model.reading import Reading
from ingest.model.rows import decode_rows
from loadgen.proof.readings import Names, Plan
from loadgen.traffic.encode import FORMATS
from loadgen.traffic.post import head_of, path_for, target_of
from loadgen.traffic.traffic import GOOD, MIXED, Recipe, Traffic
from tests.support.documents import REPOSITORY, fences
from tests.support.encodings import decoded, post
from tests.support.posts import NOW_US, readings_of

(SOURCE,) = (
    each.text
    for each in fences((REPOSITORY / "docs" / "loadgen.md").read_text())
    if each.text.startswith("[[source]]")
)


def readings_in(name: str, body: bytes) -> list[Reading]:
    """Return what the service reads out of a body."""
    if name == "mapped":
        source = compile_source(tomllib.loads(SOURCE)["source"][0])
        points = map_decode(body, MapPost(post(), source, {}, 10_000, 1 << 24))
        assert not points.errors
        return [each for block in points.blocks for each in decode_rows(block.tuples)]
    if name != "lines":
        return readings_of(decoded(name, body, precision=None))
    points = decode(body, LinePost(post(precision=None), Naming(("device_id",)), 10_000, 1 << 24))
    assert not points.errors
    return [each for block in points.blocks for each in decode_rows(block.tuples)]


@pytest.mark.parametrize("name", FORMATS)
def test_posts_of_a_proof_have_the_same_readings_in_each_format(name: str) -> None:
    """Of any style of time, with one value or several, to the last bit."""
    plans = [
        Plan("0a1b2c3d", 1, NOW_US - 10**9, ((1, 1), (7, 1)), 0.1, format=each)
        for each in ("json", name)
    ]
    first, again = map(Names, plans)
    for number, items in enumerate(itertools.islice(plans[0].posts(), 100)):
        body = again.body(items, number)
        assert readings_in(name, body) == readings_in("json", first.body(items, number))


@pytest.mark.parametrize("name", FORMATS)
def test_simulated_fleet_sends_each_format(name: str) -> None:
    """To its path, with its media type; the service reads as many readings as were counted."""
    target = target_of("http://host:8080/below")
    path = path_for(target, name)
    assert path == f"/below{FORMATS[name].path}"
    moments = itertools.count(NOW_US - 10**9, 100)
    recipe = Recipe(devices=5, mix=((1, 1.0), (9, 1.0)), format=name, poison=0.05, posts_max=60)
    traffic = Traffic(recipe, path, "host", lambda: next(moments))
    traffic.prepare(NOW_US - 10**9)
    kinds = set()
    while (sent := traffic.take()) is not None:
        head, _, body = sent.request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST %b HTTP" % path.encode())
        assert FORMATS[name].media_type.encode() in head
        kinds.add(sent.kind)
        if FORMATS[name].is_answered:
            found = decoded(name, body, precision=None)
            assert (
                sum(each.rows for each in found.points.blocks) + len(found.errors) == sent.readings
            )
            assert len(found.errors) == traffic.bad_items.get(sent.number, len(found.errors))
        elif sent.kind == GOOD and not traffic.made["poison"]:
            assert len(readings_in(name, body)) == sent.readings
    assert traffic.made["poison"]
    assert (MIXED in kinds) == FORMATS[name].is_answered
    assert b"application/json" in head_of("/x", "host")
