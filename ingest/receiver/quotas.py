"""How much one sender may send: readings and posts a second, each with a burst.

A sender is a token, by its name, or, where nobody needs one, a network.
A post is charged after it was read, since only then its readings are known. So a sender may go into
debt by one post; its next posts are refused until the debt is paid.
Promises: a refused post costs nothing but its refusal. The memory is bounded: of networks, those
that have not sent for longest are forgotten, with all that they had used.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s

SENDERS_MAX = 100_000  # some 300 bytes each
WAIT_S_MAX = 30 * 86_400.0  # that is told: a tiny rate makes it infinite, and no header says that


class Rates(NamedTuple):
    """Of one sender in this process. 0: no limit. A burst is `burst_s` of either rate."""

    readings_per_s: float = 0.0
    posts_per_s: float = 0.0
    burst_s: float = 10.0

    def shared_by(self, processes: int) -> Rates:
        """Return the part of one of so many processes."""
        return self._replace(
            readings_per_s=self.readings_per_s / processes, posts_per_s=self.posts_per_s / processes
        )

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.readings_per_s > 0 or self.posts_per_s > 0


class Quota:
    """What one sender has left. Both figures grow with time, up to a burst."""

    __slots__ = ("_at_s", "_posts", "_posts_max", "_rates", "_readings", "_readings_max")

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._readings = self._readings_max = rates.readings_per_s * rates.burst_s
        # A rate below one post a burst would else never allow one.
        self._posts_max = max(1.0, rates.posts_per_s * rates.burst_s)
        self._posts = self._posts_max
        self._at_s = monotonic_s()

    def take_post(self) -> None:
        """Count a post. Raises Refused, with the time after which one may come."""
        now_s = monotonic_s()
        passed_s, self._at_s = now_s - self._at_s, now_s
        rates = self._rates
        wait_s = 0.0
        if rates.readings_per_s:
            self._readings += passed_s * rates.readings_per_s
            self._readings = min(self._readings, self._readings_max)
            wait_s = -self._readings / rates.readings_per_s
        if rates.posts_per_s:
            self._posts += passed_s * rates.posts_per_s
            self._posts = min(self._posts, self._posts_max)
            if self._posts < 1.0:
                wait_s = max(wait_s, (1.0 - self._posts) / rates.posts_per_s)
        if wait_s > 0:
            raise Refused(
                "too_fast",
                "this sender has sent more than it may; the post is not kept",
                retry_after_s=min(wait_s, WAIT_S_MAX),
            )
        self._posts -= 1.0

    def charge(self, readings: int) -> None:
        """Count the readings of a post that was read, kept or not."""
        self._readings -= readings


_Key = tuple[str, Rates | None]


class Quotas:
    """The quotas of all senders of this process. `rates`: of those that have none of their own."""

    def __init__(self, rates: Rates, *, senders_max: int = SENDERS_MAX) -> None:
        self._rates = rates
        self._senders_max = senders_max
        self._quotas: OrderedDict[_Key, Quota] = OrderedDict()  # the one that sent last is last

    def of(self, sender: str, own: Rates | None = None) -> Quota:
        """Return the quota of a sender, a new one if it is not known.

        `own` are rates of its own: two tokens of one name share a quota if they have the same.
        """
        key = (sender, own)
        quota = self._quotas.get(key)
        if quota is None:
            if len(self._quotas) >= self._senders_max:
                self._quotas.popitem(last=False)
            quota = self._quotas[key] = Quota(own or self._rates)
        else:
            self._quotas.move_to_end(key)
        return quota
