"""What stands around the driver: where posts come from, and who is told what became of them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from loadgen.traffic.post import Post


class Source(Protocol):
    """Evidence the posts come from."""

    def take(self) -> Post | None:
        """Return the next post, or None: finished, and never asked again. Must not block."""


class Loss(NamedTuple):
    """A try that ended without an answer, or a post that was given up (`final`).

    `why` is one of few sentences, fit for counting. `written`: bytes of this or an earlier try
    may have reached the service, so the post may be stored. The times are as in `Observer`.
    """

    post: Post
    why: str
    written: bool
    intended_s: float
    now_s: float
    final: bool


class Observer(Protocol):
    """Who is told what happened. Called on the loop, so each call must be short.

    Each post that was taken gets exactly one call with `final=True`, the last one about it.
    All times are of `time.monotonic`; `intended_s` is the moment at which the schedule wanted the
    first try (closed loop: at which it was taken), the same for all tries of a post.
    """

    def sending(self, post: Post) -> None:
        """Tell that a try begins: its first byte is not written yet. By default nothing is done."""
        return

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Tell of a whole answer. Not `final`: the post will be tried again."""

    def lost(self, loss: Loss) -> None:
        """Tell that a try ended without an answer, or that the post was given up.

        There may have been no `sending`: the connection was refused.
        """
