"""aiohttp's private names: the list names those in use, and one that is gone ends the start."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from ingest.http import fence
from ingest.http.connection import Connection
from ingest.http.connections import Connections
from ingest.http.response import Answer
from ingest.model.errors import StartError
from tests.support.receiver import GOOD, post, running_receiver
from tests.unit.http.test_connection import REQUESTS

FOLDER = Path(fence.__file__).parent


def used_on_self(source: str) -> set[str]:
    """Return the private names that a file's classes use on themselves."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and node.attr.startswith("_")
    } | {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("_")
    }


async def answer(_request: object) -> Answer:
    """Answer anything."""
    return Answer(200, b"")


async def test_listed_names_are_those_that_are_used_and_those_that_are_there() -> None:
    """A name more in use, or one that is gone, changes the list with it."""
    connections = Connections(
        answer, lambda _: Answer(400, b""), connections_max=9, header_s_max=1, keepalive_s_max=1
    )
    inherited = {name for name in dir(web.RequestHandler) if not name.startswith("__")}
    used = used_on_self((FOLDER / "connection.py").read_text())
    assert used & inherited == set(fence.OF_HANDLER)
    assert issubclass(Connection, web.RequestHandler)
    of_server = {*dir(web.Server), *vars(web.Server(answer))}  # type: ignore[arg-type]
    used = used_on_self((FOLDER / "connections.py").read_text())
    assert {name for name in used & of_server if not name.startswith("__")} == set(fence.OF_SERVER)
    fence.check_names(connections)


@pytest.mark.short_way
async def test_name_that_is_gone_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that would do."""
    monkeypatch.setattr(fence, "OF_HANDLER", ("_waiter", "_was_never_there"))
    with pytest.raises(StartError, match=r"lacks _was_never_there; install aiohttp 3\.14"):
        async with running_receiver():
            pass


@pytest.mark.short_way
async def test_unknown_version_is_served_aiohttps_way_and_answers_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One warning, and the same status, body and headers."""
    answers = []
    for series in (fence.SERIES, "3.99."):
        monkeypatch.setattr(fence, "SERIES", series)
        with capture_logs() as logs:
            async with running_receiver(body_bytes_max=4_096) as receiver:
                connections = receiver.endpoint._port._connections
                assert connections is not None
                assert (connections.round_queue is None) == (series == "3.99.")
                replies = {}
                for name, request in REQUESTS.items():
                    client = await receiver.connect()
                    await client.send(request)
                    replies[name] = await client.reply(head_only=request.startswith(b"HEAD"))
                kept = await receiver.send(post(GOOD))
        for reply in replies.values():
            reply.headers.pop("date")
        answers.append({name: (r.status, r.headers, r.body) for name, r in replies.items()})
        warnings = [each for each in logs if each["event"] == "aiohttp_unknown"]
        assert len(warnings) == (series == "3.99.")
        assert kept.status == 202
    assert answers[0] == answers[1]
