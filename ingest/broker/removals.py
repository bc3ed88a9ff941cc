"""Finds messages that somebody removed from the stream before they were done. No I/O.

Our own purge removes what is done and nothing else. So these are losses: the stream is gone, or is
another one of the same name; it ends before the place where it ended, or it has given a place
twice; it begins behind the farthest place that can have been delivered.
The first look is compared with a mark of what the stream must have (system/stream_mark.py).
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

    def __init__(self, mark: StreamMark = StreamMark()) -> None:  # noqa: B008  immutable
        self.suspects = False  # look again soon
        self._mark = mark
        self._before: StreamState | None = None
        self._published_to = 0  # belongs to a stream that is gone
        self._again_to = 0  # was reported

    def see(
        self,
        now: StreamState | None,
        *,
        published: PublishedPlaces = PublishedPlaces(),  # noqa: B008  immutable
        reconnected: bool = False,
    ) -> Removal | None:
        """Compare with the look before. `now` is None if the stream is missing.

        `reconnected`: since the look before, the server may have been killed. It forgets its last
        deliveries then.
        """
        before, again_to = self._before, published.again_to
        is_alone = now is not None and now.replicas == 1
        if before is None:
            found = _compare_with_mark(self._mark, now)
        else:
            last = before.last
            if published.to != self._published_to:
                last = max(last, published.to)
            found = _compare(before, now, last, reconnected=reconnected)
            is_same = now is not None and now.made == before.made
            if is_alone and is_same and again_to not in (self._again_to, self._published_to):
                what = f"others have the places from {published.again} on"
                gone = max(last, again_to) - max(published.again - 1, before.done_to)
                found = Removal(what, max(0, gone), ends_early=True)
        if found is not None and not self.suspects and not (is_alone and found.ends_early):
            self.suspects = True
            return None
        self.suspects = False
        self._mark = StreamMark()  # it was compared; without a stream all looks are a first one
        self._again_to = again_to
        if found is not None:
            self._published_to = published.to
        self._before = now
        if found is not None and found.ends_early and now is not None:
            self._before = now._replace(consumer_made="")  # it begins again
        return found


def _compare_with_mark(mark: StreamMark, now: StreamState | None) -> Removal | None:
    done_to, end = max(mark.purged_to, mark.done_to), mark.acknowledged_to
    if now is None or now.made != mark.made:
        gone = end - done_to
        return Removal("the stream is gone, or there is a new one", gone) if gone > 0 else None
    if now.last < end:
        what = f"the stream ends at {now.last}; messages up to {end} were acknowledged"
        return Removal(what, max(0, end - max(now.last, done_to)), ends_early=True)
    since = now.deliveries - mark.deliveries
    if since < -ACKS_PENDING_MAX:  # no killed server forgets so many: a rewind has set it to 0
        since = now.deliveries
    if since > 0:  # writers of other machines may have done and removed these
        done_to = max(done_to, mark.delivered_to + since)
    gone = now.first - 1 - done_to
    if mark.purged_to >= 0 and gone > 0:
        what = f"messages up to {now.first - 1} are gone; only those up to {done_to} can be done"
        return Removal(what, gone)
    return None


def _compare(
    before: StreamState, now: StreamState | None, last: int, *, reconnected: bool
) -> Removal | None:
    if now is None or now.made != before.made:
        not_done = before.waiting + before.pending if before.consumer_made else before.messages
        what = "the stream is gone" if now is None else "the stream is gone; there is a new one"
        return Removal(what, not_done + last - before.last)
    if now.last < last:
        what = f"the stream ends at {now.last}; it had messages up to {last}"
        return Removal(what, max(0, last - max(now.last, before.done_to)), ends_early=True)
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
