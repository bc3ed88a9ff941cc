"""Rows of declared tables: each reading has one home, and comes back from the bytes as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.buffers.frames import FRAME_BYTES_MAX
from ingest.model.block import PG_EPOCH_US, encode_rows, names_between
from ingest.model.moments import (
    COLUMNS_MAX,
    MARK,
    decode_readings,
    first_readings,
    form_of_table,
    reading_bytes_max,
    readings_fault,
    runs,
    section,
)
from ingest.model.placed_rows import encode_placed, place_readings
from ingest.model.reading import Reading
from ingest.model.tables import ColumnTable, Tables, metric_of

SINCE_US = PG_EPOCH_US + 1_000
CLIMATE = ColumnTable("climate", "", ("temperature", "humidity", "co2"), (SINCE_US,) * 3)
CPU = ColumnTable("cpu", "cpu", ("idle", "value"), (SINCE_US, SINCE_US + 5))
TABLES = Tables([CLIMATE, CPU])

METRICS = st.sampled_from(
    [
        *("temperature", "humidity", "co2", "temperature,room=a", "noise"),
        *("cpu.idle", "cpu.idle,cpu=cpu0", "cpu,cpu=cpu0", "cpu"),
        *("cpu.idle,", "cpu.user,cpu=cpu0", "cpu\\,a.idle"),
    ]
)
# All bits of a value: it may have eight bytes ff but for those of its exponent.
READINGS = st.lists(
    st.builds(
        Reading,
        st.integers(SINCE_US - 3, SINCE_US + 8),
        st.sampled_from(["a", "b", "ü"]),
        METRICS,
        st.sampled_from([1.0, 2.0, -1.7976931348623157e308]),
    ),
    min_size=1,
    max_size=40,
)


def placed(readings: list[Reading]) -> tuple[bytes, Sequence[int] | None]:
    """Encode readings, each in its home."""
    return encode_placed(
        [each.ts_us - PG_EPOCH_US for each in readings],
        [names_between(each.device_id, each.metric) for each in readings],
        [each.value for each in readings],
        TABLES,
    )


@pytest.mark.parametrize(
    ("metric", "home"),
    [
        ("temperature", ("climate", 0, "")),
        ("temperature,room=a", None),  # a metric of a table of metrics has no series
        ("cpu.idle", ("cpu", 0, "")),
        ("cpu.idle,cpu=cpu0,n=1", ("cpu", 0, "cpu=cpu0,n=1")),
        ("cpu,cpu=cpu0", ("cpu", 1, "cpu=cpu0")),  # the field `value` is not in the metric
        ("cpu.idle,", None),  # it must not be the same as `cpu.idle`
        ("cpu.value", None),
        ("cpu\\,x.idle", None),
        ("cpu.user,cpu=cpu0", None),
        (",", None),
    ],
)
def test_a_metric_has_one_home(metric: str, home: tuple[str, int, str] | None) -> None:
    """The name alone decides it."""
    found = TABLES.home(metric)
    assert (found and (found.table.name, found.column, found.series)) == home


@given(READINGS)
def test_readings_come_back_from_their_rows(readings: list[Reading]) -> None:
    """In the order that is told, each with its time, device, metric and value."""
    tuples, order = placed(readings)
    expected = readings if order is None else [readings[each] for each in order]
    assert list(decode_readings(tuples)) == expected
    assert Counter(expected) == Counter(readings)
    assert readings_fault(tuples, len(readings)) == ""
    assert readings_fault(tuples, len(readings) + 1)
    assert first_readings(tuples[:-1], 3) == expected[:3] or len(readings) <= 3


@given(READINGS, READINGS)
def test_blocks_of_several_posts_are_put_together_as_they_are(
    first: list[Reading], second: list[Reading]
) -> None:
    """Runs follow each other: plain rows too, whatever bytes their values have."""
    both = placed(first)[0] + placed(second)[0]
    assert Counter(decode_readings(both)) == Counter(first + second)
    assert readings_fault(both, len(first) + len(second)) == ""


@given(READINGS)
def test_a_part_of_a_run_is_a_block_of_its_own(readings: list[Reading]) -> None:
    """Each row alone has its readings, and the time of the row."""
    tuples, _ = placed(readings)
    apart = list[Reading]()
    for run in runs(tuples):
        ends = pairwise(run.offsets())
        for (start, end), count, ts_us in zip(ends, run.counts(), run.times_us(), strict=True):
            row = list(decode_readings(run.part(start, end)))
            assert (len(row), {each.ts_us for each in row}) == (count, {ts_us})
            apart += row
    assert apart == list(decode_readings(tuples))


@given(READINGS)
def test_values_of_one_moment_are_one_row(readings: list[Reading]) -> None:
    """Unless a column has two; and readings from before `since` are plain rows."""
    tuples, _ = placed(readings)
    homes = [
        each
        for each in readings
        if (home := TABLES.home(each.metric)) and each.ts_us >= home.since_us
    ]
    in_tables = [run for run in runs(tuples) if run.form is not None]
    assert sum(run.readings for run in in_tables) == len(homes)
    if len({(each.ts_us, each.device_id, each.metric) for each in homes}) == len(homes):
        moments = {
            (each.ts_us, each.device_id, home.table, home.series)
            for each in homes
            if (home := TABLES.home(each.metric))
        }
        assert sum(run.rows for run in in_tables) == len(moments)


def test_largest_reading_fits_into_a_frame() -> None:
    """With the longest names, and in the widest table: a row and a section for one value."""
    columns = tuple(f"{column:063}" for column in range(COLUMNS_MAX))
    for measurement, series in (("", ""), ("m", "t=" + "x" * 400)):
        table = ColumnTable("t" * 63, measurement, columns, (0,) * COLUMNS_MAX)
        metric = metric_of(measurement, columns[0], series)
        tuples, _ = place_readings([Reading(10**15, "ü" * 256, metric, 1.0)], Tables([table]))
        assert len(tuples) <= reading_bytes_max(table) < FRAME_BYTES_MAX // 100_000
        assert readings_fault(tuples, 1) == ""


def test_without_a_home_rows_are_as_ever() -> None:
    """They are plain rows, and no mark is found in one: eight bytes ff at most."""
    names = [names_between("a", "noise")]
    value = -1.7976931348623157e308
    assert encode_placed([-1], names, [value], TABLES) == (encode_rows([-1], names, [value]), None)
    assert MARK not in encode_rows([-1] * 3, names * 3, [value] * 3)


def test_damaged_sections_are_told() -> None:
    """Whatever byte is cut off or changed in the sizes and the head."""
    readings = [Reading(SINCE_US, "a", "temperature", 1.0), Reading(SINCE_US, "a", "co2", 2.0)]
    tuples, _ = placed(readings)
    for end in range(1, len(tuples)):
        assert readings_fault(tuples[:end], 2)
    for at in range(len(MARK), tuples.index(b"co2") + 3):
        changed = tuples[:at] + bytes([tuples[at] ^ 0x81]) + tuples[at + 1 :]
        if readings_fault(changed, 2) == "":
            assert len(list(decode_readings(changed))) == 2
    empty = section(form_of_table(CLIMATE).head, b"", 0, 0)
    assert readings_fault(tuples + empty, 2) == "its bytes are not as many rows as it says"
