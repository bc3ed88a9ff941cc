"""Devices over the dashboard: all of them with last values, curves, and the index that helps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.model.errors import Refused
from ingest.model.tables import NO_TABLES
from ingest.sinks.postgres import lookup as lookup_postgres
from ingest.sinks.postgres.lookup import INDEX_ADVICE, Between, Lookup
from ingest.sinks.postgres.schema import apply
from tests.support.dashboard import Rig, running

STEPS = "select to_timestamp($1::float8 + n), $2, $3, n from generate_series(0, $4::int - 1) n"


async def fill(
    connection: asyncpg.Connection, device: str, metric: str, count: int, from_s: float = 1000
) -> None:
    """Store `count` readings, one a second, with the values 0, 1, 2, .."""
    await connection.execute(f"insert into readings {STEPS}", from_s, device, metric, count)


async def document(rig: Rig, query: str) -> Any:
    """Return the JSON of an answer that must be a good one."""
    reply = await rig.ask(query)
    assert reply.status == 200, reply.document
    return reply.document


async def test_advice_is_typed_as_here(readings_url: str) -> None:
    """Each service says it in its own words, whatever the process was that imported this."""
    lookup = Lookup(lambda: readings_url, tables=NO_TABLES, run="kubectl exec pod --")
    assert "`kubectl exec pod -- schema apply --device-index`" in lookup.index_advice


@pytest.mark.parametrize("index", [False, True])
async def test_curve_has_least_mean_and_greatest_of_each_step(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection, index: bool
) -> None:
    """Buckets hold exactly the readings of the device, the metric and the time asked for.

    A time in which there is nothing has no bucket. Values that have no finite sum have a mean.
    """
    await apply(readings_connection, device_index=index)
    await fill(readings_connection, "d", "t", 25)
    await fill(readings_connection, "d", "other", 5)
    await fill(readings_connection, "e", "t", 5)
    await readings_connection.execute(
        "insert into readings values (to_timestamp(2000), 'd', 't', 1.7e308), "
        "(to_timestamp(2001), 'd', 't', 1.6e308), (to_timestamp(2002), 'd', 't', 3)"
    )
    async with running(tmp_path, readings_url) as rig:
        query = "/devices/readings?device_id=d&metric=t&step=10"
        found = await document(rig, f"{query}&from=1005&to=1970-01-01T00:16:55Z")
        assert found["buckets"] == [
            [1000, 5, 7, 9, 5],
            [1010, 10, 12, 14, 5],
        ]
        assert (found["device_id"], found["metric"], found["step"]) == ("d", "t", 10)
        assert found["device_index"] is index
        assert found.get("advice") == (None if index else INDEX_ADVICE.format(run="ingest"))
        large = await document(rig, f"{query}&from=1990&to=2010")
        assert large["buckets"] == [[2000, 3, 3, 1.7e308, 3]]
        query = "/devices/readings?device_id=d&metric=t&from=1020&to=1024&limit=3"
        rows = (await document(rig, query))["readings"]
        assert [each["value"] for each in rows] == [23, 22, 21]
        every = await document(rig, "/devices/readings?device_id=d&limit=500")
        assert every["metrics"] == ["other", "t"]
        assert len(every["readings"]) == 33
        assert every["readings"][0]["ts"] == "1970-01-01T00:33:22Z"


async def test_question_that_takes_too_long_is_ended_and_offers_the_index(
    readings_url: str, readings_connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends it in time; the next question is answered on the same connection.

    An error of the values is told as that, and not as a database that is away.
    """
    monkeypatch.setattr(lookup_postgres, "LOOKUP_S_MAX", 0.2)
    slow = lookup_postgres._CURVE.replace("order by bucket", ", pg_sleep(9) order by bucket")
    await fill(readings_connection, "d", "t", 3)
    lookup = Lookup(lambda: readings_url, tables=NO_TABLES)
    within = Between(10**9, 2 * 10**9)
    with monkeypatch.context() as patched:
        patched.setattr(lookup_postgres, "_CURVE", slow)
        with pytest.raises(Refused) as refused:
            await lookup.curve("d", "t", within, 10**6)
    assert refused.value.code == "too_slow"
    assert " schema apply --device-index`" in refused.value.detail
    assert "50 to 61 bytes a row" in refused.value.detail
    connection = lookup.connection
    assert len((await lookup.curve("d", "t", within, 10**6))["buckets"]) == 3
    assert lookup.connection is connection
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("delete from readings")  # type: ignore[union-attr]
    zero = lookup_postgres._CURVE.replace("order by bucket", "order by 1 / (count - count)")
    monkeypatch.setattr(lookup_postgres, "_CURVE", zero)
    with pytest.raises(Refused, match="division by zero") as refused:
        await lookup.curve("d", "t", within, 10**6)
    assert refused.value.code == "internal"
    await lookup.close()


@pytest.mark.parametrize("index", [False, True])
async def test_list_has_all_devices_by_name_with_their_last_readings(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection, index: bool
) -> None:
    """Pages follow each other without a gap; a prefix selects. Devices of the table are listed
    that have not posted since the start: without the index, those of its newest readings."""
    await apply(readings_connection, device_index=index)
    for name in ("a-1", "a-2", "b%1", "é"):
        await fill(readings_connection, name, "t", 3)
        await fill(readings_connection, name, "u", 2)
    async with running(tmp_path, readings_url) as rig:
        for name in ("é", "a-2", "silent"):
            rig.dashboard.devices.seen([name], 10**15)
        names, after = [], ""
        for _ in range(10):
            page = await document(rig, f"/devices/list?limit=2&after={after}")
            names += [each["device_id"] for each in page["devices"]]
            after = names[-1].replace("%", "%25")
            if not page["more"]:
                break
        assert names == ["a-1", "a-2", "b%1", "silent", "é"]
        page = await document(rig, "/devices/list?prefix=a-")
        assert (page["matching"], page["exact"], page["why"]) == (1, True, "")
        last = page["devices"][-1]
        assert last["seen"]["last_seen"] == "2001-09-09T01:46:40Z"
        assert last["last"] == {"ts": "1970-01-01T00:16:42Z", "metric": "t", "value": 2}
        assert ("advice" in page) is not index
        silent = (await document(rig, "/devices/list?prefix=s"))["devices"]
        assert [each["last"] for each in silent] == [None]
        newest = await document(rig, "/devices/newest?limit=3")
        assert {each["device_id"] for each in newest["readings"]} <= {"a-1", "a-2", "b%1", "é"}
        assert [each["ts"] for each in newest["readings"]] == ["1970-01-01T00:16:42Z"] * 3


async def test_list_without_the_database_says_why_there_are_no_values(tmp_path: Path) -> None:
    """Devices are listed; instead of last values there is the reason."""
    async with running(tmp_path) as rig:
        rig.dashboard.devices.seen(["d"], 10**15)
        page = await document(rig, "/devices/list")
        newest = await document(rig, "/devices/newest")
        assert newest["readings"] == []
        assert page["why"] == newest["why"] == "the service has not seen its database yet"
        assert [(each["device_id"], each["last"]) for each in page["devices"]] == [("d", None)]


async def test_questions_use_one_process_of_the_server_one_after_another(
    readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Ten questions at once: all are answered or get `busy`, over one connection."""
    await fill(readings_connection, "d", "t", 10)
    lookup = Lookup(lambda: readings_url, tables=NO_TABLES)
    asked = [lookup.last_readings("d", 5) for _ in range(10)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, dict) for each in answers) >= lookup_postgres.WAITING_MAX
    assert {each.code for each in answers if isinstance(each, Refused)} <= {"busy"}
    opened = await readings_connection.fetchval(
        "select count(*) from pg_stat_activity where application_name = 'iot-ingest dashboard' "
        "and datname = current_database()"
    )
    assert opened == 1
    await lookup.close()
