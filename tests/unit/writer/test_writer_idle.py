"""Writers while nobody posts: what they notice of the database, and which calls they avoid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import structlog

from ingest.model.causes import TOO_MANY_CONNECTIONS, Verdict, WriteFailed
from ingest.model.ports import Stored
from ingest.writer import writer
from tests.support.fake_sink_scripted import HANG, Script, ScriptedSink
from tests.support.writing import Writing


@pytest.fixture(autouse=True)
def _short_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IDLE_S", 0.01)
    monkeypatch.setattr(writer, "RECONNECT_S", 0.01)


async def idle(script: Script) -> Writing:
    """Return a path that has written once, so that one of its two writers has a connection."""
    path = Writing(script)
    await path.post(5)
    await path.write_all(2)
    return path


def opened(path: Writing) -> int:
    """Return how many connections are open."""
    return sum(sink.is_open for sink in path.sinks)


async def test_server_that_goes_and_comes_is_noticed_without_a_post() -> None:
    """All connections are closed, and the server cannot be reached; then it can."""
    script = Script()
    path = await idle(script)
    for sink in path.sinks:
        sink.inner.is_open = False
    script.at, script.forever = script.calls + 1, True
    await path.until(lambda: not path.database_state.up)
    script.heal()
    await path.until(lambda: path.database_state.is_open)
    assert opened(path) == 1
    await path.drain()


async def test_connection_that_is_not_needed_is_not_opened() -> None:
    """A server with a limit might refuse it, and then the state would be wrong."""
    script = Script()
    path = await idle(script)
    script.at, script.forever = script.calls + 1, True
    await asyncio.sleep(0.2)
    assert (script.fired, path.database_state.state, opened(path)) == (0, "open", 1)
    await path.drain()


async def test_error_that_passes_puts_nothing_on_hold() -> None:
    """A lock or a cancelled query does not change the state: a batch would be retried after it."""
    script = Script()
    path = await idle(script)
    script.verdict, script.sqlstate = Verdict.RETRY, "55P03"
    script.at, script.forever = script.calls + 1, True
    for sink in path.sinks:
        sink.inner.is_open = False
    await path.until(lambda: script.fired > 3)
    assert path.database_state.is_open
    script.heal()
    await path.until(lambda: opened(path) == 1)
    await path.drain()


class OneSeat:
    """Allows one open sink at a time, like a role that may have one connection."""

    def __init__(self, mine: ScriptedSink, other: ScriptedSink, receiver: asyncio.Lock) -> None:
        self._mine, self._other, self._receiver = mine, other, receiver
        self._open, self._write = mine.open, mine.write
        self.refused = 0

    async def open(self) -> None:
        """Connect."""
        async with self._receiver:
            if not self._mine.is_open and self._other.is_open:
                self.refused += 1
                raise WriteFailed(Verdict.WAIT, "too many connections", reason=TOO_MANY_CONNECTIONS)
            await self._open()

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Connect if need be, as the real one does, and store."""
        await self.open()
        return await self._write(tuples, rows, idempotent=idempotent)


def seat(path: Writing) -> list[OneSeat]:
    """Make both writers of a path use such a role."""
    first, second = path.sinks
    receiver = asyncio.Lock()  # no two of them find it free at once
    seats = [OneSeat(first, second, receiver), OneSeat(second, first, receiver)]
    for sink, its in zip(path.sinks, seats, strict=True):
        sink.open, sink.write = its.open, its.write  # type: ignore[method-assign]
    return seats


async def test_writer_that_cannot_connect_leaves_the_state_to_the_one_that_can() -> None:
    """It takes no batch until it can connect, and does not delay the stop."""
    path = await idle(Script())
    seats = seat(path)
    states: set[str] = set()
    for _ in range(200):
        await path.post(5)
        await asyncio.sleep(0)
        states.add(path.database_state.state)
    await path.until(path.resolved)
    await path.until(lambda: sum(each.refused for each in seats) > 3)
    assert (states, opened(path)) == ({"open"}, 1)
    for sink in path.sinks:
        sink.inner.is_open = False
    await path.until(lambda: opened(path) == 1)
    assert path.database_state.is_open
    await path.post(5)
    await path.until(path.resolved)
    async with asyncio.timeout(1):
        await path.drain()


async def test_stop_waits_for_no_server_if_nothing_is_to_be_written() -> None:
    """Otherwise the pauses between probes would take most of a drain's time."""
    path = Writing(Script(1, forever=True), wait_s_max=6000)
    path.database_state.failed(WriteFailed(Verdict.WAIT, "gone"))
    path.start(2)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(1):
        await path.drain()


@pytest.mark.parametrize("verdict", [None, Verdict.WAIT, Verdict.HOLD])
async def test_stop_cuts_a_connect_that_nobody_answers(verdict: Verdict | None) -> None:
    """If nothing is to be written, the cut connect does not count as a server that is away."""
    path = Writing(Script(1, where=HANG, forever=True))
    if verdict is not None:
        path.database_state.failed(WriteFailed(verdict, "as it was"))
    before = (path.database_state.state, path.database_state.message)
    path.start(2)
    await path.until(lambda: path.script.fired == 1)
    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(1):
            await path.drain()
    assert (path.database_state.state, path.database_state.message) == before
    assert lines == []
    assert path.script.fired == 1  # the other writer, which waited for its turn, does not begin


async def test_stop_leaves_an_open_connection_to_its_writer() -> None:
    """A server logs each connection that is cut."""
    path = await idle(Script())
    (line,) = [sink for sink in path.sinks if sink.is_open]
    await path.drain()
    assert not line.aborted.is_set()


async def test_stop_cuts_no_connect_of_what_is_to_be_written() -> None:
    """A drain goes on trying to connect."""
    path = Writing(Script(1, where=HANG, forever=True))
    await path.post(5)
    path.start(1)
    await path.until(lambda: path.script.fired == 1)
    draining = asyncio.create_task(path.drain())
    await asyncio.sleep(0.05)
    assert not path.sinks[0].aborted.is_set()
    path.script.heal()
    path.sinks[0].abort()
    await draining
    assert path.resolved()
    await path.check()
