"""The OpenAPI document has every page, code, format and limit of the data port, and nothing else.

`./run clients --only schemathesis` compares it with the answers to thousands of requests.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.formats.media_type import FORMATS
from ingest.http.plain_body import BodyLimits
from ingest.model.codes import PROBLEMS
from ingest.receiver.openapi.answers import ADMIN_ONLY, UNPLACED
from ingest.receiver.openapi.document import document
from ingest.receiver.openapi.paths import StatedLimits, described
from tests.house.layout import files_of, walk
from tests.support.receiver import head, running_receiver

RECEIVING = {"access", "buffers", "formats", "http", "receiver"}  # folders whose problems are seen
SIZES: dict[str, Any] = {
    "post_rows_max": 7,
    "body_bytes_max": 123_456,
    "inflated_bytes_max": 234_567,
}
NONE = StatedLimits(1, BodyLimits(1, 1), 1, BodyLimits(1, 1))


def refusals() -> Iterator[ast.Call]:
    """Yield each place where the receiving half refuses a request."""
    for path, tree in files_of("ingest").items():
        if path.parts[1] in RECEIVING:
            for node in walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refused":
                    yield node


def nodes(document: Any) -> Iterator[Any]:
    """Yield every object of a document."""
    yield document
    each = document.values() if isinstance(document, dict) else document
    if isinstance(document, dict | list):
        for child in each:
            yield from nodes(child)


def nodes_with(document: Any, name: str) -> Iterator[Any]:
    """Yield every value of a member."""
    yield from (each[name] for each in nodes(document) if isinstance(each, dict) and name in each)


@pytest.fixture
async def served() -> dict[str, Any]:
    """Return the document as a client gets it."""
    async with running_receiver(**SIZES) as receiver:
        reply = await receiver.send(head("GET", "/openapi.json"))
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert reply.body == receiver.endpoint.openapi
        found: dict[str, Any] = reply.document
        return found


async def test_it_has_every_page_and_method_of_the_port_and_no_other(
    served: dict[str, Any],
) -> None:
    """The port names its pages itself: in the answers to an unknown path and to a wrong method."""
    listed = {path: {method.upper() for method in its} for path, its in served["paths"].items()}
    async with running_receiver() as receiver:
        missing = await receiver.send(head("GET", "/nowhere"))
        pages = str(missing.document["detail"]).removeprefix("there are ").split(", ")
        allowed = {}
        for path in pages:
            reply = await receiver.send(head("DELETE", path))
            assert reply.status == 405, path
            allowed[path] = set(reply.headers["allow"].split(", "))
    assert listed == allowed
    names = [each["operationId"] for its in served["paths"].values() for each in its.values()]
    assert len(set(names)) == len(names)


def test_it_has_every_problem_code_of_the_port_and_no_other() -> None:
    """A code of the admin port is not raised by any part that answers at the data port."""
    methods = {"/v1/readings": ["POST"], "/write": ["POST"]}
    made = document(methods, {"/v1/in/x": ["POST"]}, NONE)
    codes = {
        code
        for each in nodes(made["components"]["responses"])
        if isinstance(each, dict)
        for name in ("code", "problem")
        for code in each.get(name, {}).get("enum", ())
    }
    assert codes == PROBLEMS.keys() - ADMIN_ONLY
    literal = [each.args[0].value for each in refusals() if isinstance(each.args[0], ast.Constant)]
    assert len(literal) > 40
    assert not ADMIN_ONLY & set(literal)
    assert set(UNPLACED) < codes


def test_members_of_each_problem_are_in_its_schema(served: dict[str, Any]) -> None:
    """The schema allows no other members, so a new one must be added to it."""
    schemas = served["components"]["schemas"]
    known = {*schemas["Problem"]["properties"], *schemas["LineProblem"]["properties"]}
    given = {each.arg for call in refusals() for each in call.keywords if each.arg}
    assert given - {"retry_after_s"} <= known
    assert "readings_max" in given


def test_every_reference_leads_somewhere_and_nothing_is_unused(served: dict[str, Any]) -> None:
    """So a tool can resolve the whole document."""
    used = {each["$ref"] for each in nodes(served) if isinstance(each, dict) and "$ref" in each}
    components = served["components"]
    for reference in used:
        kind, name = reference.removeprefix("#/components/").split("/")
        assert name in components[kind], reference
    unused = {f"#/components/responses/{name}" for name in components["responses"]} - used
    assert {each.rpartition("/")[2].rstrip("0123456789") for each in unused} == {
        *("unplaced", "post", "source")
    }


def test_media_types_and_limits_are_those_of_the_service(served: dict[str, Any]) -> None:
    """A setting that was changed is in the document."""
    operation = served["paths"]["/v1/readings"]["post"]
    assert set(operation["requestBody"]["content"]) == set(FORMATS)
    for number in ("7 readings", "123,456 bytes as sent", "234,567 bytes decompressed"):
        assert number in operation["description"]


def test_page_without_a_description_is_in_it_all_the_same() -> None:
    """A new page is a post of any body until somebody describes it."""
    made = described("/v1/new", NONE)("POST")
    assert made["summary"] == "POST /v1/new"
    assert "503" in made["responses"]


async def test_sources_are_in_it_with_the_parts_of_their_paths(tmp_path: Path) -> None:
    """A source has a page under /v1/in, and perhaps a path of its own."""
    file = tmp_path / "sources.toml"
    file.write_text('[[source]]\npreset = "ttn"\n[[source]]\npreset = "airgradient"\n')
    async with running_receiver(sources_file=str(file)) as receiver:
        paths = json.loads(receiver.endpoint.openapi)["paths"]
        own = paths["/sensors/airgradient:{device}/measures"]
        assert set(own) == set(paths["/v1/in/ttn"]) == {"post", "head"}
        names = [each["name"] for each in own["post"]["parameters"]]
        assert names == ["device", "X-Topic", "X-Received-At"]
        post = head("POST", "/sensors/airgradient:a1/measures", {"Content-Length": "13"})
        reply = await receiver.send(post + b'{"rco2": 400}')
        (known,) = nodes_with(own["post"]["responses"]["200"], "$ref")
        schema = json.loads(receiver.endpoint.openapi)["components"]["schemas"]
        assert set(reply.document) == set(schema[known.rpartition("/")[2]]["required"])


async def test_page_needs_no_token_but_no_page_of_another_site_may_ask() -> None:
    """HEAD gives the same head without a body."""
    async with running_receiver(access="token") as receiver:
        foreign = head("GET", "/openapi.json", {"Origin": "http://evil.example"})
        assert (await receiver.send(foreign)).status == 403
        client = await receiver.connect()
        await client.send(head("HEAD", "/openapi.json"))
        reply = await client.reply(head_only=True)
        assert reply.status == 200
        assert int(reply.headers["content-length"]) == len(receiver.endpoint.openapi)
        assert json.loads(receiver.endpoint.openapi)["openapi"] == "3.1.0"
