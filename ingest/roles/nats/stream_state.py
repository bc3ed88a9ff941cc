"""How far the stream and its consumer have come, and what somebody removed from it. No I/O.

Our own purge removes what is done and nothing else. So these are losses: the stream is gone, or is
another one of the same name; it ends before the place where it ended, or it has given a place
twice; it begins behind the farthest place that can have been delivered.
Each look is compared with a mark of what the stream must have: that of the look before, and at
first that of an earlier process (system/state_folder.py).
Promises: a loss is reported once, at the second look that shows it: a server that was cut off from
the others may give an old answer once. If there is only one copy, an end that went back is reported
at once: messages that come meanwhile would hide it.
Does not: see what was removed between two looks and had come after the first of them, except what
`published` tells; or what was delivered and removed, since its reader still has it. Its counts are
about right. What is removed while nobody looks is not seen without a mark, and not if writers were
given as many messages since the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ingest.roles.nats.streams import ACKS_PENDING_MAX, Found
from ingest.system.state_folder import StreamMark

LOOKS_MAX = 256


class StreamState(NamedTuple):
    """Places count from 1 over the whole life of a stream. Without a consumer its numbers are 0."""

    made: str  # when, as the broker says: another stream of this name has another time
    first: int  # place of the first message; of the next one if there is none
    last: int  # place of the newest message, also if it was removed
    messages: int
    size_bytes: int
    bytes_max: int
    replicas: int
    oldest: str  # when the first message came, as the broker says
    leader: str  # the server that has answered; "" if it is the only one
    copies: tuple[str, ...]  # other servers whose copies are up to date
    consumer_made: str
    deliveries: int  # all so far, those of the same message too
    delivered_to: int  # the farthest place that was delivered, or was removed before that
    done_to: int  # all up to here are acknowledged, or were removed
    waiting: int  # messages that were not delivered yet
    pending: int  # delivered and not acknowledged
    redelivered: int  # of these, delivered more than once

    @property
    def end(self) -> int:
        """All up to this place should have been delivered. Then nothing may be unknown."""
        return self.last if self.consumer_made and not self.waiting else self.delivered_to


def state_of(found: Found) -> StreamState | None:
    """Return the numbers; None if there is no stream."""
    if found.stream is None:
        return None
    state, cluster = found.stream["state"], found.stream.get("cluster") or {}
    consumer: Mapping[str, Any] = found.consumer or {}
    delivered = consumer.get("delivered") or {}
    floor = consumer.get("ack_floor") or {}
    first = state["first_seq"]
    return StreamState(
        made=found.stream.get("created", ""),
        first=first if state["messages"] else max(first, state["last_seq"] + 1),
        last=state["last_seq"],
        messages=state["messages"],
        size_bytes=state["bytes"],
        bytes_max=found.stream["config"].get("max_bytes", 0),
        replicas=found.stream["config"].get("num_replicas", 1),
        oldest=state.get("first_ts", ""),
        leader=cluster.get("leader", ""),
        copies=tuple(
            each["name"]
            for each in cluster.get("replicas") or ()
            if each.get("current") and not each.get("offline")
        ),
        consumer_made=consumer.get("created", ""),
        deliveries=delivered.get("consumer_seq", 0),
        delivered_to=max(delivered.get("stream_seq", 0), first - 1) if consumer else 0,
        done_to=floor.get("stream_seq", 0),
        waiting=consumer.get("num_pending", 0),
        pending=consumer.get("num_ack_pending", 0),
        redelivered=consumer.get("num_redelivered", 0),
    )


class Undone:
    """How long the oldest message has waited that no writer has done. Call `age_s` again and again.

    The broker says how far the stream and its consumer are, and not when a message came that is
    not done yet. So the places at each look are remembered, with the time. It is exact to the time
    between two looks, or to a hundredth of the age. What was there before the first look counts
    from that look on. A few hundred looks are remembered, however long it lasts.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[float, int]] = []  # when, and the newest place then
        self._made = ""
        self._pause_s = 0.0  # between two looks that are remembered

    def age_s(self, now_s: float, state: StreamState) -> float:
        """Return for how long the oldest message that is not done has been in the stream."""
        looks = self._looks
        if state.made != self._made:  # another stream: its places begin anew
            self._made = state.made
            looks.clear()
        if not looks or (state.last > looks[-1][1] and now_s - looks[-1][0] >= self._pause_s):
            looks.append((now_s, state.last))
        if not state.waiting and not state.pending:
            looks[:], self._pause_s = [(now_s, state.last)], 0.0
            return 0.0
        while len(looks) > 1 and looks[0][1] <= state.done_to:
            del looks[0]
        if len(looks) > LOOKS_MAX:
            del looks[1::2]
            self._pause_s = 2 * (now_s - looks[0][0]) / LOOKS_MAX
        return now_s - looks[0][0] if looks[0][1] > state.done_to else 0.0


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
