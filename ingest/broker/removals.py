"""Finds messages that somebody removed from the stream before they were done. No I/O.

Our own purge removes what is done and nothing else. So three things are losses: the stream is gone,
or is another one of the same name; it ends before the place where it ended; it begins behind the
farthest place that can have been delivered.
Promises: a loss is reported once, at the second look that shows it: a server that was cut off from
the others may give an old answer once.
Does not: see what was removed between two looks and had come after the first of them, except what
`published_to` tells; or what was delivered and removed, since its reader still has it. Its counts
are about right. What is removed while nobody looks is not seen.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.broker.stream_state import StreamState
from ingest.broker.streams import ACKS_PENDING_MAX


class Removal(NamedTuple):
    """What was found, and about how many messages that were not done are gone by it."""

    what: str
    messages: int


class RemovalCheck:
    """Call `see` after each look at the stream, in order."""

    def __init__(self) -> None:
        self.suspects = False  # look again soon
        self._before: StreamState | None = None
        self._published_to = 0  # belongs to a stream that is gone

    def see(
        self, now: StreamState | None, *, published_to: int = 0, reconnected: bool = False
    ) -> Removal | None:
        """Compare with the look before. `now` is None if the stream is missing.

        `published_to` is the highest place of a message that we published. `reconnected`: since
        the look before, the server may have been killed. It forgets its last deliveries then.
        """
        before = self._before
        if before is None:
            self._before = now
            return None
        last = before.last
        if published_to != self._published_to:
            last = max(last, published_to)
        found = _compare(before, now, last, reconnected=reconnected)
        if found is not None and not self.suspects:
            self.suspects = True
            return None
        self.suspects = False
        if found is not None:
            self._published_to = published_to
        self._before = now
        return found


def _compare(
    before: StreamState, now: StreamState | None, last: int, *, reconnected: bool
) -> Removal | None:
    if now is None or now.made != before.made:
        not_done = before.waiting + before.pending if before.consumer_made else before.messages
        what = "the stream is gone" if now is None else "the stream is gone; there is a new one"
        return Removal(what, not_done + last - before.last)
    if now.last < last:
        what = f"the stream ends at {now.last}; it had messages up to {last}"
        return Removal(what, max(0, last - max(now.last, before.done_to)))
    since = now.deliveries
    if now.consumer_made == before.consumer_made:
        since = max(0, now.deliveries - before.deliveries)
    may_be_done = max(before.delivered_to, before.first - 1) + since
    gone = now.first - 1 - may_be_done
    if gone > (ACKS_PENDING_MAX if reconnected else 0):
        what = (
            f"messages up to {now.first - 1} are gone; only those up to {may_be_done} can be done"
        )
        return Removal(what, gone)
    return None
