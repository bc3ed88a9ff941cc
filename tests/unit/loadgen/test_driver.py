"""The driver sends at the right moments, sends the same bytes again, and forgets no post."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

import loadgen.driver.alarm
import loadgen.driver.pool
from loadgen.driver.alarm import LoopAlarm
from loadgen.driver.driver import Driver
from loadgen.driver.ports import Loss
from loadgen.driver.retry import Retry
from loadgen.traffic.post import Post, finish, head_of
from loadgen.traffic.schedule import constant, moments
from tests.support.peer import (
    Peer,
    PeerConnection,
    Script,
    hangs_up,
    is_silent,
    reply,
    resets,
    says,
)
from tests.support.receiver import until

FAST = Retry(give_up_s=300, pause_s_min=0.001, pause_s_max=0.01)
HEAD = head_of("/v1/readings", "peer")
NEVER_MIND = Retry(give_up_s=0.2, pause_s_min=0.01, pause_s_max=0.02)


class Numbers:
    """A number of posts; the body of each is its number."""

    def __init__(self, count: int) -> None:
        self._left = iter(range(count))
        self.taken: list[Post] = []

    def take(self) -> Post | None:
        """Return the next."""
        number = next(self._left, None)
        if number is None:
            return None
        post = Post(finish(HEAD, b"%d" % number), 1, "live", number)
        self.taken.append(post)
        return post


class Call(NamedTuple):
    """One call of the driver."""

    number: int
    what: int | str  # the status, or why it was lost
    written: bool
    intended_s: float
    now_s: float
    final: bool


@dataclass
class Notes:
    """Notes all calls of the driver."""

    sent: list[tuple[int, float]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    order: list[tuple[int, str]] = field(default_factory=list)
    on_call: Callable[[Call], None] = lambda _: None

    def sending(self, post: Post) -> None:
        """Note number and moment."""
        self.sent.append((post.number, time.monotonic()))
        self.order.append((post.number, "sent"))

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Note it."""
        self._note(Call(post.number, status, True, intended_s, now_s, final))

    def lost(self, loss: Loss) -> None:
        """Note it."""
        self._note(Call(loss.post.number, *loss[1:]))

    def _note(self, call: Call) -> None:
        self.calls.append(call)
        self.order.append((call.number, "called"))
        self.on_call(call)

    def of(self, number: int) -> list[tuple[int | str, bool]]:
        """Return the calls about one post: (status or why, final)."""
        return [(each.what, each.final) for each in self.calls if each.number == number]

    @property
    def ends(self) -> dict[int, int | str]:
        """The final outcome of each post."""
        finals = [each for each in self.calls if each.final]
        assert Counter(each.number for each in finals).most_common(1) in (
            [],
            [(finals[0].number, 1)],
        )
        return {each.number: each.what for each in finals}


class Run(NamedTuple):
    """A driver, its source and its observer."""

    driver: Driver
    source: Numbers
    notes: Notes


def make(port: int, posts: int, **options: Any) -> Run:
    """Return a driver of numbered posts."""
    source, notes = Numbers(posts), Notes()
    options.setdefault("retry", FAST)
    return Run(Driver("127.0.0.1", port, source, notes, **options), source, notes)


async def ended(run: Run, within_s: float = 20) -> Notes:
    """Run to the end; each taken post must have one final call, which is its last one."""
    async with asyncio.timeout(within_s):
        await run.driver.run()
    check(run)
    return run.notes


def check(run: Run) -> None:
    """Check the promises of the driver that hold in each case."""
    driver, source, notes = run
    finals = [each.number for each in notes.calls if each.final]
    assert sorted(finals) == [each.number for each in source.taken]
    last = {each.number: each.final for each in notes.calls}
    assert all(last.values()), "there was a call after the end of a post"
    intended_s = {each.number: each.intended_s for each in notes.calls}
    assert all(at_s >= intended_s[number] for number, at_s in notes.sent)
    on_its_way: set[int] = set()
    for number, what in notes.order:
        if what == "sent":
            assert number not in on_its_way, "sent again before the outcome was known"
            on_its_way.add(number)
        else:
            on_its_way.discard(number)
    assert driver.taken == len(source.taken)
    assert driver.tries == len(notes.sent)
    assert (driver.in_flight, driver.waiting) == (0, 0)


# Sending


async def test_closed_loop_sends_each_post_once_over_all_connections() -> None:
    """Each connection takes the next post as soon as it is free, and is kept open."""
    async with Peer() as peer:
        run = make(peer.port, 500, connections=8)
        notes = await ended(run)
    assert notes.ends == dict.fromkeys(range(500), 202)
    assert Counter(peer.requests) == Counter(each.request for each in run.source.taken)
    assert peer.connections_total == 8
    assert (run.driver.tries, run.driver.retries, run.driver.skipped) == (500, 0, 0)


async def test_open_loop_sends_at_the_intended_times_and_never_before(
    each_alarm: None,
) -> None:
    """No post is sent before its intended time; the end of the source ends the run."""
    wanted = list(moments(constant(500), arrivals="poisson", seed=3, within_s=0.3))
    async with Peer() as peer:
        run = make(peer.port, 10**6, connections=4, schedule=iter(wanted))
        notes = await ended(run)
    assert [number for number, _ in notes.sent] == list(range(len(wanted)))
    for (_, at_s), offset_s in zip(notes.sent, wanted, strict=True):
        assert at_s >= run.driver.started_s + offset_s
    for call in notes.calls:
        assert call.intended_s == run.driver.started_s + wanted[call.number]
        assert call.now_s > call.intended_s
    assert len(peer.requests) == len(wanted)


async def test_post_that_found_no_connection_counts_from_its_intended_time() -> None:
    """No coordinated omission: a stall of the service is in the latency of all waiting posts."""

    answer = asyncio.Event()

    async def stalls(connection: PeerConnection) -> bool:
        await answer.wait()
        await connection.say(reply())
        return True

    async with Peer(stalls) as peer:
        run = make(peer.port, 100, connections=1, schedule=moments(constant(100), within_s=0.3))
        task = asyncio.create_task(ended(run))
        await until(lambda: run.driver.behind_s > 0.3)  # the second post; so all are due
        let_go_s = time.monotonic()
        answer.set()
        notes = await task
    assert len(notes.calls) == 30
    for call in notes.calls:
        assert call.intended_s == run.driver.started_s + call.number / 100
        assert call.now_s >= let_go_s
    assert run.driver.late_s_max >= let_go_s - run.driver.started_s - 0.01
    assert run.driver.lagged <= 1  # only the first one; the service made the others late


async def test_driver_that_is_late_itself_says_so() -> None:
    """A late post counts as `lagged` if a connection was free: the generator is the bottleneck."""
    async with Peer() as peer:
        run = make(peer.port, 10, connections=8, schedule=[0.0, 0.02, 0.04, 0.06])
        sending = run.notes.sending

        def sends_slowly(post: Post) -> None:
            sending(post)
            if post.number == 0:
                time.sleep(0.1)

        run.notes.sending = sends_slowly  # type: ignore[method-assign]
        notes = await ended(run)
    assert len(notes.ends) == 4
    assert run.driver.lagged >= 3
    assert run.driver.lag_s_max >= 0.08
    assert run.driver.late_s_max == run.driver.lag_s_max


# Trying again


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (says(reply(503)), 503),
        (says(reply(503, Retry_After="0")), 503),
        (says(reply(429)), 429),
        (says(reply(408, Connection="close"), then_hangs_up=True), 408),
        (says(reply(500)), 500),
        (says(reply(502)), 502),
        (hangs_up, "the connection was closed without an answer"),
        (resets, "the connection was reset"),
        (says(reply()[:-1], then_hangs_up=True), "the answer was cut off"),
        (says(b"SSH-2.0"), "an answer that is not HTTP/1.1"),
        (says(b"HTTP/1.0 202 x\r\n\r\n", then_hangs_up=True), "an answer in HTTP/1.0"),
        (says(b"HTTP/1.1 100 x\r\n\r\n"), "an interim answer (1xx), which nobody asked for"),
        (is_silent, "no answer within 0.5 s"),
    ],
)
async def test_trouble_is_met_with_the_same_bytes_until_there_is_an_answer(
    script: Script, what: int | str
) -> None:
    """Two faults, then an answer: a call for each, one of them final, the same bytes each time."""
    async with Peer(script, script) as peer:
        run = make(peer.port, 1, connections=1, answer_s_max=0.5)
        notes = await ended(run)
    assert notes.of(0) == [(what, False), (what, False), (202, True)]
    assert all(each.written for each in notes.calls)
    assert peer.requests == [run.source.taken[0].request] * 3
    assert (run.driver.tries, run.driver.retries) == (3, 2)


async def test_retry_after_is_kept_while_the_connection_goes_on_with_others() -> None:
    """A post with Retry-After comes not earlier; the connection sends other posts meanwhile."""
    async with Peer(says(reply(503, Retry_After="1"))) as peer:
        notes = await ended(make(peer.port, 20, connections=1, unanswered_max=10))
    assert [number for number, _ in notes.sent] == [*range(20), 0]
    first_s = notes.calls[0].now_s
    assert notes.of(0) == [(503, False), (202, True)]
    assert notes.sent[-1][1] >= first_s + 1


async def test_refused_connection_after_a_written_try_still_counts_as_written() -> None:
    """Bytes of the first try may be stored, also if the second try was refused."""
    async with Peer(hangs_up) as peer:
        run = make(peer.port, 1, connections=1, retry=NEVER_MIND)
        run.notes.on_call = lambda _: peer.refuse()
        notes = await ended(run)
    assert [each.what for each in notes.calls[1:]] == ["connection refused"] * (
        len(notes.calls) - 1
    )
    assert len(notes.calls) > 1
    assert all(each.written for each in notes.calls)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("open_loop", [False, True])
async def test_no_trouble_in_any_order_loses_track_of_a_post(seed: int, open_loop: bool) -> None:
    """With random answers (good, refused, cut, reset, garbage, late) all posts are accepted."""
    draw = random.Random(seed)

    async def is_late(connection: PeerConnection) -> bool:
        await asyncio.sleep(draw.uniform(0, 0.02))
        await connection.say(reply())
        return True

    kinds: list[Script] = [
        *[says(reply())] * 6,
        *[is_late] * 2,
        says(reply(Connection="close"), then_hangs_up=True),
        says(reply(), then_hangs_up=True),
        says(reply(503)),
        says(reply(503, Retry_After="0", Connection="close"), then_hangs_up=True),
        says(reply()[:30], then_hangs_up=True),
        says(b"\x00" * 100),
        says(reply() + b"more"),
        hangs_up,
        resets,
    ]

    async def does_any(connection: PeerConnection) -> bool | None:
        return await draw.choice(kinds)(connection)

    async with Peer(usual=does_any) as peer:
        schedule = moments(constant(2000), arrivals="poisson", seed=seed) if open_loop else None
        run = make(peer.port, 400, connections=8, schedule=schedule, seed=seed)
        notes = await ended(run)
    assert notes.ends == dict.fromkeys(range(400), 202)
    assert {*peer.bodies} == {b"%d" % number for number in range(400)}
    assert len(peer.requests) <= run.driver.tries
    assert run.driver.retries > 40


# Bounds


async def test_posts_beyond_the_bound_are_skipped_and_counted() -> None:
    """Open loop: posts that are due while too many wait are passed over and counted."""
    async with Peer(usual=says(reply(503, Retry_After="60"))) as peer:
        schedule = moments(constant(1000), within_s=0.2)
        run = make(peer.port, 10**6, connections=4, unanswered_max=10, schedule=schedule)
        task = asyncio.create_task(ended(run))
        await until(lambda: run.driver.taken + run.driver.skipped == 200)
        assert (run.driver.taken, run.driver.waiting) == (10, 10)
        run.driver.stop()
        notes = await task
    assert run.driver.skipped == 190
    assert notes.ends == dict.fromkeys(range(10), "stopped before another try")
    assert len(peer.requests) == 10


# Ending


async def test_stop_lets_posts_in_flight_finish_and_counts_the_unsent() -> None:
    """After `stop` posts in flight finish; the unsent ones are counted."""
    answer = asyncio.Event()

    async def answers_later(connection: PeerConnection) -> bool:
        await answer.wait()
        await connection.say(reply())
        return True

    async with Peer(usual=answers_later) as peer:
        run = make(peer.port, 10**6, connections=2, schedule=moments(constant(1000)))
        task = asyncio.create_task(ended(run))
        await until(lambda: run.driver.behind_s > 0.1)
        due_min = (time.monotonic() - run.driver.started_s) * 1000
        run.driver.stop()
        due_max = (time.monotonic() - run.driver.started_s) * 1000
        run.driver.stop()
        answer.set()
        notes = await task
    assert notes.ends == {0: 202, 1: 202}
    assert due_min - 1 <= run.driver.unsent + 2 <= due_max + 1
    assert run.driver.behind_s == 0


@pytest.mark.parametrize("fault", ["take", "sending", "answered", "lost"])
async def test_fault_of_source_or_observer_ends_the_run(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of source or observer is raised by `run`."""

    def fails(*_: object, **__: object) -> None:
        raise LookupError(fault)

    first = hangs_up if fault == "lost" else says(reply())
    async with Peer(first, usual=is_silent) as peer:
        run = make(peer.port, 10, connections=3)
        monkeypatch.setattr(run.source if fault == "take" else run.notes, fault, fails)
        with pytest.raises(LookupError, match=fault):
            async with asyncio.timeout(5):
                await run.driver.run()
    assert run.notes.calls == []


# With the rest


@pytest.fixture(params=["best", "loop"])
def each_alarm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with each kind of alarm."""
    if request.param == "loop":
        monkeypatch.setattr(loadgen.driver.alarm, "make_alarm", LoopAlarm)
