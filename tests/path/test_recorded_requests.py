"""Recorded requests are answered as the service of an older commit answered them, byte by byte.

tests/path/recorded/ has the requests, their answers, and what records them. Texts for people
(`message`, `title`, `detail`) may change; status, headers and all other fields may not.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.path.recorded.app import (
    OTHERWISE,
    RunningApp,
    asked_of_app,
    kept_in_app,
    told_of_app,
)
from tests.path.recorded.exchange import Case, differences, documents_differ, exchange
from tests.path.recorded.record import REPOSITORY, read
from tests.path.recorded.stage import STUCK, WORKING, stage

RECORDED_MIN = 500
TOLD_MAX = 200
PROBLEMS = """
    ack_unavailable all_invalid bad_encoding bad_parameter bad_request body_timeout body_too_large
    buffer_full database_away database_on_hold dead_letters_full disk_low draining empty forbidden
    headers_too_large inflated_too_large invalid_items method_not_allowed not_found not_json
    outcome_unknown starting too_many_readings unauthorized unknown_parameter unsupported_encoding
    unsupported_media_type wrong_host
"""
ITEM_CODES = """
    both_shapes missing_field name_control_character name_empty name_too_long not_an_object
    refused_by_database repeated_field ts_in_future ts_too_old ts_unreadable ts_without_offset
    unknown_field value_not_exact value_out_of_range values_empty wrong_type
"""
Line = dict[str, Any]


@pytest.fixture(scope="module")
def recorded() -> list[Line]:
    """Give the corpus; its last line has the readings that the service had kept."""
    return read()


@pytest.fixture
def urls(server: Server) -> Iterator[dict[str, str]]:
    """Give two fresh databases: one that works, one that is locked and altered."""
    names = {each: server.create("template0") for each in (WORKING, STUCK)}
    yield {each: server.url_of(name) for each, name in names.items()}
    for name in names.values():
        server.drop(name)


async def test_recorded_requests_are_answered_as_before(
    recorded: list[Line], urls: dict[str, str], open_tmp_path: Path
) -> None:
    """Status, headers, fields, the end of the connection, and what is in the table afterwards."""
    *lines, last = recorded
    async with stage(REPOSITORY, open_tmp_path, urls) as playing:
        kept = await playing.play([Case.of(line) for line in lines])
    told = [
        each
        for line in lines
        for each in differences(line, *playing.results.get(line["name"], ([], "never sent")))
    ]
    told += [f"kept: {each}" for each in documents_differ(last["kept"], kept)]
    _fail_if(told)


async def test_app_of_aiohttp_answers_all_but_the_listed_ones_so(
    recorded: list[Line], urls: dict[str, str], open_tmp_path: Path
) -> None:
    """The same in an app with the pages; and in_app.json lists nothing in vain."""
    *lines, last = recorded
    lines = asked_of_app(lines)
    assert {line["name"] for line in lines} >= OTHERWISE
    running = stage(REPOSITORY, open_tmp_path, urls, RunningApp, (WORKING, STUCK))
    async with running as playing:
        kept = await playing.play([Case.of(line) for line in lines])
    told = [*told_of_app(lines, playing.results)]
    told += [f"kept: {each}" for each in documents_differ(kept_in_app(last["kept"]), kept)]
    _fail_if(told)


def _fail_if(told: list[str]) -> None:
    if told:
        more = [f".. and {len(told) - TOLD_MAX} more"] if len(told) > TOLD_MAX else []
        pytest.fail("\n".join([f"{len(told)} differences", *told[:TOLD_MAX], *more]), pytrace=False)


def test_corpus_is_large_and_provokes_every_code(recorded: list[Line]) -> None:
    """The corpus has many requests, and provokes each problem code."""
    *lines, last = recorded
    assert len(lines) >= RECORDED_MIN
    assert len({line["name"] for line in lines}) == len(lines)
    bodies = [answer[-1] for line in lines for answer in line["got"]]
    documents = [body for body in bodies if isinstance(body, dict)]
    assert {body["code"] for body in documents if "code" in body} == set(PROBLEMS.split())
    errors = [error for body in documents for error in body.get("errors", ())]
    assert {error["code"] for error in errors} == set(ITEM_CODES.split())
    assert last["kept"]["counters"]["ingest_ledger_imbalance_rows"] == 0
    assert len(last["kept"]["rows"]) > 200


def _answer(line: Line) -> list[Any]:
    return list(line["got"][0])


ALTERED: dict[str, tuple[Callable[[Line], Any], str]] = {
    "status": (lambda line: line["got"][0].__setitem__(0, "HTTP/1.1 200 OK"), "status: recorded"),
    "header gone": (lambda line: line["got"][0].pop(1), "header 'Content-Type: "),
    "header new": (lambda line: line["got"][0].insert(1, "X: y"), "header 'X: y' is not there"),
    "header order": (lambda line: line["got"][0].insert(1, line["got"][0].pop(2)), "another order"),
    "code": (lambda line: line["got"][0][-1].update(code="x"), "body.code: recorded 'x'"),
    "field gone": (lambda line: line["got"][0][-1].pop("status"), "body.status: is new (422)"),
    "field new": (lambda line: line["got"][0][-1].update(a=1), "body.a: is not there any more"),
    "text gone": (lambda line: line["got"][0][-1].pop("detail"), "body.detail: is new"),
    "kind": (lambda line: line["got"][0][-1].update(status=422.0), "recorded 422.0, now 422"),
    "deep": (lambda line: line["got"][0][-1]["errors"][0].update(index=1), "errors[0].index"),
    "entries": (lambda line: line["got"][0][-1]["errors"].append({}), "2 entries were recorded"),
    "names' order": (lambda line: line["got"][0][-1].update(type=_last(line)), "another order"),
    "answers": (lambda line: line["got"].append(_answer(line)), "2 answers were recorded, 1 came"),
    "connection": (lambda line: line.update(then="closed"), "recorded 'closed', now 'open'"),
}


def _last(line: Line) -> Any:
    """Take the first name of a body away, so that it comes last."""
    return line["got"][0][-1].pop("type")


@pytest.mark.parametrize(("alter", "told"), ALTERED.values(), ids=ALTERED.keys())
def test_altered_answer_is_found(
    recorded: list[Line], alter: Callable[[Line], Any], told: str
) -> None:
    """The comparison names each kind of difference, so it can fail."""
    (line,) = (each for each in recorded if each.get("name") == "single: value null")
    assert differences(line, line["got"], line["then"]) == []
    altered = copy.deepcopy(line)
    alter(altered)
    found = "\n".join(differences(altered, line["got"], line["then"]))
    assert told in found
    assert "single: value null (working, data port)" in found


VARIES = {
    "Date: Thu, 01 Jan 2026 00:00:00 GMT": False,
    "Date: now": False,
    "Date: {today}": True,
    "Retry-After: 0": False,
    "Retry-After: 31": False,
    "Retry-After: 1.5": False,
    "Retry-After: 30": True,
    'ETag: "x"': False,
    'ETag: "0123456789abcdef01234567"': True,
    "Content-Encoding: gzip": False,
}
BODIES = {
    '{"title":"a"}': '{"title":"<text>"}',
    '{"title":""}': '{"title":""}',
    '{"title":5}': '{"title":5}',
    '{"since":"2026-11-26T00:00:00Z"}': '{"since":"<time>"}',
    '{"since":"yesterday"}': '{"since":"yesterday"}',
    '{"reason":"a"}': '{"reason":"a"}',
    "{": '"no JSON: {"',
}


async def _canned(answer: str) -> tuple[list[Any], str]:
    """Return the recording of an answer that comes unchanged."""

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.encode())
        writer.close()

    server = await asyncio.start_server(give, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        return await exchange(f"{host}:{port}", Case("x", "", "data", ["GET / HTTP/1.1\r\n\r\n"]))


@pytest.mark.parametrize(("header", "may_vary"), VARIES.items(), ids=VARIES.keys())
async def test_only_what_must_vary_is_replaced(header: str, may_vary: bool) -> None:
    """A date of last year or a Retry-After of 0 is not replaced, and so is a difference."""
    header = header.replace("{today}", formatdate(usegmt=True))
    got, then = await _canned(f"HTTP/1.1 503 X\r\n{header}\r\nContent-Length: 0\r\n\r\n")
    assert then == "closed"
    assert got[0][0] == "HTTP/1.1 503 X"
    assert (got[0][1] != header) == may_vary
    assert got[0][2] == "Content-Length: 0"


@pytest.mark.parametrize(("body", "shown"), BODIES.items(), ids=BODIES.keys())
async def test_texts_and_times_are_replaced_where_they_are_such(body: str, shown: str) -> None:
    """An empty title, or a wrong time, is not replaced; the size is compared if all is fixed."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    got, _ = await _canned(f"{head}\r\n\r\n{body}")
    assert json.dumps(got[0][-1], separators=(",", ":")) == shown
    replaced = "<t" in shown
    assert got[0][2] == ("Content-Length: <size>" if replaced else f"Content-Length: {len(body)}")


async def test_answer_that_is_cut_off_is_found() -> None:
    """A body shorter than its length differs from every whole one."""
    got, _ = await _canned("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    assert got[0][-1] == "only 3 bytes of its body"
