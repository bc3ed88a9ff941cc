"""The circuit breaker: when many refused rows are a device's fault, and when they are ours."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.model.ports import BadRow
from ingest.model.reading import Reading
from ingest.model.rows import encode_reading
from ingest.model.verdict import Verdict, WriteFailed
from ingest.system.clock import monotonic_s
from ingest.writer.breaker import CircuitBreaker

WINDOW, ROWS_MAX = 1_000, 200
FLEET = [f"d{number}" for number in range(50)]


def make_breaker() -> CircuitBreaker:
    """Make a breaker with the service's own numbers."""
    return CircuitBreaker(window_rows=WINDOW, rows_max=ROWS_MAX)


def encoded(devices: Iterable[str]) -> list[bytes]:
    """Encode one row for each device named, as several blocks."""
    rows = [encode_reading(Reading(0, device_id, "m", 1.0)) for device_id in devices]
    return [b"".join(rows[at : at + 7]) for at in range(0, len(rows), 7)]


def fleet(rows: int) -> list[str]:
    """Name so many rows' devices, in turn."""
    return [FLEET[row % len(FLEET)] for row in range(rows)]


def judged(
    breaker: CircuitBreaker, devices: list[str], bad: Iterable[int], *, received_s: float = 1.0
) -> bool:
    """Whether a batch may be isolated; if so it is remembered as written."""
    rows = sorted(bad)
    tuples = encoded(devices)
    try:
        refused = [BadRow(row, "23514", "check") for row in rows]
        breaker.judge(tuples, len(devices), refused, received_s=received_s)
    except WriteFailed:
        return False
    breaker.written(tuples, len(devices), rows)
    return True


def test_breaker_says_hold_and_why() -> None:
    """The reason is `breaker`. The message has the last refusal of the database."""
    rows = fleet(300)
    refused = [BadRow(row, "23514", "check") for row in range(300)]
    with pytest.raises(
        WriteFailed, match=r"more than 200 of 1000 rows .* 50 of 50 .*: check"
    ) as it:
        make_breaker().judge(encoded(rows), 300, refused, received_s=0.0)
    assert it.value.verdict is Verdict.HOLD
    assert (it.value.reason, it.value.sqlstate, it.value.doubtful) == ("breaker", "23514", False)


def test_two_hundred_of_a_thousand_pass_and_one_more_trips() -> None:
    """The bound is exact: more than 200, not 200."""
    assert judged(make_breaker(), fleet(1_000), range(0, 1_000, 5))
    assert not judged(make_breaker(), fleet(1_000), [*range(0, 1_000, 5), 1])


def test_rows_of_earlier_batches_count() -> None:
    """201 bad rows in small batches: only the batch that exceeds the limit is stopped."""
    breaker = make_breaker()
    verdicts = [judged(breaker, fleet(50), range(10)) for _ in range(20)]
    assert verdicts == [True] * 20
    assert not judged(breaker, fleet(50), range(11))
    assert judged(breaker, fleet(50), range(10))


def test_first_rows_of_a_run_are_enough_to_trip() -> None:
    """A service that has just started does not wait for a thousand rows."""
    assert not judged(make_breaker(), fleet(201), range(201))
    assert judged(make_breaker(), fleet(200), range(200))


@pytest.mark.parametrize(("devices", "allowed"), [(5, True), (4, False)])
def test_one_bad_device_in_five_is_its_own_fault(devices: int, allowed: bool) -> None:
    """Up to one device in five may send nothing but bad rows; one in four may not."""
    rows = [f"d{row % devices}" for row in range(1_000)] + ["d0"] * 10
    bad = [row for row, device_id in enumerate(rows) if device_id == "d0"]
    assert judged(make_breaker(), rows, bad) is allowed


def test_bad_device_among_many_never_trips_however_much_it_sends() -> None:
    """Its rows are dead-lettered, batch after batch. Rows of other devices are stored."""
    breaker = make_breaker()
    for _ in range(10):
        rows = [*fleet(100), *["mad"] * 900]
        assert judged(breaker, rows, range(100, 1_000))


def test_window_slides() -> None:
    """Bad rows more than a thousand rows ago do not count."""
    for rows_since, allowed in ((799, False), (800, True)):
        breaker = make_breaker()
        assert judged(breaker, fleet(200), range(200))
        breaker.written(encoded(fleet(rows_since)), rows_since)
        assert judged(breaker, fleet(1), [0]) is allowed


def test_bad_stretch_of_a_large_batch_trips_even_if_the_whole_is_mostly_good() -> None:
    """201 of some thousand consecutive rows, though 4 % of the batch."""
    assert not judged(make_breaker(), fleet(5_000), range(3_000, 3_201))
    spread = range(0, 5_000, 24)
    assert len(spread) > ROWS_MAX
    assert judged(make_breaker(), fleet(5_000), spread)


def test_rows_judged_before_are_not_judged_again() -> None:
    """After a release one more bad row does not pause writes again."""
    breaker = make_breaker()
    breaker.release(received_until_s=0.5)
    assert judged(breaker, fleet(5_000), range(500), received_s=0.5)
    assert judged(breaker, fleet(10), [0])


def test_what_is_forgotten_counts_no_more_and_trips_again() -> None:
    """After a probe that succeeded nothing counts. The same batch then trips the breaker again."""
    breaker = make_breaker()
    assert judged(breaker, fleet(200), range(200))
    assert not judged(breaker, fleet(1), [0])
    breaker.forget()
    assert judged(breaker, fleet(1), [0])
    assert not judged(breaker, fleet(1_000), range(500))


def test_release_with_dead_letters_is_for_what_was_received_before() -> None:
    """`--dead-letter` covers all that waits now, however much is written meanwhile, and no more."""
    breaker = make_breaker()
    breaker.release(received_until_s=2.0)
    assert judged(breaker, fleet(300), range(300), received_s=1.0)
    breaker.written(encoded(fleet(10_000)), 10_000)
    assert judged(breaker, fleet(300), range(300), received_s=2.0)
    breaker.forget()
    assert judged(breaker, fleet(300), range(300), received_s=2.0)
    assert not judged(breaker, fleet(300), range(300), received_s=2.1)


def test_judging_the_worst_batch_does_not_stop_the_loop() -> None:
    """With 5,000 rows, half of them bad rows of one device, it takes less than any deadline."""
    breaker = make_breaker()
    breaker.written(encoded(fleet(1_000)), 1_000)
    rows = [device_id if row % 2 else "mad" for row, device_id in enumerate(fleet(5_000))]
    began_s = monotonic_s()
    assert judged(breaker, rows, range(0, 5_000, 2))
    assert monotonic_s() - began_s < 1.0


batches = st.lists(
    st.lists(st.tuples(st.integers(0, 11), st.booleans()), min_size=1, max_size=30), max_size=8
)


@settings(deadline=None, max_examples=200)
@given(batches)
def test_verdict_is_that_of_the_rule_taken_literally(script: list[list[tuple[int, bool]]]) -> None:
    """More than 4 of any 20 rows, of more than a fifth of their devices, and at least one new."""
    window, rows_max = 20, 4
    breaker = CircuitBreaker(window_rows=window, rows_max=rows_max)
    past: list[tuple[int, bool]] = []
    for batch in script:
        rows = [*past, *batch]
        fits: list[bool] = []
        for start in range(max(0, len(rows) - window) + 1):
            seen = rows[start : start + window]
            bad = {device for device, refused in seen if refused}
            many = sum(refused for _, refused in seen) > rows_max
            if many and any(refused for _, refused in rows[len(past) : start + window]):
                fits.append(len(bad) * 5 > len({device for device, _ in seen}))
        bad_rows = [row for row, (_, refused) in enumerate(batch) if refused]
        if judged(breaker, [f"d{device}" for device, _ in batch], bad_rows):
            assert not fits or not all(fits), "dead-lettered what the rule holds"
            past = rows
        else:
            assert any(fits), "held what the rule lets pass"
