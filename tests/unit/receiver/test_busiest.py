"""Who sends most: the sums of a span, however many senders there are."""

from __future__ import annotations

import pytest

from ingest.model.causes import Trouble
from ingest.receiver import busiest as module
from ingest.receiver.busiest import LISTED, NOT_STORED_MAX, SENDERS_MAX, SPAN_S, Busiest, joined
from tests.support.receiver import BAD, GOOD, head, post, running_receiver
from tests.support.tokens import OTHER, SECRET, in_force, line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of these counts, as a list of one."""
    now_s = [100.0]
    monkeypatch.setattr(module, "monotonic_s", lambda: now_s[0])
    return now_s


def test_last_whole_span_is_shown_and_the_busiest_come_first(clock: list[float]) -> None:
    """A span without posts shows nobody."""
    busiest = Busiest()
    for number in range(100):
        for _ in range(number):
            busiest.posted(f"s{number}")
            busiest.decoded(f"s{number}", 2, 2)
    busiest.refused("s99")
    assert busiest.listed() == []
    clock[0] += SPAN_S
    listed = busiest.listed()
    assert [each["sender"] for each in listed] == [f"s{99 - at}" for at in range(LISTED)]
    rates = {"posts_per_s": 9.9, "readings_per_s": 19.8, "refused_per_s": 0.1}
    assert listed[0] == {"sender": "s99", **rates}
    clock[0] += SPAN_S
    assert busiest.listed() == []
    busiest.posted("a")
    clock[0] += 5 * SPAN_S
    assert busiest.listed() == []


def test_memory_does_not_grow_with_the_senders(clock: list[float]) -> None:
    """A million names in one span; the busy one, which came early, is there."""
    busiest = Busiest()
    busiest.posted("busy")
    for number in range(2 * SENDERS_MAX):
        busiest.posted(str(number))
        busiest.decoded(str(number), 1, 0)
        if number % 2:
            busiest.refused(str(number))
        busiest.posted("busy")
        busiest.decoded("busy", 1, 1)
    assert len(busiest._span) == SENDERS_MAX
    clock[0] += SPAN_S
    assert busiest.listed()[0]["sender"] == "busy"
    assert len(busiest._not_stored) == NOT_STORED_MAX


def test_sender_of_which_nothing_is_stored_is_named(clock: list[float]) -> None:
    """After a minute, until a valid reading comes or it is silent. One who was told is not."""
    busiest = Busiest()
    for _ in range(6):
        assert busiest.not_stored() == Trouble()
        for sender, valid in (("telegraf", 0), ("good", 1), ("told", 0)):
            busiest.posted(sender)
            busiest.decoded(sender, 5, valid)
        busiest.refused("told")
        clock[0] += SPAN_S
    words = "of 1 sender no reading is stored"
    assert busiest.not_stored() == ("sender_not_stored", words, "telegraf, 30 readings")
    clock[0] += 3 * SPAN_S
    assert busiest.not_stored().cause, "it posts now and then"
    busiest.posted("telegraf")
    busiest.decoded("telegraf", 5, 1)
    clock[0] += SPAN_S
    busiest.posted("once")
    busiest.decoded("once", 500, 0)
    clock[0] += 20 * SPAN_S
    assert busiest.not_stored() == Trouble(), "one bad post, long ago"
    busiest.posted("")
    clock[0] += SPAN_S
    assert [each["sender"] for each in busiest.listed()] == ["clients of a proxy"]


def test_processes_are_added_up() -> None:
    """One sender posts to several gateways."""
    one = {"sender": "a", "readings_per_s": 1.0, "posts_per_s": 0.5, "refused_per_s": 0.0}
    other = {**one, "sender": "b", "readings_per_s": 1.5}
    assert [(each["sender"], each["readings_per_s"]) for each in joined([[one, other], [one]])] == [
        ("a", 2.0),
        ("b", 1.5),
    ]


async def test_names_of_tokens_are_counted_and_never_their_secrets(clock: list[float]) -> None:
    """Kept and refused posts of a known sender count; one that is not known counts for nobody."""
    tokens = in_force(line(), line(OTHER, "yard"))
    async with running_receiver(tokens) as receiver:
        client = await receiver.connect()
        for secret, body in ((SECRET, GOOD), (SECRET, BAD), (OTHER, GOOD), (SECRET[:-1], GOOD)):
            await client.send(post(body, headers={"Authorization": f"Bearer {secret}"}))
            await client.reply()
        clock[0] += SPAN_S
        found = {
            each.pop("sender"): tuple(each.values()) for each in receiver.endpoint.busiest.listed()
        }
        lines = b"cpu usage=1\ncpu usage=2\n"
        sized = {"Authorization": f"Bearer {OTHER}", "Content-Length": str(len(lines))}
        for _ in range(6):
            await client.send(head("POST", "/write", sized) + lines)
            assert (await client.reply()).status == 204
            clock[0] += SPAN_S
        assert receiver.endpoint.busiest.not_stored().details == "token yard, 12 readings"
    assert found == {"token garden": (0.2, 0.2, 0.1), "token yard": (0.1, 0.1, 0.0)}
