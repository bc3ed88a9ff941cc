"""Sends posts over many connections when they are due, and again until they have an answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from loadgen.post import Post


class Source(Protocol):
    """Where the posts come from."""

    def take(self) -> Post | None:
        """Return the next post, or None: finished, and never asked again. Must not block."""


class Observer(Protocol):
    """Who is told what happened. Called on the loop, so each call must be short.

    Each post that was taken gets exactly one call with `final=True`, the last one about it.
    All times are of `time.monotonic`; `intended_s` is the moment at which the schedule wanted the
    first try (closed loop: at which it was taken), the same for all tries of a post.
    """

    def sending(self, post: Post) -> None:
        """Tell that a try begins: its first byte is not written yet."""

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Tell of a whole answer. Not `final`: the post will be tried again."""

    def lost(
        self,
        post: Post,
        why: str,
        written: bool,
        intended_s: float,
        now_s: float,
        *,
        final: bool,
    ) -> None:
        """Tell that a try ended without an answer, or that the post was given up.

        `written`: bytes of this or an earlier try may have reached the service, so the post may
        be stored. There may have been no `sending`: the connection was refused.
        """


class Retry(NamedTuple):
    """How to try again: until `give_up_s` after the first try; pauses without a Retry-After."""

    give_up_s: float = 300.0
    pause_s_min: float = 0.2
    pause_s_max: float = 10.0


class Driver:
    """Drives one service. `await Driver(..).run()`.

    `schedule` yields the intended send times in seconds from the start, growing (open loop); None
    is the closed loop: each connection takes a post as soon as it is free. `retry` None: never.
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
        retry: Retry | None = Retry(),  # noqa: B008  immutable
        answer_s_max: float = 30.0,
        unanswered_max: int = 10_000,
        seed: int | None = None,
    ) -> None:
        self.taken = 0  # posts taken from the source
        self.tries = 0  # requests written
        self.retries = 0  # tries that were not the first of their post
        self.skipped = 0  # intended times passed over because `unanswered_max` posts were open
        self.unsent = 0  # intended times that had come when `stop` was called, but had no post yet
        self.in_flight = 0
        self.waiting = 0  # posts that wait to be tried again
        self.lag_s_max = 0.0  # latest send though a connection was free: the driver's own fault
        self.late_s_max = 0.0  # latest first try after its intended time, for whatever reason
        self.started_s = time.monotonic()  # what the schedule counts from; set by `run`

    @property
    def behind_s(self) -> float:
        """How long ago the next post should have been sent; 0 in time (and in closed loop)."""
        return 0.0

    async def run(self) -> None:
        """Connect, then send until schedule or source end and every post has its final call.

        What the source or the observer raises ends the run and is raised here. Cancelled, it
        drops all connections; open posts get `lost(.., final=True)` first.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Take no more posts; those in flight finish, those that wait for a retry are given up.

        `run` returns once the last is through (at most `answer_s_max` later). Safe to call twice.
        """
        raise NotImplementedError
