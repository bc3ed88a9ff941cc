"""Every post is in exactly one class, the right one."""

from __future__ import annotations

import json

import pytest

from loadgen.driver.ports import Loss
from loadgen.measure.tally import Tally
from loadgen.traffic.post import Post
from loadgen.traffic.traffic import BROKEN, GOOD, INVALID, MIXED

COUNTS = ("right", "refused", "given_up", "not_whole", "undeserved")


def _kept(accepted: int, dead_lettered: int = 0, spaces: bool = False) -> bytes:
    document = {"accepted": accepted, "dead_lettered": dead_lettered, "ack": "buffered"}
    return json.dumps(document, separators=None if spaces else (",", ":")).encode()


def _tally(**bad_items: int) -> Tally:
    return Tally({int(name[1:]): bad for name, bad in bad_items.items()})


@pytest.mark.parametrize(
    ("kind", "status", "body", "counted"),
    [
        (GOOD, 202, _kept(5), "right"),
        (GOOD, 200, _kept(5, spaces=True), "right"),
        (GOOD, 204, b"", "right"),
        (GOOD, 202, _kept(4, 1), "not_whole"),
        (GOOD, 202, _kept(4), "not_whole"),
        (GOOD, 202, _kept(0, spaces=True), "not_whole"),
        (GOOD, 400, b"", "refused"),
        (GOOD, 503, b"", "refused"),
        (GOOD, 302, b"", "refused"),
        (MIXED, 202, _kept(3, 2), "right"),
        (MIXED, 202, _kept(4, 1), "undeserved"),
        (MIXED, 202, _kept(2, 2), "undeserved"),
        (MIXED, 202, _kept(5), "undeserved"),
        (MIXED, 422, b"", "undeserved"),
        (INVALID, 422, b"", "right"),
        (INVALID, 202, _kept(5), "undeserved"),
        (INVALID, 503, b"", "undeserved"),
        (BROKEN, 400, b"", "right"),
        (BROKEN, 202, _kept(5), "undeserved"),
        (BROKEN, 422, b"", "undeserved"),
    ],
)
def test_final_answer_is_right_only_if_it_is_the_expected_one(
    kind: str, status: int, body: bytes, counted: str
) -> None:
    """A good post must be accepted as a whole, a spoilt one refused with its status."""
    tally = _tally(n7=2)
    tally.answered(Post(b"", 5, kind, 7), status, body, 1.0, 1.5, final=True)
    assert {name: getattr(tally, name) for name in COUNTS if getattr(tally, name)} == {counted: 1}
    assert (tally.through, tally.wrong) == (1, int(counted != "right"))
    assert tally.offered_readings == 5
    assert tally.latency.count == 1


def test_post_given_up_is_lost_and_says_whether_it_may_be_stored() -> None:
    """Lost posts that were written count separately."""
    tally = _tally(n1=1)
    tally.lost(Loss(Post(b"", 2, MIXED, 1), "refused", False, 0.0, 1.0, True))
    tally.lost(Loss(Post(b"", 2, GOOD, 2), "cut", True, 0.0, 1.0, True))
    assert (tally.given_up, tally.given_up_written, tally.wrong) == (2, 1, 2)
    assert tally.whys == {"refused": 1, "cut": 1}
    assert tally.latency.count == 0


class _Began:
    started_s = 100.0


def test_warm_up_counts_but_is_not_measured() -> None:
    """Posts of the warm-up are counted, but not in the latencies."""
    tally = Tally({}, measured_from_s=1.0)
    tally.start = _Began()
    for due_s, took_s in ((0.5, 9.0), (1.5, 0.1)):
        at_s = 100 + due_s
        tally.answered(Post(b"", 1, GOOD, 0), 202, _kept(1), at_s, at_s + took_s, final=True)
    assert tally.right == 2
    assert tally.latency.count == 1
    assert tally.latency.max_s == pytest.approx(0.1)
    cells = [cell for _, _, cell in tally.timeline.points(10.0)]
    assert [cell.offered for cell in cells[:3]] == [1, 1, 0], "by the moment it was due"
    assert cells[9].accepted == 1, "by the moment of the answer"
    assert cells[1].quantile_s(0.99) == pytest.approx(0.1, rel=0.01)
