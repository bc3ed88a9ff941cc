"""The tail: it samples within bounds, finds a followed device in every post, checks all bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.admin.dashboard.tail import (
    ERROR_BYTES_MAX,
    ERRORS_MAX,
    FOLLOWED_MAX,
    FOUND_MAX,
    POSTS_PER_PERIOD,
    ROWS_PER_POST,
    ObservedDeadLetters,
    Tail,
)
from ingest.formats.post import Decoded, ItemError
from ingest.model.block import Block, encode_reading
from ingest.model.errors import DeadLettersBroken
from ingest.model.moments import COLUMNS_MAX, first_readings
from ingest.model.placed_rows import place_readings
from ingest.model.reading import Letter, Reading
from ingest.model.tables import ColumnTable, Tables
from tests.support.fakes import FakeDeadLetters

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
readings = st.builds(
    Reading, st.integers(0, 2**52), names, names, st.floats(allow_nan=False, allow_infinity=False)
)


def block_of(tuples: bytes, rows: int) -> Block:
    """Return the block of some rows."""
    return Block(tuples, rows, received_s=0.0, received_us=0, newest_ts_us=0)


def decoded(*found: Reading, errors: int = 0, original: bytes = b'{"device_id":"e"}') -> Decoded:
    """Return a decoded post."""
    block = block_of(b"".join(map(encode_reading, found)), len(found))
    faults = [ItemError(at, None, "wrong_type", "", original) for at in range(errors)]
    return Decoded(block if found else None, faults)


def reading(device: str, value: float = 1.0) -> Reading:
    """Return a reading of a device."""
    return Reading(10**15, device, "m", value)


def test_nothing_is_kept_while_nobody_looks() -> None:
    """While no page shows the tail, posts are counted and nothing of them is kept."""
    tail = Tail()
    tail.take()
    for _ in range(10):
        tail.observe(decoded(reading("d")))
    told = tail.take()
    assert (told.sampled, told.followed, told.posts) == ([], [], 10)


def test_sample_is_a_few_readings_of_a_few_posts() -> None:
    """At most POSTS_PER_PERIOD posts are sampled per period."""
    tail = Tail()
    tail.watched = 1
    tail.take()
    for number in range(1000):
        tail.observe(decoded(*[reading(f"d{number}", row) for row in range(50)]))
    told = tail.take()
    assert len(told.sampled) == POSTS_PER_PERIOD * ROWS_PER_POST
    assert told.sampled[0] == reading("d0", 0)
    assert told.posts == 1000


def test_followed_device_is_found_in_every_post() -> None:
    """A device is found in the middle of a post, and not mixed up with similar names."""
    tail = Tail()
    assert tail.follow("wanted")
    crowd = [reading(f"other-{row}") for row in range(30)]
    tail.observe(decoded(*crowd, reading("wanted", 7.0), *crowd))
    tail.observe(decoded(Reading(1, "x", "wanted", 1.0), reading("wanted-not"), reading("wante")))
    told = tail.take()
    assert told.followed == [reading("wanted", 7.0)]
    tail.unfollow("wanted")
    tail.observe(decoded(reading("wanted")))
    assert tail.take().followed == []


def test_rows_of_a_declared_table_are_seen_too() -> None:
    """A row of the widest table is sampled, and found behind others, cut off or not."""
    columns = tuple(f"{column:063}" for column in range(COLUMNS_MAX))
    tables = Tables([ColumnTable("t" * 63, "", columns, (0,) * COLUMNS_MAX)])
    found = [Reading(10**15, device, columns[-1], 1.0) for device in ("a", "wanted", "b")]
    crowd = [found[0]._replace(ts_us=ts_us) for ts_us in range(500)]
    tail = Tail()
    tail.watched = 1
    tail.take()
    assert tail.follow("wanted")
    for readings in ([*crowd[:250], found[1], *crowd[250:]], [*found, reading("wanted")]):
        tuples, _ = place_readings(readings, tables)
        tail.observe(Decoded(block_of(tuples, len(readings)), []))
    told = tail.take()
    assert told.followed == [found[1], reading("wanted"), found[1]]
    assert told.sampled == [*crowd[:ROWS_PER_POST], reading("wanted"), *found[:2]]


def test_followed_devices_and_what_is_found_are_bounded() -> None:
    """One device too many is refused, one that is followed already is not; the newest are kept."""
    tail = Tail()
    assert all(tail.follow(f"d{number}") for number in range(FOLLOWED_MAX))
    assert not tail.follow("more")
    assert tail.follow("d0")
    tail.unfollow("d0")
    for value in range(100):
        tail.observe(decoded(reading("d0", value)))
    followed = tail.take().followed
    assert len(followed) == FOUND_MAX
    assert followed[-1] == reading("d0", 99)


def test_errors_name_their_devices_within_bounds() -> None:
    """Too many or too large items are left out, and the sample says so."""
    tail = Tail()
    tail.observe(decoded(errors=2))
    assert tail.take()[3:] == (["e", "e"], False)
    for original in (b"[1]", b"\xff", b'{"device_id":7}', b'{"device_id":""}'):
        tail.observe(decoded(errors=1, original=original))
    assert tail.take()[3:] == ([], False)
    tail.observe(decoded(errors=1, original=b'{"device_id":"' + b"x" * ERROR_BYTES_MAX + b'"}'))
    assert tail.take()[3:] == ([], True)
    tail.observe(decoded(errors=ERRORS_MAX + 1))
    told = tail.take()
    assert (len(told.rejected), told.rejected_sampled) == (ERRORS_MAX, True)
    assert not tail.take().rejected_sampled


async def test_refused_by_the_database_counts_and_what_only_time_could_mend_does_not() -> None:
    """Only refused rows count for a device, and only after they were appended."""
    tail = Tail()
    letters = FakeDeadLetters()
    observed = ObservedDeadLetters(letters, tail)
    await observed.append(
        [
            Letter("refused_by_database", "23514", "", 1, reading("hot")),
            Letter("retries_exhausted", "40001", "", 1, reading("unlucky")),
        ],
        sender="10.0.0.1",
    )
    assert len(letters.letters) == 2
    assert tail.take().rejected == ["hot"]
    refused = Letter("refused_by_database", "23514", "", 1, reading("hot"))
    await observed.append([refused] * (ERRORS_MAX + 1), sender="10.0.0.1")
    told = tail.take()
    assert (len(told.rejected), told.rejected_sampled) == (ERRORS_MAX, True)
    letters.error = DeadLettersBroken("disk")
    with pytest.raises(DeadLettersBroken):
        await observed.append([refused], sender="10.0.0.1")
    assert tail.take().rejected == []


@given(st.lists(readings, min_size=1, max_size=6), st.integers(0, 800))
def test_first_readings_of_a_cut_block_are_its_first_whole_ones(
    found: list[Reading], cut: int
) -> None:
    """Whole rows are decoded, for all names and wherever the bytes end."""
    rows = [encode_reading(each) for each in found]
    head = b"".join(rows)[:cut]
    whole = sum(sum(map(len, rows[: n + 1])) <= cut for n in range(len(rows)))
    assert first_readings(head, ROWS_PER_POST) == found[: min(whole, ROWS_PER_POST)]
