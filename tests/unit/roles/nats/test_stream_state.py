"""What was removed from a stream, and how long its oldest message has waited."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.roles.nats.stream_state import (
    LOOKS_MAX,
    PublishedPlaces,
    Removal,
    RemovalCheck,
    StreamState,
    Undone,
    state_of,
)
from ingest.roles.nats.streams import Found
from ingest.system.state_folder import StreamMark

NONE = StreamState(
    made="monday",
    first=1,
    last=0,
    messages=0,
    size_bytes=0,
    bytes_max=0,
    replicas=1,
    oldest="",
    leader="",
    copies=(),
    consumer_made="monday",
    deliveries=0,
    delivered_to=0,
    done_to=0,
    waiting=0,
    pending=0,
    redelivered=0,
)
# 100 messages; 60 were delivered, 50 are done, and 20 of these were purged.
SOME = NONE._replace(
    first=21, last=100, messages=80, deliveries=60, delivered_to=60, done_to=50, waiting=40
)._replace(pending=10)
NOWHERE = PublishedPlaces()
MARK = StreamMark("monday", 20, 50, acknowledged_to=100, delivered_to=60, deliveries=60)


def seen(
    *looks: StreamState | None,
    places: PublishedPlaces = NOWHERE,
) -> Removal | None:
    """Return what the last two looks have found; nothing was found before."""
    check = RemovalCheck(StreamMark())
    for each in looks[:-1]:
        assert check.see(each, places) is None
    assert check.suspects, "it asks for a second look"
    found = check.see(looks[-1], places)
    assert not check.suspects
    assert check.see(looks[-1], places) is None, "once"
    return found


def test_stream_that_is_gone_is_found_with_what_was_not_done() -> None:
    """Whether there is another one or not. What we published since the look counts too."""
    found = seen(SOME, None, None)
    assert found is not None
    assert (found.what, found.messages) == ("the stream is gone", 50)
    new = NONE._replace(made="tuesday")
    found = seen(SOME, new, new, places=PublishedPlaces(107))
    assert found is not None
    assert ("there is a new one" in found.what, found.messages) == (True, 57)


def test_stream_without_a_consumer_loses_all_its_messages() -> None:
    """Nobody has done any of them."""
    bare = SOME._replace(consumer_made="", delivered_to=0, deliveries=0, done_to=0, waiting=0)
    found = seen(bare._replace(pending=0), None, None)
    assert found is not None
    assert found.messages == 80


@pytest.mark.parametrize(("last", "lost"), [(99, 1), (70, 30), (40, 50)])
def test_restored_stream_has_lost_what_is_behind_its_end(last: int, lost: int) -> None:
    """Without the messages that were done."""
    now = SOME._replace(last=last, replicas=3)
    found = seen(SOME, now, now)
    assert found is not None
    assert found.messages == lost
    assert RemovalCheck(MARK).see(now._replace(replicas=1), NOWHERE) == found


def test_place_that_is_given_again_shows_a_loss_that_new_messages_hide() -> None:
    """A stream of one copy ended at 70, and is longer than before at the next look."""
    check = RemovalCheck(StreamMark())
    now = SOME._replace(last=120)
    assert check.see(SOME, PublishedPlaces(98)) is None
    found = check.see(now, PublishedPlaces(73, 71, 98))
    assert found is not None
    assert (found.messages, found.ends_early) == (30, True)
    assert check.see(now, PublishedPlaces(120, 71, 98)) is None, "once"
    copies = RemovalCheck(StreamMark())
    copies.see(SOME._replace(replicas=3), PublishedPlaces(98))
    other, again = now._replace(made="tuesday"), PublishedPlaces(98, 1, 98)
    assert "there is a new one" in seen(SOME, other, other, places=again).what  # type: ignore[union-attr]
    answers = PublishedPlaces(98, 98, 99)  # of two leaders, in another order
    assert copies.see(now._replace(replicas=3), answers) is None


def test_place_that_is_given_again_after_the_loss_was_seen_is_none_of_its_own() -> None:
    """The look was before the first new message."""
    check = RemovalCheck(StreamMark())
    check.see(SOME, PublishedPlaces(100))
    assert check.see(SOME._replace(last=70), PublishedPlaces(100)) is not None
    assert check.see(SOME._replace(last=75), PublishedPlaces(75, 71, 100)) is None


def test_mark_shows_what_was_removed_while_nobody_looked() -> None:
    """The stream is another one, or begins behind what our purge has removed."""
    other = NONE._replace(made="tuesday")
    assert RemovalCheck(MARK._replace(done_to=100)).see(other, NOWHERE) is None, "nothing is lost"
    assert RemovalCheck(StreamMark()).see(other, NOWHERE) is None, "it was never noted"
    for now, lost in ((other, 50), (None, 50), (SOME._replace(first=91), 40)):
        check = RemovalCheck(MARK)
        assert check.see(now, NOWHERE, reconnected=True) is None, "as at each start"
        found = check.see(now, NOWHERE)
        assert found is not None
        assert (found.messages, found.ends_early) == (lost, False)
        assert [check.see(now, NOWHERE) for _ in range(3)] == [None] * 3, (
            "once, also without a stream"
        )
    for mark in (MARK, MARK._replace(purged_to=-1, done_to=10)):
        check = RemovalCheck(mark)
        assert check.see(SOME, NOWHERE) is None
        assert not check.suspects


def test_writers_elsewhere_may_have_removed_what_a_mark_does_not_know() -> None:
    """They were given it later. A stream that is deleted later has nothing of the mark."""
    for noted, deliveries, lost in (
        (60, 90, None),
        (60, 89, 1),
        (60, 51, 40),  # a killed server forgets some
        (99_999, 90, None),  # the consumer was set back
    ):
        check = RemovalCheck(MARK._replace(deliveries=noted))
        now = SOME._replace(first=91, deliveries=deliveries)
        assert check.see(now, NOWHERE) is None
        found = check.see(now, NOWHERE)
        assert (None if found is None else found.messages) == lost
    check = RemovalCheck(MARK)
    looks = [check.see(each, NOWHERE) for each in (SOME, None, None, None, None)]
    assert [each for each in looks if each] == [Removal("the stream is gone", 50)]


def test_purge_by_hand_has_removed_what_was_not_delivered() -> None:
    """The broker moves its consumer behind the purge; the number of deliveries stays."""
    now = SOME._replace(first=91, delivered_to=90, done_to=90, pending=0)
    found = seen(SOME, now, now)
    assert found is not None
    assert found.messages == 30
    check = RemovalCheck(StreamMark())
    check.see(SOME, NOWHERE)
    assert check.see(now._replace(deliveries=90), NOWHERE) is None, "all was delivered"
    assert not check.suspects


def test_killed_server_forgets_deliveries_and_no_message() -> None:
    """Then a step of less than the most pending messages says nothing."""
    check = RemovalCheck(StreamMark())
    check.see(SOME, NOWHERE)
    now = SOME._replace(first=91, delivered_to=90, done_to=90, pending=0)
    assert check.see(now, NOWHERE, reconnected=True) is None
    assert not check.suspects
    far = now._replace(first=2_000, last=3_000, delivered_to=1_999)
    assert check.see(far, NOWHERE, reconnected=True) is None
    assert check.suspects


def test_one_strange_answer_is_no_loss() -> None:
    """A server that was cut off from the others gives an old answer once."""
    check = RemovalCheck(StreamMark())
    several = SOME._replace(replicas=3)
    check.see(several, NOWHERE)
    assert check.see(several._replace(last=90), NOWHERE) is None
    assert check.see(several._replace(last=110), NOWHERE) is None
    assert not check.suspects


@given(st.lists(st.sampled_from(["publish", "deliver", "again", "done", "purge", "look"])))
def test_nothing_is_found_while_only_we_purge(events: list[str]) -> None:
    """Whatever the order, with deliveries that come again."""
    check = RemovalCheck(StreamMark())
    now = NONE
    for event in events:
        if event == "publish":
            now = now._replace(last=now.last + 1)
        elif event == "deliver" and now.delivered_to < now.last:
            now = now._replace(deliveries=now.deliveries + 1, delivered_to=now.delivered_to + 1)
        elif event == "again":
            now = now._replace(deliveries=now.deliveries + 1)
        elif event == "done" and now.done_to < now.delivered_to:
            now = now._replace(done_to=now.done_to + 1)
        elif event == "purge":
            now = now._replace(first=now.done_to + 1)
        elif event == "look":
            assert check.see(now, PublishedPlaces(now.last)) is None
            assert not check.suspects


EMPTY: dict[str, Any] = {
    "config": {},
    "state": {"first_seq": 1, "last_seq": 0, "messages": 0, "bytes": 0},
}


def _state(last: int, done_to: int, *, made: str = "today") -> StreamState:
    empty = state_of(Found(EMPTY, None))
    assert empty is not None
    return empty._replace(made=made, last=last, done_to=done_to, waiting=last - done_to)


def test_message_ages_until_it_is_done() -> None:
    """Newer messages do not make it younger; when it is done, the next one counts."""
    undone = Undone()
    assert undone.age_s(100, _state(0, 0)) == 0
    assert undone.age_s(102, _state(5, 0)) == 0
    assert undone.age_s(104, _state(9, 0)) == 2
    assert undone.age_s(110, _state(9, 3)) == 8
    assert undone.age_s(112, _state(12, 5)) == 8, "the sixth came between 102 and 104"
    assert undone.age_s(114, _state(12, 12)) == 0
    assert undone.age_s(200, _state(12, 12)) == 0
    assert undone.age_s(202, _state(13, 12)) == 0
    assert undone.age_s(204, _state(13, 12)) == 2


def test_flow_that_is_done_in_time_has_no_age() -> None:
    """At each look some messages are under way."""
    undone = Undone()
    for second in range(0, 600, 2):
        age_s = undone.age_s(second, _state(100 + second * 10, 90 + second * 10))
        assert age_s <= 2


def test_what_was_there_before_counts_from_the_first_look() -> None:
    """And another stream of the same name begins anew."""
    undone = Undone()
    assert undone.age_s(50, _state(1_000, 10)) == 0
    assert undone.age_s(80, _state(1_000, 10)) == 30
    assert undone.age_s(82, _state(4, 0, made="tomorrow")) == 0
    assert undone.age_s(84, _state(4, 0, made="tomorrow")) == 2


@pytest.mark.parametrize("done_to", [0, 5_000])
def test_days_of_looks_take_no_memory_and_lose_little(done_to: int) -> None:
    """The age stays right, or nearly if the oldest is done meanwhile."""
    undone = Undone()
    for second in range(0, 20_000, 2):
        age_s = undone.age_s(second, _state(second + 1, 0))
        assert age_s == second
    assert len(undone._looks) <= LOOKS_MAX + 1
    age_s = undone.age_s(20_000, _state(20_000, done_to))
    assert age_s == pytest.approx(20_000 - done_to, abs=600)
