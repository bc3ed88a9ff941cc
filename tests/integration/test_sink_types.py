"""A table that changes under load: no value is stored as another one, and none twice."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.config.settings import Settings
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.system.clock import monotonic_s
from tests.support.rows import START_US, encode, readings
from tests.support.sink_ways import WAYS, sink_for, write

OTHER_TYPES = {
    "value": ["bigint", "numeric", "real", "integer", "text"],
    "ts": ["timestamp", "date", "text", "timestamptz(0)", "timestamptz(3)"],
    "device_id": ["varchar", "bytea", "name"],
    "metric": ["varchar(300)", "bytea"],
}


async def test_other_column_type_holds_whatever_the_way(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """This holds between two checks too, and if the bytes would fit. Then writing goes on."""
    ours = {"value": "float8", "ts": "timestamptz", "device_id": "text", "metric": "text"}
    sinks = {way: sink_for(way, shared_url) for way in WAYS}

    async def each_writes_one() -> None:
        for way, sink in sinks.items():
            await write(sink, way, readings(1))
            assert await operator.fetchval("select count(*) from readings") == 1
            await operator.execute("truncate readings")

    await each_writes_one()
    for column, others in OTHER_TYPES.items():
        for other in others:
            await operator.execute(f"alter table readings alter {column} type {other} using null")
            for way, sink in sinks.items():
                with pytest.raises(WriteFailed) as failed:
                    await write(sink, way, readings(10))
                told = (failed.value.verdict, failed.value.reason)
                assert told == (Verdict.HOLD, "schema"), (other, way)
                assert f"column {column} of readings is" in failed.value.message
                assert await operator.fetchval("select count(*) from readings") == 0
            await operator.execute(
                f"alter table readings alter {column} type {ours[column]} using null"
            )
            await each_writes_one()  # each opens anew
    for sink in sinks.values():
        await sink.close()


@pytest.mark.parametrize("least_s", [1, pytest.param(4, marks=pytest.mark.slow)])
async def test_type_altered_and_back_under_load_stores_no_wrong_value(
    operator: asyncpg.Connection, shared_url: str, least_s: int
) -> None:
    """Four writers, four ways, and a column that is bigint half of the time: all values exact."""
    stop = asyncio.Event()
    stored: dict[str, int] = dict.fromkeys(WAYS, 0)
    held: dict[str, int] = dict.fromkeys(WAYS, 0)
    blamed: dict[str, int] = dict.fromkeys(WAYS, 0)

    async def load(way: str) -> None:
        sink = sink_for(way, shared_url)
        number = 0
        while not stop.is_set():
            rows = [
                Reading(START_US + number + each, way, "m", number + each + 0.5)
                for each in range(20)
            ]
            try:
                await write(sink, way, rows)
                stored[way] += 20
                number += 20
            except WriteFailed as failed:
                held[way] += failed.verdict is Verdict.HOLD
                blamed[way] += failed.verdict is Verdict.ISOLATE
                await asyncio.sleep(0)
        await sink.close()

    async with asyncio.TaskGroup() as group:
        for way in WAYS:
            group.create_task(load(way))
        began_s = monotonic_s()
        enough_s, most_s = began_s + least_s, began_s + 30
        while monotonic_s() < enough_s or (not all(held.values()) and monotonic_s() < most_s):
            await operator.execute(
                "truncate readings; alter table readings alter value type bigint"
            )
            await asyncio.sleep(0.02)
            assert await operator.fetchval("select count(*) from readings") == 0
            await operator.execute("alter table readings alter value type float8")
            await asyncio.sleep(0.05)
            wrong = await operator.fetchval(
                """select count(*) from readings where value - floor(value) <> 0.5
                or value - 0.5 <> (extract(epoch from ts) * 1000000)::int8 - $1""",
                START_US,
            )
            assert wrong == 0
        stop.set()
    assert min(stored.values()) > 0
    assert min(held.values()) > 0
    assert max(blamed.values()) == 0


async def test_missing_key_holds_at_the_next_look(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Without the key a retry would store rows twice, and only this check can notice that."""
    sink = make_sink(shared_url, Settings(schema_check_s=0.1, database_unsafe=True))
    await sink.write(encode(readings(1)), 1, idempotent=False)
    await operator.execute("alter table readings drop constraint readings_pkey")
    await asyncio.sleep(0.15)
    with pytest.raises(WriteFailed, match="unique key") as failed:
        await write(sink, "copy", readings(5))
    assert (failed.value.verdict, failed.value.reason) == (Verdict.HOLD, "schema")
    await operator.execute("alter table readings add unique (metric, value, device_id, ts)")
    assert await sink.write(encode(readings(5)), 5, idempotent=False) == Stored(4, 1)
    await sink.close()
