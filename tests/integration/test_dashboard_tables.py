"""The page with declared tables: their values, and what of the same metrics is in `readings`."""

from __future__ import annotations

import asyncpg
import pytest

from ingest.model.tables import ColumnTable, Tables
from ingest.sinks.postgres.lookup import Between, Lookup
from ingest.sinks.postgres.schema import apply

CLIMATE = ColumnTable("climate", "", ("temperature", 'a "b"', "name"), (0, 0, 0))
CPU = ColumnTable("cpu", "cpu", ("idle", "value", "ts_us"), (0, 0, 0))
LATER = ColumnTable("later", "", ("co2",), (0,))  # is not made yet
TABLES = Tables([CLIMATE, CPU, LATER])
MAKE = r'''
create table climate (ts timestamptz, device_id text collate "C", temperature float8,
    "a ""b""" float8, primary key (ts, device_id));
create table cpu (ts timestamptz, device_id text collate "C", series text collate "C", idle float8,
    value float8, ts_us float8, primary key (ts, device_id, series));
insert into climate select to_timestamp(100 + n), 'd', n, case when n % 2 = 0 then -n end
    from generate_series(0, 9) n;
insert into climate values (to_timestamp(500), 'e', null, 5);
insert into cpu values (to_timestamp(105), 'd', 'cpu=0', 1, 2, 3),
    (to_timestamp(105), 'd', '', 4, null, null);
insert into readings values (to_timestamp(103.5), 'd', 'temperature', 33),
    (to_timestamp(50), 'd', 'temperature', 7), (to_timestamp(200), 'd', 'noise', 1),
    (to_timestamp(400), 'f', 'noise', 1)'''
INDICES = "create index on climate (device_id, ts); create index on cpu (device_id, series, ts)"


def told(readings: list[dict[str, object]]) -> list[tuple[object, object, object]]:
    """Return minute and second, metric and value of readings of the page."""
    return [(str(each["ts"])[14:-1], each["metric"], each["value"]) for each in readings]


@pytest.mark.parametrize("index", [False, True])
async def test_page_knows_readings_and_declared_tables(
    readings_url: str, readings_connection: asyncpg.Connection, index: bool
) -> None:
    """All questions see both. A table and a column that are not there yet are no error."""
    await apply(readings_connection, device_index=index)
    await readings_connection.execute(MAKE + f"; {INDICES}" * index)
    lookup = Lookup(lambda: readings_url, tables=TABLES)
    newest = await lookup.newest(3)
    assert [each["device_id"] for each in newest["readings"]] == ["e", "f", "d"]
    assert told(newest["readings"])[0] == ("08:20", 'a "b"', 5)

    found = await lookup.last_readings("d", 4)
    assert told(found["readings"]) == [
        ("03:20", "noise", 1),
        ("01:49", "temperature", 9),
        ("01:48", "temperature", 8),
        ("01:48", 'a "b"', -8),
    ]
    every = {'a "b"', "cpu", "cpu,cpu=0", "cpu.idle", "cpu.idle,cpu=0", "cpu.ts_us,cpu=0"}
    everything = await lookup.last_readings("d", 500)
    assert len(everything["readings"]) == 10 + 5 + 4 + 3
    assert everything["metrics"] == sorted({*every - {"cpu"}, "noise", "temperature"})
    within = Between(102_000_000, 105_000_000)
    found = await lookup.last_readings("d", 9, "temperature", within)
    assert [value for _, _, value in told(found["readings"])] == [4, 33, 3, 2]
    found = await lookup.last_readings("d", 9, "cpu.idle")
    assert told(found["readings"]) == [("01:45", "cpu.idle", 4)]
    found = await lookup.last_readings("d", 9, "cpu,cpu=0")
    assert told(found["readings"]) == [("01:45", "cpu,cpu=0", 2)]

    curve = (await lookup.curve("d", "temperature", Between(0, 200_000_000), 4_000_000))["buckets"]
    assert curve == [
        [48, 7, 7, 7, 1],
        [100, 0, 7.8, 33, 5],
        [104, 4, 5.5, 7, 4],
        [108, 8, 8.5, 9, 2],
    ]
    for metric in ("co2", "name", "cpu.value"):
        assert not (await lookup.curve("d", metric, Between(0, 200_000_000), 10**6))["buckets"]

    listed = await lookup.devices(["f"], "", "", 10)
    assert listed["devices"] == ["d", "e", "f"]
    last = {name: told([each])[0] for name, each in listed["last"].items()}
    assert last == {
        "d": ("03:20", "noise", 1),
        "e": ("08:20", 'a "b"', 5),
        "f": ("06:40", "noise", 1),
    }
    assert (await lookup.devices([], "", "d", 1))["devices"] == ["e"]
    await lookup.close()
