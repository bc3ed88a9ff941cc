"""`loadgen verify`: what it keeps on record of answers, and when its comparison is no proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from loadgen.proof.conclude import Evidence, Result, conclude
from loadgen.proof.ledger import Details, Final, Ledger
from loadgen.proof.letter_sources import Files
from loadgen.proof.readings import Plan
from loadgen.proof.run import Job, Run
from loadgen.report.verdict import text
from loadgen.traffic.post import target_of
from tests.support.proofs import PLAN, World

# The meaning of answers


async def _scripted(
    folder: Path,
    script: Callable[[int], web.StreamResponse | None],
) -> Ledger:
    """Post once to a server that answers the n-th try by `script` (None: cut); read the ledger."""
    tries = 0

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal tries
        await request.read()
        answer = script(tries)
        tries += 1
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return answer

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    plan = Plan("0badcafe", 11, PLAN.first_us)
    job = Job(
        target=target_of(url),
        plan=plan,
        ledger=folder / "ledger",
        connections=1,
        posts=1,
        give_up_s=0.5,
    )
    try:
        await Run(job).go()
    finally:
        await runner.cleanup()
    return Ledger.read(folder / "ledger")


def _taken(**fields: Any) -> web.Response:
    document = {"accepted": 1, "dead_lettered": 0, "ack": "buffered", "errors": []}
    return web.json_response({**document, **fields}, status=202)


def _busy() -> web.Response:
    return web.json_response({"code": "full"}, status=503, headers={"Retry-After": "0"})


ANSWERS: dict[str, tuple[Callable[[int], web.StreamResponse | None], Final, Details | None]] = {
    "accepted": (lambda _: _taken(), Final(202, "buffered"), None),
    "accepted after 503": (
        lambda tries: _taken() if tries else _busy(),
        Final(202, "buffered", doubt=True),
        None,
    ),
    "accepted after a cut": (
        lambda tries: _taken() if tries else None,
        Final(202, "buffered", doubt=True),
        None,
    ),
    "refused": (
        lambda _: web.json_response({"code": "empty"}, status=422),
        Final(422, details=True),
        Details(0, 0, False, {0xFFFF: "empty"}),
    ),
    "refused after a cut": (
        lambda tries: web.json_response({"code": "empty"}, status=422) if tries else None,
        Final(422, doubt=True, details=True),
        Details(0, 0, False, {0xFFFF: "empty"}),
    ),
    "refused by a proxy": (
        lambda _: web.Response(text="<h1>no</h1>", status=404),
        Final(404, details=True),
        Details(0, 0, False, {0xFFFF: "without_code"}),
    ),
    "200 of something else": (
        lambda _: web.Response(text="<h1>hello</h1>"),
        Final(200, odd=True),
        None,
    ),
    "200 of bottomless JSON": (
        lambda _: web.Response(text="[" * 200_000),
        Final(200, odd=True),
        None,
    ),
    "200 of another JSON": (lambda _: web.json_response([1]), Final(200, odd=True), None),
    "an ack that there is not": (lambda _: _taken(ack="hoped"), Final(202, odd=True), None),
    "a count below nothing": (lambda _: _taken(dead_lettered=-1), Final(202, odd=True), None),
    "an index below nothing": (
        lambda _: _taken(accepted=0, dead_lettered=1, errors=[{"index": -1, "code": "x"}]),
        Final(202, "buffered", details=True),
        Details(0, 1, False, {0xFFFE: "x"}),
    ),
    "errors that are no list": (
        lambda _: _taken(accepted=0, dead_lettered=1, errors=7),
        Final(202, "buffered", details=True),
        Details(0, 1, False, {}),
    ),
    "counts that are wrong": (
        lambda _: _taken(accepted=2),
        Final(202, "buffered", details=True),
        Details(2, 0, False, {}),
    ),
    "dead-lettered": (
        lambda _: _taken(accepted=0, dead_lettered=1, errors=[{"index": 0, "code": "x"}]),
        Final(202, "buffered", details=True),
        Details(0, 1, False, {0: "x"}),
    ),
    "truncated": (
        lambda _: _taken(accepted=0, dead_lettered=1, errors_truncated=True),
        Final(202, "buffered", details=True),
        Details(0, 1, True, {}),
    ),
    "never anything but 503": (lambda _: _busy(), Final(503, doubt=True), None),
    "never an answer": (lambda _: None, Final(0, doubt=True), None),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_answer_is_on_record_as_what_it_is(tmp_path: Path, case: str) -> None:
    """An answer is recorded as a promise, as a refusal, or as no promise."""
    script, final, details = ANSWERS[case]
    ledger = await _scripted(tmp_path, script)
    assert ledger.final(0) == final
    if details is not None:
        assert ledger.details(0) == details
    assert (ledger.posts, ledger.ended) == (1, True)
    if "after" in case:
        assert ledger.tries.total() >= 1


# Verdicts with few known outcomes


HARDLY = replace(PLAN, invalid=0.0, refused=0.0)


async def _judged(world: World, folder: Path, url: str) -> Result:
    """Put the rows of a run into the table, and compare."""
    line = await asyncpg.connect(url)
    try:
        await line.executemany(
            "insert into readings (ts, device_id, metric, value) values "
            "(timestamptz 'epoch' + $1::bigint * interval '1 microsecond', $2, $3, $4)",
            world.rows,
        )
    finally:
        await line.close()
    await world.write(folder / "ledger")
    return await conclude(folder / "ledger", Evidence(url, Files(folder)), settle_s=0.1)


@pytest.mark.parametrize(("known", "proves"), [(40, False), (60, True)])
async def test_run_of_which_most_is_not_known_is_no_proof(
    readings_url: str, tmp_path: Path, known: int, proves: bool
) -> None:
    """With most outcomes unknown there is no fault, and no proof."""
    world = World(100, plan=replace(HARDLY, sizes=((1, 1.0),), duplicates=0.0))
    for post in range(known, 100):
        world.finals[post] = (Final(503, doubt=True), None)
    result = await _judged(world, tmp_path, readings_url)
    assert result.green
    assert result.is_proof is proves
    assert ("NO PROOF" in text(result)) is not proves
    assert f"{100 - known} posts ended with status 503" in result.notes


async def test_nothing_but_a_503_may_end_a_post_as_a_fault_of_the_server(
    readings_url: str, tmp_path: Path
) -> None:
    """A final 500 is a fault, although no reading is lost; a proxy's 502 is a note."""
    world = World(100, plan=HARDLY)
    world.finals[3] = (Final(500, doubt=True), None)
    world.finals[4] = (Final(502, doubt=True), None)
    world.finals[5] = (Final(0, doubt=True), None)
    result = await _judged(world, tmp_path, readings_url)
    assert result.faults == {"wrong_answer": 1}
    assert result.first["wrong_answer"][0].found == "1 post ended with status 500"
    assert "1 post ended with status 502" in result.notes
    assert "1 post given up without an answer" in result.notes
