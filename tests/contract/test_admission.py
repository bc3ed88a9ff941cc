"""What the receiver may ask before it takes a post: admission, and the state of the database.

Over the real ones and the fakes that stand for them in tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ingest.app.health import UNREADY, Health
from ingest.model.causes import SCHEMA, Verdict, WriteFailed
from ingest.model.codes import PROBLEMS
from ingest.model.ports import Admission, Database
from ingest.writer.database_state import DatabaseState
from tests.support.fakes import FakeAdmission, FakeDatabase
from tests.support.health import make_health


def open_health() -> Health:
    """Return a health whose parts are all well, after its start."""
    health = make_health(database_state=DatabaseState(wait_s_min=0.1, wait_s_max=1, hold_probe_s=1))
    health.started()
    return health


class Entrance(NamedTuple):
    """An admission that lets everybody in, and how it comes to refuse."""

    admission: Admission
    shut: Callable[[], None]


@pytest.fixture(params=["health", "fake"])
def entrance(request: pytest.FixtureRequest) -> Entrance:
    """Give each admission in turn."""
    if request.param == "health":
        health = open_health()
        return Entrance(health, health.draining)
    fake = FakeAdmission()
    return Entrance(fake, lambda: setattr(fake, "code", "draining"))


def test_refusal_is_none_or_the_code_of_a_503(entrance: Entrance) -> None:
    """The code is one that a client knows, and it says: come back later."""
    assert entrance.admission.refusal() is None
    entrance.shut()
    code = entrance.admission.refusal()
    assert code in UNREADY
    assert PROBLEMS[str(code)].status == 503


class PausedDatabase(NamedTuple):
    """A database that is well, and how writes to it are paused."""

    database: Database
    hold: Callable[[], None]


@pytest.fixture(params=["state", "fake"])
def held(request: pytest.FixtureRequest) -> PausedDatabase:
    """Give each database in turn."""
    if request.param == "fake":
        fake = FakeDatabase()
        return PausedDatabase(fake, lambda: fake.hold(SCHEMA))
    state = DatabaseState(wait_s_min=0.1, wait_s_max=1, hold_probe_s=1)
    failure = WriteFailed(Verdict.HOLD, "no such table", reason=SCHEMA)
    return PausedDatabase(state, lambda: state.failed(failure))


async def test_hold_is_told_with_its_reason(held: PausedDatabase) -> None:
    """To who asks, to who waits, and at once to who comes later."""
    assert held.database.hold_reason is None
    waiting = asyncio.create_task(held.database.wait_hold())
    await asyncio.sleep(0)
    assert not waiting.done()
    held.hold()
    assert await waiting == SCHEMA
    assert held.database.hold_reason == SCHEMA
    assert await held.database.wait_hold() == SCHEMA


async def test_wait_for_a_hold_may_be_cancelled(held: PausedDatabase) -> None:
    """Who gives up changes nothing for others."""
    leaving, staying = (asyncio.create_task(held.database.wait_hold()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    held.hold()
    assert await staying == SCHEMA
