"""Sends posts over many connections when they are due, and again until they have an answer.

Open loop: only the schedule decides the moments. A post without a free connection waits as an
intended time (a place in the schedule, not a finished body), and its latency counts from that time.
So a slow service cannot look fast because it delays its own load. Closed loop: each connection
takes the next post as soon as it is free.

How exact: a post is sent within 0.3 ms after its intended time (Linux, Python 3.13; elsewhere 1.5
ms), if a connection is free and the machine has a core for the driver. Wake-ups nearer than
`GRAIN_S` become one: so one core sends 20,000 posts a second. `lagged` and `lag_s_max` say how
often and how late the driver itself was. If its thread uses a whole core (`time.thread_time`), it
is the bottleneck even if they are small.

Promises: the same bytes in every try; a post is in flight once at most; every post taken from the
source ends in one call with `final=True`. Does not: read a post's body.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Iterable, Sequence

from loadgen.driver.alarm import Waker
from loadgen.driver.connection import Answer, Connection
from loadgen.driver.due import DueTimes
from loadgen.driver.pool import Pool
from loadgen.driver.ports import Loss, Observer, Source
from loadgen.driver.retry import RETRY, Flight, Retry, RetryQueue
from loadgen.traffic.post import Target

GRAIN_S = 0.000_25
LAG_S = 0.001  # less than this is no lag
RECONNECT_PAUSE_S = 0.1
WAITING_MAX = 10_000  # times a post of 100 readings: 100 MB
WAITING_PER_CONNECTION_MAX = 4


class Driver:
    """Drives one service. `await Driver(..).run()`, once.

    `others`: more addresses of it; each has its share of the connections, and gets any post. All of
    them are connected to with `tls`.
    `schedule` yields the intended send times in seconds from the start, growing (open loop); None
    is the closed loop. `retry` None: no retries. `answer_s_max`: a connection without an answer
    for so long is dropped. `unanswered_max` bounds the posts in flight and waiting for a retry (by
    default 10,000, closed loop: 4 a connection): at the bound no post is taken; in open loop times
    are passed over and counted in `skipped`. So are those without a connection for `behind_s_max`.
    Raises ValueError for an impossible number.
    """

    def __init__(
        self,
        host: str,
        port: int,
        source: Source,
        observer: Observer,
        *,
        connections: int = 64,
        schedule: Iterable[float] | None = None,
        retry: Retry | None = RETRY,
        answer_s_max: float = 30.0,
        unanswered_max: int | None = None,
        behind_s_max: float = math.inf,
        seed: int | None = None,
        others: Sequence[Target] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if unanswered_max is None:
            closed_max = WAITING_PER_CONNECTION_MAX * connections
            unanswered_max = closed_max if schedule is None else max(WAITING_MAX, connections)
        if not (1 <= connections <= unanswered_max and min(answer_s_max, behind_s_max) > 0):
            raise ValueError("needs a connection, no more of them than posts, and time to answer")
        self.taken = 0  # posts taken from the source
        self.tries = 0  # requests written
        self.retries = 0  # tries after the first of their post, refused connections included
        self.skipped = 0  # intended times passed over, see above
        self.unsent = 0  # intended times that had come when `stop` was called, but had no post yet
        self.in_flight = 0
        self.lag_s_max = 0.0  # latest send although a connection was free: caused by the driver
        self.lagged = 0  # posts that the driver itself sent more than LAG_S late
        self.late_s_max = 0.0  # latest first try after its intended time, for any reason
        self.started_s = time.monotonic()  # what the schedule counts from; set by `run`
        self._source, self._observer = source, observer
        self._closed_loop = schedule is None
        self._due = DueTimes(schedule)
        self._answer_s_max = answer_s_max
        self._unanswered_max = unanswered_max
        self._behind_s_max = math.inf if schedule is None else behind_s_max
        self._pool = Pool([(host, port), *(each[:2] for each in others)], self, connections, tls)
        self._waiting = RetryQueue(retry, seed)
        self._waker: Waker  # these two from `run` on
        self._over: asyncio.Future[None]
        self._begun = self._stopping = self._ended = False

    @property
    def waiting(self) -> int:
        """Posts that wait to be tried again."""
        return len(self._waiting)

    @property
    def behind_s(self) -> float:
        """Seconds since the next post was due; 0 if the driver is in time (and in closed loop)."""
        due_s = self._due.next_s
        return max(0.0, time.monotonic() - due_s) if math.isfinite(due_s) else 0.0

    async def run(self) -> None:
        """Connect, then send until schedule or source end and every post has its final call.

        A service that does not run yet is no error: posts are tried as usual. An exception of the
        source or the observer ends the run and is raised here. Cancelled, it drops all connections;
        open posts get `lost(.., final=True)` first.
        """
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._waker = Waker(loop, self._pump, GRAIN_S)
        watch = loop.create_task(self._pool.watch(self._answer_s_max))
        try:
            await self._pool.fill()
            self._begin()
            await self._over
        finally:
            try:
                if not self._over.done() or self._over.cancelled():
                    self._abandon()
            finally:
                self._ended = True
                self._waker.close()
                watch.cancel()
                await asyncio.gather(watch, self._pool.close(), return_exceptions=True)

    def stop(self) -> None:
        """Take no more posts; posts in flight finish, posts that wait for a retry are given up.

        `run` returns when the last one has finished (at most `answer_s_max` later) and the unsent
        ones are counted by the event loop. May be called twice.
        """
        if not self._stopping:
            self._stopping = True
            self._count_unsent(time.monotonic())
        self._give_up_waiting("stopped before another try")
        self._end_if_over()

    def _count_unsent(self, until_s: float) -> None:
        if self._ended:
            return
        self.unsent += self._due.pass_over(until_s)
        if self._due.next_s <= until_s and not self._closed_loop:
            asyncio.get_running_loop().call_soon(self._count_unsent, until_s)
        else:
            self._due.end()
            self._end_if_over()

    # Beginning and ending

    def _begin(self) -> None:
        self._begun = True
        self.started_s = time.monotonic()
        if not self._stopping:
            self._due.begin(self.started_s)
        self._pump()

    def _end_if_over(self) -> None:
        left = self._due.next_s < math.inf or self.in_flight or self._waiting
        if self._begun and not left and not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: Exception) -> None:
        """End the run with an error: the event loop would only log what its callbacks raise."""
        if not self._over.done():
            self._over.set_exception(error)

    def _abandon(self) -> None:
        why = "the driver was ended at once"
        self._stopping = True
        self._due.end()
        self._give_up_waiting(why)
        for flight in self._pool.opening.values():
            self._lose(flight, why)
        self._pool.drop_all(why)
        self.in_flight = 0

    def _give_up_waiting(self, why: str) -> None:
        for flight in self._waiting.end():
            self._lose(flight, why)

    def _lose(self, flight: Flight, why: str) -> None:
        self._tell_lost(flight, why, time.monotonic(), final=True)

    def _tell_lost(self, flight: Flight, why: str, now_s: float, *, final: bool) -> None:
        loss = Loss(flight.post, why, flight.written, flight.intended_s, now_s, final)
        self._observer.lost(loss)

    # Sending

    def _arm(self) -> None:
        """Set the alarm to the moment at which the next post is due."""
        due_s = self._waiting.next_s
        if not (self._closed_loop or self._stopping):
            due_s = min(due_s, self._due.next_s)
        if due_s < self._waker.next_s:
            self._waker.wake_by(due_s)

    def _pump(self) -> None:
        """Send due posts, as long as there are free connections."""
        if self._ended:
            return
        pool = self._pool
        try:
            while pool.ready:  # else the next answer continues
                now_s = time.monotonic()
                flight = self._next(now_s)
                if flight is None:
                    self._arm()
                    break
                if pool.must_open:
                    pool.open(flight)
                    continue
                self._send(pool.free.popleft(), flight, now_s)
            self._end_if_over()
        except Exception as error:
            self._fail(error)

    def _next(self, now_s: float) -> Flight | None:
        """Return the next due post, counted as in flight; None: none is due."""
        if self._waiting.next_s <= now_s:
            self.retries += 1
            self.in_flight += 1
            return self._waiting.pop()
        due = self._due
        if due.next_s > now_s or self._stopping:
            return None
        full = self.in_flight + len(self._waiting) >= self._unanswered_max
        if full or now_s - due.next_s > self._behind_s_max:
            until_s = now_s if full else now_s - self._behind_s_max
            self.skipped += due.pass_over(until_s)
            if full or due.next_s > now_s or due.next_s <= until_s:
                return None
        post = self._source.take()
        if post is None:
            due.end()
            return None
        self.taken += 1
        self.in_flight += 1
        if self._closed_loop:
            return Flight(post, now_s, now_s)
        due_s = due.next_s
        if now_s - due_s > LAG_S:
            self._note_late(due_s, now_s)
        due.advance()
        return Flight(post, due_s, now_s)

    def _note_late(self, due_s: float, now_s: float) -> None:
        self.late_s_max = max(self.late_s_max, now_s - due_s)
        free = self._pool.free
        if free and free[0].open:  # it was free all the time: it takes a due post at once
            self.lagged += 1
            self.lag_s_max = max(self.lag_s_max, now_s - due_s)

    def _send(self, connection: Connection, flight: Flight, now_s: float) -> None:
        self.tries += 1
        flight.tries += 1
        flight.written = True
        connection.flight = flight
        connection.sent_s = now_s
        self._observer.sending(flight.post)
        connection.send(flight.post.request)

    # Calls of the connections

    def answered(self, connection: Connection, answer: Answer) -> None:
        """Take an answer; if a post is due, send it at once over this connection."""
        if self._ended:
            return
        now_s = time.monotonic()
        flight = connection.flight
        assert flight is not None, "it was sent"
        status = answer.status
        self.in_flight -= 1
        try:
            again_s = None
            if status >= 500 or status in {408, 429}:
                again_s = self._waiting.again_s(flight, now_s, answer.retry_after_s)
            self._observer.answered(
                flight.post, status, answer.body, flight.intended_s, now_s, final=again_s is None
            )
            if again_s is not None:
                self._waiting.push(flight, again_s)
            if not connection.open:
                self._pool.forget(connection)
                self._pump()
                return
            following = self._next(now_s)
            if following is not None:
                self._send(connection, following, now_s)
                return
            connection.flight = None
            self._pool.free.append(connection)
            self._arm()
            if self._due.next_s == math.inf:
                self._end_if_over()
        except Exception as error:
            self._fail(error)

    def broken(self, connection: Connection, why: str) -> None:
        """Plan another try of the post, if the policy allows it."""
        self._pool.forget(connection)
        if not self._ended:
            assert connection.flight is not None, "it was sent"
            self._fall(connection.flight, why)
            self._pump()

    def closed(self, connection: Connection) -> None:
        """Forget the connection; the pool opens another one when it is needed."""
        self._pool.forget(connection)

    def connected(self, connection: Connection, flight: Flight) -> None:
        """Send the post for which the connection was opened."""
        try:
            self._send(connection, flight, time.monotonic())
        except Exception as error:
            self._fail(error)

    def not_connected(self, flight: Flight, why: str) -> None:
        """Plan another try of the post, if the policy allows it."""
        flight.tries += 1
        if self._closed_loop:  # else the closed loop would try again at once, without end
            asyncio.get_running_loop().call_later(RECONNECT_PAUSE_S, self._give_back)
        else:
            self._pool.places += 1
        self._fall(flight, why)
        self._pump()

    def _give_back(self) -> None:
        self._pool.places += 1
        self._pump()

    def _fall(self, flight: Flight, why: str) -> None:
        """Report a try without an answer, and plan the next one."""
        now_s = time.monotonic()
        self.in_flight -= 1
        again_s = self._waiting.again_s(flight, now_s, None)
        try:
            self._tell_lost(flight, why, now_s, final=again_s is None)
        except Exception as error:
            self._fail(error)
        if again_s is not None:
            self._waiting.push(flight, again_s)
