"""The driver sends at the right moments, sends the same bytes again, and forgets no post."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import loadgen.driver.alarm
import loadgen.driver.pool
from loadgen.driver.alarm import Alarm, LoopAlarm, Waker, make_alarm
from loadgen.driver.connection import Connection
from loadgen.driver.driver import Driver
from loadgen.driver.due import SLICE_POSTS
from loadgen.driver.ports import Loss
from loadgen.driver.retry import Retry
from loadgen.traffic.post import Post, finish, head_of, target_of
from loadgen.traffic.schedule import constant, moments
from tests.support.faulty_proxy import FaultyProxy
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
from tests.system.service import Service

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


async def test_observer_hears_of_a_try_before_its_first_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sending` is called before the first byte, so that a ledger has each post."""
    order: list[str] = []

    def send(connection: Connection, request: bytes) -> None:
        order.append("byte")
        written(connection, request)

    written = Connection.send
    monkeypatch.setattr(Connection, "send", send)
    async with Peer() as peer:
        run = make(peer.port, 3, connections=1)
        monkeypatch.setattr(run.notes, "sending", lambda _: order.append("sending"))
        await run.driver.run()
    assert order == ["sending", "byte"] * 3


async def test_schedule_without_end_stops_with_the_source() -> None:
    """An endless schedule ends with its source (`--posts` without `--duration-s`)."""
    async with Peer() as peer:
        run = make(peer.port, 50, schedule=moments(constant(2000)))
        assert len((await ended(run)).ends) == 50


async def test_nothing_to_send_is_an_end() -> None:
    """An empty schedule or an empty source ends the run at once."""
    async with Peer() as peer:
        for posts, schedule in ((0, None), (0, [0.0]), (5, [])):
            run = make(peer.port, posts, schedule=schedule)
            await ended(run)
            assert run.driver.taken == 0
    assert peer.requests == []


async def test_all_connections_are_opened_before_the_first_post() -> None:
    """The connections are opened before the first post, so that no latency contains one."""
    async with Peer() as peer:
        await ended(make(peer.port, 1, connections=150))
        await until(lambda: peer.connections_total == 150)


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


@pytest.mark.parametrize("status", [200, 202, 302, 400, 401, 413, 415, 422])
async def test_final_answer_is_final(status: int) -> None:
    """A final answer is not followed by another try."""
    async with Peer(usual=says(reply(status))) as peer:
        notes = await ended(make(peer.port, 3))
    assert notes.ends == dict.fromkeys(range(3), status)
    assert len(peer.requests) == 3


async def test_retry_after_is_kept_while_the_connection_goes_on_with_others() -> None:
    """A post with Retry-After comes not earlier; the connection sends other posts meanwhile."""
    async with Peer(says(reply(503, Retry_After="1"))) as peer:
        notes = await ended(make(peer.port, 20, connections=1, unanswered_max=10))
    assert [number for number, _ in notes.sent] == [*range(20), 0]
    first_s = notes.calls[0].now_s
    assert notes.of(0) == [(503, False), (202, True)]
    assert notes.sent[-1][1] >= first_s + 1


async def test_waits_after_retry_after_are_spread() -> None:
    """The pause is up to half longer, at random, so posts do not come back together."""
    async with Peer(*[says(reply(503, Retry_After="1"))] * 40) as peer:
        run = make(peer.port, 40, connections=40, seed=5)
        notes = await ended(run)
    assert len(peer.requests) == 80
    refused_s = {each.number: each.now_s for each in notes.calls if each.what == 503}
    waits = sorted(at_s - refused_s[number] for number, at_s in notes.sent[40:])
    assert waits[0] >= 1
    assert waits[-1] - waits[0] > 0.25  # 40 draws from half a second


async def test_without_retry_the_first_outcome_is_the_end() -> None:
    """Without a retry policy the first outcome is final."""
    async with Peer(says(reply(503)), hangs_up, is_silent) as peer:
        run = make(peer.port, 4, connections=1, retry=None, answer_s_max=0.5)
        notes = await ended(run)
    assert notes.ends == {
        0: 503,
        1: "the connection was closed without an answer",
        2: "no answer within 0.5 s",
        3: 202,
    }
    assert (run.driver.tries, run.driver.retries) == (4, 0)


async def test_post_is_given_up_after_its_time() -> None:
    """After its time the last fault is the final outcome."""
    async with Peer(usual=says(reply(503))) as peer:
        notes = await ended(make(peer.port, 3, retry=NEVER_MIND))
    assert notes.ends == dict.fromkeys(range(3), 503)
    assert len(peer.requests) > 3
    for number in range(3):
        first_s, last_s = (
            [at_s for sent, at_s in notes.sent if sent == number][place] for place in (0, -1)
        )
        assert last_s - first_s < 2


@pytest.mark.parametrize("open_loop", [False, True])
async def test_service_that_is_not_there_leads_to_lost_posts_that_were_not_written(
    open_loop: bool, free_port: int
) -> None:
    """Posts to a closed port are lost, and not `written`."""
    schedule = moments(constant(100)) if open_loop else None
    notes = await ended(make(free_port, 5, connections=2, schedule=schedule, retry=NEVER_MIND))
    assert notes.ends == dict.fromkeys(range(5), "connection refused")
    assert not any(each.written for each in notes.calls)
    assert notes.sent == []
    assert len(notes.calls) > 5


async def test_refused_connections_are_tried_ever_more_rarely(free_port: int) -> None:
    """The pauses grow from 1 ms on, so a service that is down gets few tries."""
    retry = Retry(give_up_s=0.5, pause_s_min=0.001, pause_s_max=10)
    notes = await ended(make(free_port, 1, connections=1, schedule=[0.0], retry=retry))
    assert 1 < len(notes.calls) < 60  # about a dozen; without growing pauses some 1,000


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


async def test_service_that_comes_back_gets_all_that_it_missed() -> None:
    """After connections are cut and refused for a time, all posts get their answer."""
    async with Peer() as peer, FaultyProxy("127.0.0.1", peer.port) as proxy:
        run = make(proxy.port, 400, connections=8, schedule=moments(constant(1000)))
        task = asyncio.create_task(ended(run))
        await until(lambda: len(peer.requests) >= 100)
        proxy.refuse()
        await proxy.cut()
        await asyncio.sleep(0.1)
        assert run.driver.waiting > 0
        await proxy.accept()
        notes = await task
    assert notes.ends == dict.fromkeys(range(400), 202)
    assert {*peer.bodies} == {b"%d" % number for number in range(400)}
    assert any(each.what == "connection refused" for each in notes.calls)


async def test_connection_close_is_honoured_without_loss() -> None:
    """With `Connection: close` each post gets a new connection, and none is lost."""
    usual = says(reply(Connection="close"), then_hangs_up=True)
    async with Peer(usual=usual) as peer:
        notes = await ended(make(peer.port, 30, connections=3))
    assert [each.what for each in notes.calls] == [202] * 30
    assert len(peer.requests) == peer.connections_total - peer_idle(peer) == 30


def peer_idle(peer: Peer) -> int:
    """The number of connections without a request."""
    return peer.connections_total - len(peer.requests)


async def test_service_that_closes_free_connections_loses_no_post() -> None:
    """If the service closes free connections, the driver connects again."""
    async with Peer(usual=says(reply(), then_hangs_up=True)) as peer:
        notes = await ended(make(peer.port, 2, connections=1, schedule=[0.0, 0.3]))
    assert [each.what for each in notes.calls] == [202, 202]
    assert peer.connections_total == 2


async def test_free_connection_is_kept_however_long_it_is_free() -> None:
    """`answer_s_max` concerns only connections with a request in flight."""
    async with Peer() as peer:
        run = make(peer.port, 2, connections=1, schedule=[0.0, 1.1], answer_s_max=0.5)
        notes = await ended(run)
    assert [each.what for each in notes.calls] == [202, 202]
    assert peer.connections_total == 1


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


async def test_posts_that_found_no_connection_for_too_long_are_skipped_and_counted() -> None:
    """In a stall of 0.4 s, posts that were due more than 0.1 s before are passed over.

    Without a bound nothing is skipped: see the test of coordinated omission.
    """

    async def stalls(connection: PeerConnection) -> bool:
        await asyncio.sleep(0.4)
        await connection.say(reply())
        return True

    async with Peer(stalls) as peer:
        schedule = moments(constant(1000), within_s=0.3)
        run = make(peer.port, 10**6, connections=1, schedule=schedule, behind_s_max=0.15)
        notes = await ended(run)
    assert run.driver.taken + run.driver.skipped == 300
    assert 240 <= run.driver.skipped < 300
    due_before_s = notes.calls[0].now_s - run.driver.started_s - 0.15
    due_before = sum(0 < number / 1000 <= due_before_s for number in range(300))
    assert run.driver.skipped >= due_before - 1
    # And none too early, also if the machine made the run stand still once more.
    sent_s = dict(notes.sent)
    posts = sorted((each.intended_s, sent_s[each.number]) for each in notes.calls)
    for (before_s, _), (due_s, at_s) in pairwise(posts):
        if round((due_s - before_s) * 1000) > 1:  # the one before it was skipped
            assert at_s - (due_s - 0.001) > 0.15


async def test_post_after_those_that_are_skipped_is_not_sent_early() -> None:
    """A passed-over post does not make the next one early."""

    async def stalls(connection: PeerConnection) -> bool:
        await asyncio.sleep(0.2)
        await connection.say(reply())
        return True

    async with Peer(stalls) as peer:
        schedule = [0.0, 0.01, 0.4]
        notes = await ended(make(peer.port, 9, connections=1, schedule=schedule, behind_s_max=0.05))
    assert [each.what for each in notes.calls] == [202, 202]


async def test_closed_loop_holds_no_more_posts_than_its_bound() -> None:
    """At its bound the closed loop waits for the posts that wait."""
    open_max = 0

    def count(_: Call) -> None:
        nonlocal open_max
        ended_before = sum(each.final for each in run.notes.calls[:-1])
        open_max = max(open_max, run.driver.taken - ended_before)

    async with Peer(*[says(reply(503))] * 100) as peer:
        run = make(peer.port, 60, connections=2, unanswered_max=5)
        run.notes.on_call = count
        notes = await ended(run)
    assert notes.ends == dict.fromkeys(range(60), 202)
    assert open_max == 5


async def test_closed_loop_without_a_service_does_not_spin(free_port: int) -> None:
    """Without retries each post is lost at once; there is a pause before the next one."""
    run = make(free_port, 10**6, connections=2, retry=None)
    task = asyncio.create_task(ended(run))
    await asyncio.sleep(0.35)
    run.driver.stop()
    passed_s = time.monotonic() - run.driver.started_s
    await task
    assert 2 <= run.driver.taken <= 2 * (1 + passed_s / 0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"connections": 0},
        {"connections": 11, "unanswered_max": 10},
        {"answer_s_max": 0},
        {"behind_s_max": 0},
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    """Impossible numbers are errors before a post is sent."""
    with pytest.raises(ValueError, match="needs a connection"):
        make(1, 1, **options)


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


class Counted:
    """A schedule of posts that are all due at the start; counts those that were passed over."""

    def __init__(self, posts: int) -> None:
        self.seen = 0
        self._posts = posts

    def __iter__(self) -> Iterator[float]:
        """Yield them."""
        for _ in range(self._posts):
            self.seen += 1
            yield 0.0


async def test_stop_far_behind_leaves_the_loop_free_and_counts_every_post() -> None:
    """With a million posts a second, `stop` does not block the event loop, and counts all."""
    answer = asyncio.Event()

    async def answers_later(connection: PeerConnection) -> bool:
        await answer.wait()
        await connection.say(reply())
        return True

    schedule = Counted(20 * SLICE_POSTS)
    async with Peer(usual=answers_later) as peer:
        run = make(peer.port, 10**6, connections=2, schedule=schedule)
        task = asyncio.create_task(ended(run))
        await until(lambda: len(peer.requests) == 2)
        run.driver.stop()
        assert schedule.seen <= 2 * SLICE_POSTS
        await asyncio.sleep(0)
        run.driver.stop()
        assert schedule.seen <= 4 * SLICE_POSTS
        answer.set()
        notes = await task
    assert notes.ends == {0: 202, 1: 202}
    assert run.driver.unsent == 20 * SLICE_POSTS - 2


async def test_run_ended_at_once_counts_no_further() -> None:
    """A run that is ended at once does not wait for the count."""
    schedule = Counted(1000 * SLICE_POSTS)
    async with Peer(usual=is_silent) as peer:
        run = make(peer.port, 10**6, connections=2, schedule=schedule)
        task = asyncio.create_task(run.driver.run())
        await until(lambda: len(peer.requests) == 2)
        run.driver.stop()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        seen = schedule.seen
        await asyncio.sleep(0.01)
    assert schedule.seen == seen < 100 * SLICE_POSTS
    check(run)


async def test_posts_are_passed_over_in_slices() -> None:
    """Between two slices of passed-over posts the event loop runs."""
    most = 0
    schedule = Counted(20 * SLICE_POSTS)
    async with Peer(usual=says(reply(503, Retry_After="60"))) as peer:
        run = make(peer.port, 10**6, connections=1, unanswered_max=3, schedule=schedule)
        task = asyncio.create_task(ended(run))
        before = 0
        while run.driver.skipped + run.driver.taken < 20 * SLICE_POSTS:
            await asyncio.sleep(0)
            most, before = max(most, schedule.seen - before), schedule.seen
        run.driver.stop()
        await task
    assert most <= 2 * SLICE_POSTS
    assert run.driver.skipped == 20 * SLICE_POSTS - 3


async def test_stop_before_the_start_sends_nothing() -> None:
    """`stop` before the start sends no post."""
    async with Peer() as peer:
        run = make(peer.port, 10)
        run.driver.stop()
        await ended(run)
    assert peer.requests == []


async def test_cancelled_run_ends_every_post_and_every_connection() -> None:
    """Each post in flight or waiting gets one final call, and no connection is left open."""
    async with Peer(says(reply(503, Retry_After="60")), usual=is_silent) as peer:
        run = make(peer.port, 10**6, connections=3)
        task = asyncio.create_task(run.driver.run())
        await until(lambda: len(peer.requests) == 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        check(run)
        assert run.notes.ends == dict.fromkeys(range(4), "the driver was ended at once")
        await peer.emptied()


async def test_run_cancelled_before_its_start_leaves_nothing() -> None:
    """A run cancelled while it opens its first connections leaves none."""
    async with Peer() as peer:
        run = make(peer.port, 10, connections=100)
        task = asyncio.create_task(run.driver.run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        check(run)
        await peer.emptied()
    assert run.notes.calls == []


async def test_cancelled_run_ends_a_post_whose_connection_is_being_opened(free_port: int) -> None:
    """A post whose connection neither opens nor fails gets its final call, too."""
    run = make(free_port, 5, connections=1)
    task = asyncio.create_task(run.driver.run())
    await until(lambda: len(run.notes.calls) > 0)
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", free_port))
        full.listen(0)
        for _ in range(2):
            one = sockets.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", free_port))
        await asyncio.sleep(0.3)  # much more than the pauses between tries
        assert run.driver.in_flight == 1
        assert run.notes.sent == []
        task.cancel()
        await asyncio.wait([task], timeout=5)  # the connection would take longer to fail
        assert task.cancelled()
    check(run)
    assert "the driver was ended at once" in run.notes.ends.values()


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


def note_now(moments_s: list[float]) -> None:
    """Note the moment."""
    moments_s.append(time.monotonic())


@pytest.mark.parametrize("kind", [make_alarm, LoopAlarm])
async def test_alarm_rings_once_never_early_and_can_be_moved(
    kind: Callable[[asyncio.AbstractEventLoop, Callable[[], None]], Alarm],
) -> None:
    """The last moment that was set counts, whether earlier or later."""
    rung: list[float] = []
    alarm = kind(asyncio.get_running_loop(), partial(note_now, rung))
    begun_s = time.monotonic()
    for offset_s in (0.01, 0.03, 0.0205):
        alarm.set(begun_s + offset_s)
    await until(lambda: len(rung) > 0)
    await asyncio.sleep(0.03)
    assert len(rung) == 1
    assert rung[0] >= begun_s + 0.0205
    alarm.set(begun_s)  # long over
    await until(lambda: len(rung) == 2)
    for number in range(3, 43):
        due_s = time.monotonic() + 0.002 + number * 0.000_037  # any part of a millisecond
        alarm.set(due_s)
        await until(lambda: len(rung) == number)  # noqa: B023  called before it changes
        assert rung[-1] >= due_s
    alarm.set(time.monotonic() + 0.01)
    alarm.close()
    await asyncio.sleep(0.03)
    assert len(rung) == 42


async def test_waker_wakes_at_the_earliest_moment_but_not_twice_within_its_grain() -> None:
    """Near moments are one wake-up; a later moment does not delay it."""
    rung: list[float] = []
    waker = Waker(asyncio.get_running_loop(), partial(note_now, rung), 0.05)
    begun_s = time.monotonic()
    for offset_s in (0.03, 0.02, 0.5):
        waker.wake_by(begun_s + offset_s)
    assert waker.next_s == begun_s + 0.02
    await until(lambda: len(rung) == 1)
    assert rung[0] >= begun_s + 0.02
    assert waker.next_s == math.inf
    for offset_s in (0.0, 0.01, 0.02):
        waker.wake_by(rung[0] + offset_s)
    await until(lambda: len(rung) == 2)
    assert rung[1] - rung[0] >= 0.05
    waker.close()


async def test_several_addresses_share_the_connections_and_the_posts() -> None:
    """Each gateway gets as many connections; while one is away the other takes all posts."""
    async with Peer() as first, Peer() as second:
        others = [target_of(f"http://127.0.0.1:{second.port}")]
        run = make(first.port, 400, connections=8, others=others)
        notes = await ended(run)
        assert set(notes.ends.values()) == {202}
        counts = [len(first.requests), len(second.requests)]
        assert sum(counts) == 400
        assert min(counts) > 100
    async with Peer() as first:
        run = make(first.port, 50, connections=8, others=others)
        notes = await ended(run)
        assert set(notes.ends.values()) == {202}
        assert len(first.requests) == 50
        assert {each.what for each in notes.calls if not each.final} == {"connection refused"}


@pytest.mark.parametrize("rate", [None, 200])
async def test_gateway_that_comes_back_gets_its_share_again(
    free_port: int, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets connections also if those to the other one would do."""
    monkeypatch.setattr(loadgen.driver.pool, "EVEN_S", 0.05)
    async with Peer() as first:
        others = [target_of(f"http://127.0.0.1:{free_port}")]
        schedule = None if rate is None else moments(constant(rate))
        run = make(first.port, 10**6, connections=4, others=others, schedule=schedule)
        running = asyncio.create_task(run.driver.run())
        await until(lambda: len(first.requests) > 20)
        second = Peer()
        second.port = free_port
        async with second:
            await until(lambda: len(second.requests) > 20)
            run.driver.stop()
            await running
    check(run)


async def test_real_service_takes_what_the_driver_sends(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Closed loop against the real service: each reading is in the table once."""
    async with Service(open_tmp_path, database_url=readings_url, database_unsafe=True) as service:
        await service.wait_state("accepting")
        target = target_of(service.url)
        notes = Notes()

        class Readings(Numbers):
            def take(self) -> Post | None:
                post = super().take()
                if post is None:
                    return None
                body = b'{"device_id":"d","metric":"m","ts":%d,"value":%d}' % (
                    1_750_000_000_000 + post.number,
                    post.number,
                )
                return post._replace(request=finish(head_of(target.path, target.authority), body))

        driver = Driver(target.host, target.port, Readings(3000), notes, connections=16)
        async with asyncio.timeout(30):
            await driver.run()
        await service.wait_quiet()
        rows = await service.query("select count(*), count(distinct value) from readings")
    assert notes.ends == dict.fromkeys(range(3000), 202)
    assert tuple(rows[0]) == (3000, 3000)
