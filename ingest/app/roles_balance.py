"""The balance between the roles: what gateways published and what writers took from the stream.

Each process has its own balance, with `published`, `delivered` and `returned`. Between them is the
stream, which counts messages and not readings. So both sides are compared when the stream says that
nothing waits in it: what was published some seconds ago and was not delivered is lost.
Promises: no false alarm because of statuses of different moments, of deliveries that come again, or
of what was in the stream before. While readings flow all the time, a loss is seen that is larger
than the readings of some seconds; all of it is seen as soon as nothing comes for WINDOW seconds.
Does not: see a loss that happens in the second in which a process is killed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

WINDOW = 5  # samples, one a second: statuses are some seconds old at most
AGAIN_S = 60.0  # what was returned is delivered again within this time (ack_wait, twice)


class Sample(NamedTuple):
    """The sums over all processes at one moment, in readings; messages for the last two.

    `messages_waiting` is None if the broker did not say it. `all_report`: each writer has sent a
    status lately. `unclean` counts processes that ended without a last status.
    """

    at_s: float
    published: int
    delivered: int
    returned: int
    all_report: bool
    unclean: int
    messages_waiting: float | None
    messages_unacknowledged: float = 0


class RolesBalance:
    """Call `tick` once a second. `lost` are readings that gateways published and nobody got."""

    def __init__(self) -> None:
        self._window: deque[Sample] = deque(maxlen=WINDOW)
        self._base = 0  # what is right to be different: of earlier processes, delivered again
        self._booked = 0
        self._returned_s = float("-inf")  # when something was returned for the last time
        self._unclean = 0  # those whose last second is in `_base`
        self.lost = 0

    def tick(self, now: Sample) -> None:
        """Compare both sides, if that is possible now."""
        window = self._window
        if window and now.returned != window[-1].returned:
            self._returned_s = now.at_s
        window.append(now)
        if len(window) < WINDOW or not self._is_comparable(now):
            return
        first = window[0]
        missing = first.published - (now.delivered - now.returned) - self._base
        still = (first.published, first.delivered) == (now.published, now.delivered)
        if now.unclean != self._unclean:
            if still:  # what such a process did in its last second is not known: begin anew
                self._base += missing
                self._unclean = now.unclean
            return
        if still:
            self._base += missing
            self._booked += max(0, missing)
            missing = 0
        self.lost = self._booked + max(0, missing)

    def _is_comparable(self, now: Sample) -> bool:
        """Whether the stream has been empty, and nothing is on its way to a writer again."""
        comes_again = now.messages_unacknowledged and now.at_s - self._returned_s < AGAIN_S
        return not comes_again and all(
            each.messages_waiting == 0 and each.all_report for each in self._window
        )
