"""The balance between the roles: what gateways published and what writers took from the stream.

Each process has its own balance, with `published`, `delivered` and `returned`. Between them is the
stream, which counts messages and not readings. So both sides are compared when the stream says that
nothing waits in it: what was published some seconds ago and was not delivered is lost.
Promises: no false alarm because of statuses of different moments, of deliveries that come again, or
of what was in the stream before. While readings flow all the time, a loss is seen that is larger
than the readings of some seconds; all of it is seen as soon as nothing comes for WINDOW seconds.
If messages are delivered and not acknowledged, it takes AGAIN_S longer: the connection of a writer
may have ended with messages on their way to it, and these come again.
Does not: see a loss that happens in the second in which a process is killed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ingest.model.metrics import Metric, Metrics

# Samples, one a second. Statuses are some seconds old; so is what the broker has said of messages
# that wait, and a question about that may hang for 5 s while servers choose a leader.
WINDOW = 10
AGAIN_S = 60.0  # what no writer has got is delivered again within this time (ack_wait, twice)


class Sample(NamedTuple):
    """The sums over all processes at one moment, in readings; messages for the last two.

    `messages_waiting` is None if the broker did not say it. `all_report`: all that may still run
    have sent a status lately, and each writer runs. `unclean` counts processes of which not all is
    known: they ended without a last status, or began before they were heard.
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
        self._missing_since_s: float | None = None  # while messages are not acknowledged
        self._unclean = 0  # those of which `_base` has what is not known
        self.lost = 0

    def tick(self, now: Sample) -> None:
        """Compare both sides, if that is possible now."""
        window = self._window
        window.append(now)
        if now.messages_waiting is None or not now.all_report:
            self._missing_since_s = None  # the broker may begin to wait anew
        if len(window) < WINDOW or not self._is_comparable():
            return
        first = window[0]
        if now.unclean != self._unclean:
            # Begin anew. What the window had counts as on its way: of gateways we may know less
            # than of writers, and a base that is too small would be an alarm. A rest corrects it.
            self._base = now.published - (first.delivered - first.returned)
            self._booked, self._unclean = self.lost, now.unclean
            return
        missing = first.published - (now.delivered - now.returned) - self._base
        if self._comes_again(now, missing):
            return
        still = (first.published, first.delivered) == (now.published, now.delivered)
        if still:
            self._base += missing
            self._booked += max(0, missing)
            missing = 0
        self.lost = self._booked + max(0, missing)

    def _is_comparable(self) -> bool:
        """Whether the stream has been empty, and all processes told what they did."""
        return all(each.messages_waiting == 0 and each.all_report for each in self._window)

    def _comes_again(self, now: Sample, missing: int) -> bool:
        """Whether what is missing may be on its way to a writer again."""
        if missing <= 0 or not now.messages_unacknowledged:
            self._missing_since_s = None
            return False
        if self._missing_since_s is None:
            self._missing_since_s = now.at_s
        return now.at_s - self._missing_since_s < AGAIN_S


METRICS: Metrics[RolesBalance] = (
    Metric(
        "roles_imbalance_rows",
        "Readings that gateways published and no writer got. Must be 0.",
        lambda it: it.lost,
    ),
)
