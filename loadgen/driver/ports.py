"""The contracts around the driver: the source of posts, and the observer of their outcomes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from loadgen.traffic.post import Post


class Source(Protocol):
    """Gives the driver its posts."""

    def take(self) -> Post | None:
        """Return the next post, or None: finished, and never asked again. Must not block."""


class Loss(NamedTuple):
    """A try that ended without an answer, or a post that was given up (`final`).

    `why` is one of a few sentences, so that it can be counted. `written`: bytes of this or an
    earlier try may have reached the service, so the post may be stored. Times as in `Observer`.
    """

    post: Post
    why: str
    written: bool
    intended_s: float
    now_s: float
    final: bool


class Observer(Protocol):
    """Is called with each outcome. Calls come on the event loop, so each must be short.

    Each post that was taken gets exactly one call with `final=True`, the last one about it.
    All times are of `time.monotonic`; `intended_s` is the moment at which the schedule wanted the
    first try (closed loop: at which it was taken), the same for all tries of a post.
    """

    def sending(self, post: Post) -> None:
        """A try begins: its first byte is not written yet. By default nothing is done."""
        return

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """A whole answer has come. Not `final`: the post will be sent again."""

    def lost(self, loss: Loss) -> None:
        """A try ended without an answer, or the post was given up.

        After a refused connection there was no `sending`.
        """
