"""The SQL of docs/run/database.md, run as it stands there, while the service takes posts."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from tests.support.documents import DOCUMENTS, fences
from tests.system.service import Service, run_command

GUIDE = DOCUMENTS["docs/run/database.md"].split("\n## Tables with columns\n")[0]


def _sql() -> list[str]:
    return [each.text for each in fences(GUIDE) if each.language == "sql" and not each.run_by]


async def _climate(connection: asyncpg.Connection) -> list[tuple[object, ...]]:
    return [
        tuple(each)
        for each in await connection.fetch(
            "select device_id, extract(epoch from ts)::int, temperature, humidity from climate "
            "order by 1, 2"
        )
    ]


def _later(trigger: str) -> str:
    """Return the `insert` of the function, for one device, as the guide says."""
    return (
        trigger[trigger.index("insert into climate") : trigger.index("    return null")]
        .replace("new_readings", "readings")
        .replace("where n.metric in", "where n.device_id = 'new-1' and n.metric in")
    )


async def test_trigger_of_the_guide_feeds_a_table_with_a_foreign_key(
    readings_url: str, readings_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """It is made while the service runs; unknown devices come later, by its `insert`."""
    _, _, tables, trigger = _sql()
    at = 1_764_000_000
    async with Service(tmp_path, database_url=readings_url, database_unsafe=True) as service:

        async def post(device_id: str, ts: int, **values: float) -> int:
            item = {"device_id": device_id, "ts": ts, "values": values}
            return (await service.post([item], ack="committed")).status

        assert await post("d1", at, temperature=1) == 200  # before the trigger
        await readings_connection.execute(tables)
        await readings_connection.execute("insert into devices values ('d1', 'hall')")
        await readings_connection.execute(trigger)
        assert await post("d1", at + 1, temperature=2, humidity=50, light=9) == 200
        assert await post("d1", at + 2, temperature=3) == 200
        assert await post("d1", at + 2, humidity=51) == 200
        assert await post("d1", at + 1, temperature=2, humidity=50) == 200  # sent again
        assert await post("d1", at + 2, temperature=4) == 200  # another value of that time
        assert await post("new-1", at + 3, temperature=5, humidity=52) == 200
        known: list[tuple[str, int, float, float | None]] = [
            ("d1", at + 1, 2, 50),
            ("d1", at + 2, 4, 51),
        ]
        assert await _climate(readings_connection) == known
        await readings_connection.execute("insert into devices values ('new-1', 'roof')")
        await readings_connection.execute(_later(trigger))
        known.append(("new-1", at + 3, 5, 52))
        assert await _climate(readings_connection) == known

        # Without the join the foreign key refuses the readings, and those alone.
        without = trigger.replace(" n join devices d on d.id = n.device_id", " n")
        assert without != trigger
        await readings_connection.execute(
            without.partition("create trigger")[0].replace("create", "create or replace")
        )
        answer = await service.post(
            [
                {"device_id": "d1", "ts": at + 4, "metric": "temperature", "value": 6},
                {"device_id": "new-2", "ts": at + 4, "metric": "temperature", "value": 7},
            ],
            ack="committed",
        )
        assert (answer.status, answer.document["accepted"]) == (200, 1), answer.text
        assert answer.document["dead_lettered"] == 1
        listed = await run_command("ingest", "dlq", "list", "--json", "--state-dir", tmp_path)
        assert "climate_device_id_fkey" in listed.stdout
        assert await readings_connection.fetchval("select count(*) from readings") == 10
        await readings_connection.execute("insert into devices values ('new-2', 'roof')")
        done = await run_command(
            "ingest", "dlq", "replay", "--state-dir", tmp_path, "--database-unsafe", "true"
        )
        assert done.code == 0, done.stderr
        await service.wait_quiet()
        known.append(("new-2", at + 4, 7, None))
        known.insert(2, ("d1", at + 4, 6, None))
        assert await _climate(readings_connection) == sorted(known, key=lambda each: each[:2])


async def test_history_of_the_guide_is_brought_in_or_seen_in_a_view(
    readings_connection: asyncpg.Connection,
) -> None:
    """What is brought in twice is there once; the day of the view divides the two tables."""
    view, bring, *_ = _sql()
    await readings_connection.execute(
        "create table measurements (time timestamptz, sensor varchar(9), kind text, val real); "
        "insert into measurements select time, 'd1', 'm', 1 from unnest(array['2025-01-01Z', "
        f"'2030-01-01Z']::timestamptz[]) as time; {view}; {bring}; {bring}; "
        "insert into readings values ('2030-01-01Z', 'd1', 'm', 2)"
    )
    found = await readings_connection.fetch("select val from all_measurements order by time")
    assert [row["val"] for row in found] == [1, 2]
    assert await readings_connection.fetchval("select count(*) from readings") == 2
