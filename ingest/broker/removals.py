"""Finds messages that somebody removed from the stream before they were done. No I/O.

Our own purge removes what is done and nothing else. So these are losses: the stream is gone, or is
another one of the same name; it ends before the place where it ended, or it has given a place
twice; it begins behind the farthest place that can have been delivered.
Each look is compared with a mark of what the stream must have: that of the look before, and at
first that of an earlier process (system/stream_mark.py).
Promises: a loss is reported once, at the second look that shows it: a server that was cut off from
the others may give an old answer once. If there is only one copy, an end that went back is reported
at once: messages that come meanwhile would hide it.
Does not: see what was removed between two looks and had come after the first of them, except what
`published` tells; or what was delivered and removed, since its reader still has it. Its counts are
about right. What is removed while nobody looks is not seen without a mark, and not if writers were
given as many messages since the mark.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.broker.stream_state import StreamState
from ingest.broker.streams import ACKS_PENDING_MAX
from ingest.system.stream_mark import StreamMark


class Removal(NamedTuple):
    """What was found, and about how many messages that were not done are gone by it.

    `ends_early`: the stream gives places again. The consumer may have passed them.
    """

    what: str
    messages: int
    ends_early: bool = False


class PublishedPlaces(NamedTuple):
    """The places of a role's own messages.

    `to` is the highest one. `again` is a place that the broker gave to a new message of it after
    it had given all up to `again_to` to others; 0: it did not.
    """

    to: int = 0
    again: int = 0
    again_to: int = 0


class RemovalCheck:
    """Call `see` after each look at the stream, in order."""

    def __init__(self, mark: StreamMark) -> None:
        self.suspects = False  # look again soon
        self._mark = mark
        self._consumer_made: str | None = None  # at the look before, if there was one
        self._published_to = 0  # belongs to a stream that is gone
        self._again_to = 0  # was reported

    def see(
        self, now: StreamState | None, published: PublishedPlaces, *, reconnected: bool = False
    ) -> Removal | None:
        """Compare with the look before. `now` is None if the stream is missing.

        `reconnected`: since the look before, the server may have been killed. It forgets its last
        deliveries then.
        """
        found = self._compare(now, published, reconnected=reconnected)
        if found is not None:
            is_sure = found.ends_early and now is not None and now.replicas == 1
            if not self.suspects and not is_sure:
                self.suspects = True
                return None
            self._published_to = published.to
        self.suspects = False
        self._again_to = published.again_to
        self._mark = StreamMark() if now is None else mark_of(now)
        self._consumer_made = None if now is None else now.consumer_made
        if found is not None and found.ends_early:
            self._consumer_made = ""  # it begins again
        return found

    def _compare(
        self, now: StreamState | None, published: PublishedPlaces, *, reconnected: bool
    ) -> Removal | None:
        mark, again_to = self._mark, published.again_to
        if not mark.made:
            return None
        done_to, end = max(mark.purged_to, mark.done_to), mark.acknowledged_to
        if published.to != self._published_to:
            end = max(end, published.to)
        if now is None or now.made != mark.made:
            what = "the stream is gone" if now is None else "the stream is gone; there is a new one"
            return Removal(what, end - done_to) if end > done_to else None
        # Before the end is looked at: new messages may hide a part of the loss.
        if now.replicas == 1 and again_to not in (self._again_to, self._published_to):
            what = f"others have the places from {published.again} on"
            gone = max(end, again_to) - max(published.again - 1, done_to)
            return Removal(what, max(0, gone), ends_early=True)
        if now.last < end:
            what = f"the stream ends at {now.last}; it had messages up to {end}"
            return Removal(what, max(0, end - max(now.last, done_to)), ends_early=True)
        is_first = self._consumer_made is None
        since = now.deliveries - mark.deliveries
        # No killed server forgets so many: a rewind has set it to 0.
        if since < -ACKS_PENDING_MAX or self._consumer_made not in (None, now.consumer_made):
            since = now.deliveries
        if since > 0 or not is_first:  # at first: writers of other machines may have done these
            done_to = max(done_to, mark.delivered_to + max(0, since))
        gone = now.first - 1 - done_to
        # The mark of an earlier process was noted before the purge: a kill changes nothing.
        if mark.purged_to < 0 or gone <= (ACKS_PENDING_MAX if reconnected and not is_first else 0):
            return None
        what = f"messages up to {now.first - 1} are gone; only those up to {done_to} can be done"
        return Removal(what, gone)


def mark_of(state: StreamState) -> StreamMark:
    """Return what the stream must have from now on. The consumer may be behind a lost end."""
    return StreamMark(
        state.made,
        purged_to=state.first - 1,
        done_to=min(state.done_to, state.last),
        acknowledged_to=state.last,
        delivered_to=min(max(state.delivered_to, state.first - 1), state.last),
        deliveries=state.deliveries,
    )
