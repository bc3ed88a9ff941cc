"""The traffic of `loadgen verify`: readings with a ledger, over connections that may break.

Promises: a post is on record before its first byte is sent, and every answer is recorded; service
and database may be killed and started again meanwhile. Does not: judge, or print.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from loadgen.driver.driver import Driver
from loadgen.driver.ports import Loss, Observer
from loadgen.driver.retry import Retry
from loadgen.driver.trust import context_of
from loadgen.proof.balance import read_balance
from loadgen.proof.ledger import ACKS, Details, Final, LedgerWriter
from loadgen.proof.readings import Names, Plan
from loadgen.proof.reconcile import PROBLEM
from loadgen.traffic.encode import FORMATS
from loadgen.traffic.post import Post, Target, finish, head_of, path_for
from loadgen.traffic.schedule import constant, moments
from loadgen.wire.answer import counts_of, fields_of, item_errors_of

PLAIN_BODIES_MAX = 4_096
NO_INDEX = PROBLEM - 1
REFUSED_MAX = 100  # final refusals without an accepted post, after which the run ends


@dataclass(frozen=True, kw_only=True)
class Job:
    """The traffic of one run. `rate` is in posts a second; None: closed loop.

    It ends after `posts` or `duration_s`, whichever comes first. `query` begins with `?` or is
    empty. `fsync`: the ledger survives a crash of the machine, but needs a disk write for each
    group. `retry`: the policy of retries; by default that of the driver, until `give_up_s`.
    `others`: more addresses of the same service; a post goes to any of them. `new_connections` is
    the share of posts that end their connection, so as many come on a new one.
    """

    target: Target
    plan: Plan
    ledger: Path
    query: str = ""
    connections: int = 16
    posts: int | None = None
    duration_s: float | None = None
    rate: float | None = None
    give_up_s: float = 300.0
    answer_s_max: float = 30.0
    fsync: bool = False
    retry: Retry | None = None
    admin_urls: tuple[str, ...] = ()
    others: tuple[Target, ...] = ()
    new_connections: float = 0.0


class Run(Observer):
    """One run of traffic: it is the driver's source and its observer. `await run.go()`, once.

    Counters may be read at any time. Raises OSError if the ledger cannot be written.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.taken = 0
        self.readings = 0
        self.answers: Counter[int] = Counter()  # final answers by status; 0: no answer
        self.retried = 0
        self.trouble = ""
        self.ended = False  # all posts have ended, and the ledger has its end record
        self._names = Names(job.plan)
        target = job.target
        path = path_for(target, job.plan.format) + job.query
        media_type = FORMATS[job.plan.format].media_type
        self._is_answered = FORMATS[job.plan.format].is_answered
        self._asked = parse_qs(job.query.removeprefix("?")).get("ack", [""])[0]
        self._heads = [
            head_of(
                path,
                target.authority,
                token=target.token,
                closes=closes,
                media_type=media_type,
            )
            for closes in (False, True)
        ]
        self._random = random.Random(job.plan.seed)
        self._posts = job.plan.posts()
        self._doubtful: set[int] = set()
        self._plain: dict[bytes, tuple[int, str]] = {}
        self._stopped = self._accepted = False
        self._started_s = self._end_s = 0.0
        self._writer: LedgerWriter  # from `go` on
        self._driver = Driver(
            job.target.host,
            job.target.port,
            self,
            self,
            connections=job.connections,
            schedule=self.due(),
            retry=job.retry or Retry(job.give_up_s),
            answer_s_max=job.answer_s_max,
            others=job.others,
            tls=context_of(job.target),
        )

    async def go(self) -> None:
        """Send all posts; returns when each has its final answer or was given up."""
        job = self.job
        balance = await read_balance(*job.admin_urls) if job.admin_urls else None
        header = {
            "plan": job.plan.to_json(),
            "url": f"{job.target.url}{job.query}",
            "law": balance._asdict() if balance is not None else None,
        }
        self._writer = LedgerWriter(job.ledger, header, fsync=job.fsync)
        try:
            self._started_s = time.monotonic()
            self._end_s = self._started_s + (job.duration_s or float("inf"))
            await self._driver.run()
            self._writer.end(self.taken)
            self.ended = True
        finally:
            with suppress(OSError):  # the error was raised already
                self._writer.flush()
            self._writer.close()

    def due(self) -> Iterator[float] | None:
        """Return when posts are due, in seconds from the start; None: closed loop."""
        rate = self.job.rate
        return None if rate is None else moments(constant(rate))

    @property
    def skipped(self) -> int:
        """Posts that an open loop left out because too many were without an answer."""
        return self._driver.skipped

    @property
    def took_s(self) -> float:
        """Seconds since the first post could be sent."""
        return time.monotonic() - self._started_s

    def finish(self) -> None:
        """Send no new post; posts under way still get their answers."""
        self._stopped = True

    def stop(self) -> None:
        """Send no new post; posts in flight finish, posts that wait for a retry are given up."""
        self._stopped = True
        self._driver.stop()

    # Source

    def take(self) -> Post | None:
        """Return the next post, which is on record before it is returned."""
        number = self.taken
        if number == self.job.posts or self._stopped or time.monotonic() >= self._end_s:
            return None
        self._writer.take(number)
        self.taken += 1
        items = next(self._posts)
        readings = items[0].count if len(items) == 1 else sum(item.count for item in items)
        self.readings += readings
        head = self._heads[self._random.random() < self.job.new_connections]
        return Post(finish(head, self._names.body(items, number)), readings, "", number)

    # Observer

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Note an answer."""
        at_ms = self._at_ms(now_s)
        if not final:
            self.retried += 1
            self.trouble = f"status {status}"
            self._doubtful.add(post.number)
            self._writer.tried(post.number, status, at_ms)
            return
        self.answers[status] += 1
        if 400 <= status < 500 and not self._accepted and self.answers[status] >= REFUSED_MAX:
            self.finish()
        doubt = post.number in self._doubtful
        if doubt:
            self._doubtful.discard(post.number)
        plain = self._plain.get(body)
        if plain is not None and plain[0] == post.readings and 200 <= status < 300:
            self._writer.final(post.number, Final(status, plain[1], doubt), at_ms)
            return
        last, details = self._understood(status, body, doubt)
        if details is not None and last.ack and not details.codes and not details.dead_lettered:
            if len(self._plain) < PLAIN_BODIES_MAX:
                self._plain[body] = details.accepted, last.ack
            if details.accepted == post.readings:
                details = None
        self._accepted |= bool(last.ack) or (not self._is_answered and 200 <= status < 300)
        self._writer.final(post.number, last, at_ms, details)

    def lost(self, loss: Loss) -> None:
        """Note a try without an answer, or that the post was given up."""
        number, at_ms = loss.post.number, self._at_ms(loss.now_s)
        if loss.written:
            self._doubtful.add(number)
        if not loss.final:
            self.retried += 1
            self.trouble = loss.why
            self._writer.tried(number, 0, at_ms)
            return
        self.answers[0] += 1
        self._writer.final(number, Final(0, doubt=number in self._doubtful), at_ms)
        self._doubtful.discard(number)

    def _at_ms(self, now_s: float) -> int:
        return max(0, int((now_s - self._started_s) * 1000)) & 0xFFFF_FFFF

    def _understood(self, status: int, body: bytes, doubt: bool) -> tuple[Final, Details | None]:
        """Read an answer. A final 503 or 429 promises neither acceptance nor refusal."""
        fields = fields_of(body)
        if not 200 <= status < 300:
            if status >= 500 or status in {408, 429}:
                return Final(status, doubt=True), None
            code = str(fields.get("code", "")) or "without_code"
            return Final(status, doubt=doubt), Details(0, 0, False, {PROBLEM: code})
        if not self._is_answered and (status == 204 or fields.get("faulty") == 0):
            return Final(status, self._asked, doubt), None
        counts, ack = counts_of(fields), fields.get("ack")
        if counts is None or min(counts) < 0 or ack not in ACKS[1:]:
            return Final(status, doubt=doubt, odd=True), None
        codes = {
            # An index that no post can have becomes NO_INDEX: the comparison reports it.
            each["index"] if 0 <= each["index"] < NO_INDEX else NO_INDEX: str(each.get("code", ""))
            for each in item_errors_of(fields)
        }
        truncated = bool(fields.get("errors_truncated"))
        return Final(status, ack, doubt), Details(*counts, truncated, codes)
