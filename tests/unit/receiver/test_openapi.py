"""The OpenAPI document has every page, code, format and limit of the data port, and nothing else.

test_docs.py compares its file with what is printed. `./run clients --only schemathesis` compares it
with the answers to thousands of requests.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from ingest.formats.media_types import FORMATS
from ingest.model.codes import PROBLEMS
from ingest.receiver.endpoint import FILE
from tests.house.layout import files_of, walk
from tests.printing.openapi_parts import ADMIN_ONLY, UNPLACED
from tests.support.receiver import head, running_receiver

RECEIVING = {"access", "buffers", "formats", "http", "receiver"}  # folders whose problems are seen
SIZES: dict[str, Any] = {
    "post_rows_max": 7,
    "body_bytes_max": 123_456,
    "inflated_bytes_max": 234_567,
}
DOCUMENT = json.loads(FILE.read_text())


def refusals() -> Iterator[ast.Call]:
    """Yield each place where the receiving half refuses a request."""
    for path, tree in files_of("ingest").items():
        if path.parts[1] in RECEIVING:
            for node in walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refused":
                    yield node


def nodes_with(document: Any, name: str) -> Iterator[Any]:
    """Yield every value of a member, wherever it is."""
    if isinstance(document, dict):
        yield from (document[each] for each in (name,) if each in document)
        document = list(document.values())
    if isinstance(document, list):
        for child in document:
            yield from nodes_with(child, name)


async def test_served_document_has_the_pages_and_limits_of_the_service() -> None:
    """The port names its pages itself: in the answers to an unknown path and to a wrong method."""
    async with running_receiver(**SIZES) as receiver:
        reply = await receiver.send(head("GET", "/openapi.json"))
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        served = reply.document["paths"]
        missing = await receiver.send(head("GET", "/nowhere"))
        pages = re.findall(r"/[^ ,?]+", str(missing.document["detail"]))
        allowed = {}
        for path in pages:
            reply = await receiver.send(head("DELETE", path))
            assert reply.status == 405, path
            allowed[path] = set(reply.headers["allow"].split(", "))
    assert {path: {each.upper() for each in its} for path, its in served.items()} == allowed
    names = list(nodes_with(served, "operationId"))
    assert len(set(names)) == len(names)
    post = served["/v1/readings"]["post"]
    assert set(post["requestBody"]["content"]) == set(FORMATS)
    for number in ("7 readings", "123,456 bytes as sent", "234,567 bytes decompressed"):
        assert number in post["description"]
    assert " fields, " in served["/write"]["post"]["description"]


def test_it_has_every_problem_code_of_the_port_with_its_members_and_no_other() -> None:
    """A code of the admin port is not raised by any part that answers at the data port."""
    codes = {
        code
        for name in ("code", "problem")
        for each in nodes_with(DOCUMENT["components"]["responses"], name)
        for code in each.get("enum", ())
    }
    assert codes == PROBLEMS.keys() - ADMIN_ONLY
    literal = [each.args[0].value for each in refusals() if isinstance(each.args[0], ast.Constant)]
    assert len(literal) > 40
    assert not ADMIN_ONLY & set(literal)
    assert set(UNPLACED) < codes
    schemas = DOCUMENT["components"]["schemas"]
    known = {*schemas["Problem"]["properties"], *schemas["LineProblem"]["properties"]}
    given = {each.arg for call in refusals() for each in call.keywords if each.arg}
    assert "readings_max" in given
    assert given - {"retry_after_s"} <= known, "the schema allows no other members"


def test_every_reference_leads_somewhere_and_nothing_is_unused() -> None:
    """So a tool can resolve the whole document."""
    used = set(nodes_with(DOCUMENT, "$ref"))
    kinds = ("schemas", "headers", "responses")
    components = DOCUMENT["components"]
    there = {f"#/components/{kind}/{name}" for kind in kinds for name in components[kind]}
    assert used <= there
    unused = {each.rpartition("/")[2].rstrip("0123456789") for each in there - used}
    assert unused == {"unplaced"}
