"""`ingest archive` and the archive as a part of the housekeeping, from the table to the files."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg

from ingest.sinks.postgres.housekeeping import registry
from tests.support.archives import drawn, rows_in, rows_in_files, store
from tests.support.commands import Here

DAY_US = 86_400_000_000


async def test_readings_leave_for_files_and_come_back(
    connection: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """Retention archives a day; a late reading is merged; restored, it stays until released."""
    words = ("--database-url", shared_url, "--partition-span", "day", "--keep-hot", "30d")
    words = (*words, "--archive-dir", tmp_path, "--housekeeping-pause-s", 1)
    assert (await here("schema", "apply", *words)).code == 0
    old_us = 1_779_926_400_000_000  # 2026-05-28
    name = "readings_p20260528"
    rows = drawn(30, 1, from_us=old_us, to_us=old_us + DAY_US)
    first, late = rows[:20], rows[20:]

    async def arrive(some: list[tuple[int, str, str, int]]) -> None:
        kept = await registry.make(connection, "readings")
        await connection.execute(
            f"create table {name} partition of readings "
            "for values from ('2026-05-28 00:00:00+00') to ('2026-05-29 00:00:00+00')"
        )
        await registry.put(
            connection,
            kept,
            registry.PARTITION + name,
            {"from_us": old_us, "to_us": old_us + DAY_US},
        )
        await store(connection, "readings", some)

    async def keep_house() -> list[tuple[str, str]]:
        done = await here("housekeeping", "run", "--yes", "--json", *words)
        did = json.loads(done.stdout)["did"]
        assert [each["error"] for each in did] == [""] * len(did), done
        return [(each["kind"], each["partition"]) for each in did]

    async def archive(*what: object) -> object:
        done = await here("archive", *what, "--json", *words)
        assert done.code == 0, done
        return json.loads(done.stdout)

    await arrive(first)
    assert (await keep_house())[-3:] == [("detach", name), ("archive", name), ("drop", name)]
    assert await rows_in(connection, "readings") == []
    await arrive([*late, *first[:3]])
    await keep_house()
    assert sorted(rows_in_files(tmp_path.glob("*.parquet"))) == sorted(rows)
    (listed,) = await archive("list")
    assert (listed["name"], listed["readings"], listed["restored"]) == (name, 30, False)
    assert await archive("verify") == {"good": 1, "faults": {}}

    await archive("restore", name)
    assert await rows_in(connection, "readings") == sorted(rows)
    assert await keep_house() == []
    again = await here("archive", "restore", name, *words)
    assert again.code == 2
    assert "has readings of this time" in again.stderr
    assert await archive("release", name) == {"released": True}
    assert len(await keep_house()) == 3
    assert await rows_in(connection, "readings") == []
    assert await archive("verify", name) == {"good": 1, "faults": {}}

    (tmp_path / f"{name}.parquet").write_bytes(b"")
    broken = await here("archive", "verify", *words)
    assert broken.code == 1
    assert "0 bytes" in broken.stdout
    missing = await here("archive", "verify", "nothing", *words)
    assert "there is no nothing in the archive" in missing.stderr
    assert (await here("archive", "release", name, *words)).code == 1
