"""`ingest tables suggest` on a real database; `schema` and `doctor` with declared tables."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest

from ingest.config.declared_tables import declared_tables
from ingest.model.reading import DRAINED, Letter, Reading
from ingest.model.tables import Tables
from ingest.system.clock import unix_us
from ingest.system.state_folder import StateFolder
from tests.support.commands import Here
from tests.support.replay_rig import InFolder

# 100 devices send four values at 10 times in the last hour, and one has a future time.
FLEET = """
insert into readings select now() - s * interval '5 minutes', 'd' || d, m, random()
from generate_series(0, 9) s, generate_series(1, 100) d,
     unnest(array['temperature', 'humidity', 'cpu.idle,cpu=0', 'cpu.user,cpu=0']) m
union all values (now() + interval '1 hour', 'd1', 'later', 1.0)"""


async def test_suggest_prints_a_file_for_what_came_in_the_last_hour(
    here: Here, readings_url: str, readings_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """The file can be used as it is. What its tables take is not suggested again."""
    words = ("tables", "suggest", "--database-url", readings_url)
    empty = await here(*words)
    assert empty.code == 1
    assert empty.stdout.startswith("# There is no reading of the last hour in the table")
    await readings_connection.execute(FLEET)
    done = await here(*words)
    assert (done.code, done.stderr) == (0, "")
    file = tmp_path / "tables.toml"
    file.write_text(done.stdout)
    tables = Tables(declared_tables(str(file), "readings"))
    assert {each.name: set(each.columns) for each in tables.all} == {
        "cpu": {"idle", "user"},
        "sensors": {"humidity", "temperature"},
    }
    assert "Of 4,000 readings of the last 45 min, 4,000 would be 2,000 rows" in done.stdout
    assert "need 546.9 KiB to 859.4 KiB now, with the key, and would need 66.4" in done.stdout
    found = json.loads((await here(*words, "--json")).stdout)
    assert [(each["readings"], each["rows"]) for each in found["tables"]] == [(2_000, 1_000)] * 2
    for statement in found["sql"]:
        await readings_connection.execute(statement)
    again = await here(*words, "--tables-file", file)
    assert (again.code, "no table would help" in again.stdout) == (1, True)
    await readings_connection.execute("create view all_readings as select * from readings")
    await readings_connection.execute(FLEET.replace("temperature", "noise"))
    more = await here(*words, "--tables-file", file)
    assert 'name = "sensors"\nmetrics = [\n    "noise",\n]' in more.stdout
    assert 'alter table "sensors" add column "noise" double precision;' in more.stdout


async def test_suggest_reads_a_table_with_other_names(
    here: Here, database_url: str, tmp_path: Path
) -> None:
    """And says that few readings tell little; a table that is not there is told as ever."""
    connection = await asyncpg.connect(database_url)
    words = ["tables", "suggest", "--database-url", database_url, "--table-name", "own"]
    words += ["--column-ts", "at", "--column-metric", "Name"]
    assert "does not exist" in (await here(*words)).stderr
    await connection.execute(
        """create table own (at timestamptz, device_id text, "Name" text, value float8);
        insert into own values (now(), 'a', 'x', 1), (now(), 'a', 'y', 1)"""
    )
    await connection.close()
    done = await here(*words)
    assert done.code == 0
    assert "few readings" in done.stdout
    assert 'metrics = [\n    "x",\n    "y",\n]' in done.stdout


ENTRY = '[[table]]\nname = "climate"\nmetrics = ["temperature"]\nsince = 2026-12-01T00:00:00Z\n'
MORE = ENTRY.replace('"temperature"', '"noise"')
OTHER = ENTRY.replace("2026-12-01", "2026-12-02")
DOCTOR = [
    ("select", ENTRY, "ok", '"climate" is correct'),
    ("select", ENTRY + MORE, "warn", 'has no column "noise": run `ingest schema apply`, or let'),
    ("drop table climate cascade", ENTRY, "warn", "there is no table"),
    (
        "drop view all_readings; alter table climate alter temperature type real",
        *(ENTRY, "FAIL", "is real instead of float8"),
    ),
]


@pytest.mark.parametrize(("change", "text", "state", "detail"), DOCTOR)
async def test_doctor_compares_the_declared_tables(
    *,
    here: Here,
    database_url: str,
    tmp_path: Path,
    change: str,
    text: str,
    state: str,
    detail: str,
) -> None:
    """A start mends what is missing, but nothing that is wrong."""
    file = tmp_path / "tables.toml"
    file.write_text(ENTRY)
    words = ("--database-url", database_url, "--tables-file", file)
    assert (await here("schema", "apply", *words)).code == 0
    connection = await asyncpg.connect(database_url)
    await connection.execute(change)
    await connection.close()
    file.write_text(text)
    found = await checked(here, *words, "--state-dir", tmp_path / "state")
    assert found["table climate"][0] == state
    assert detail in found["table climate"][1]
    file.write_text(OTHER)
    found = await checked(here, *words, "--state-dir", tmp_path / "state")
    assert change.startswith("drop") or found["tables"][0] == "FAIL"


async def test_schema_apply_makes_the_index_for_devices_on_each_table(
    here: Here, database_url: str, tmp_path: Path
) -> None:
    """Also if the table was there before the index was asked for."""
    file = tmp_path / "tables.toml"
    file.write_text(ENTRY)
    words = ("schema", "apply", "--database-url", database_url, "--tables-file", file)
    assert "device_idx" not in (await here(*words)).stdout
    file.write_text(ENTRY + '[[table]]\npreset = "telegraf_cpu"\nsince = 2026-12-01T00:00:00Z\n')
    for said in ('made the index "climate_device_idx"', 'the index "cpu_device_idx" was there'):
        assert said in (await here(*words, "--device-index")).stdout
    connection = await asyncpg.connect(database_url)
    found = await connection.fetch(
        "select split_part(indexdef, '(', 2) from pg_indexes where indexname like '%device_idx'"
    )
    await connection.close()
    columns = {"device_id, ts)", "device_id, series, ts)", "device_id, metric, ts)"}
    assert {row[0] for row in found} == columns


async def test_replay_without_the_file_stores_nothing(
    here: Here, database_url: str, tmp_path: Path
) -> None:
    """It would store readings where the service does not look for them."""
    file, state = tmp_path / "tables.toml", tmp_path / "state"
    file.write_text(ENTRY)
    words = ("--database-url", database_url, "--state-dir", state, "--database-unsafe", "true")
    assert (await here("schema", "apply", *words, "--tables-file", file)).code == 0
    reading = Reading(unix_us(), "d1", "temperature", 1.0)
    letter = Letter(DRAINED, "", "stopped", unix_us(), reading=reading)
    await InFolder(StateFolder.open(state).dead_letters, database_url).write([letter])
    refused = await here("dlq", "replay", *words)
    assert (refused.code, "is not declared any more" in refused.stderr) == (2, True)
    done = await here("dlq", "replay", *words, "--tables-file", file)
    assert (done.code, done.stderr) == (0, "")
    connection = await asyncpg.connect(database_url)
    found = await connection.fetch("select temperature from climate")
    await connection.close()
    assert [row["temperature"] for row in found] == [1.0]


async def checked(here: Here, *words: object) -> dict[str, tuple[str, str]]:
    """Return state and detail of each check of the doctor; the last one of a name."""
    listed = json.loads((await here("doctor", "--json", *words)).stdout)
    return {each["name"]: (each["state"], each["detail"]) for each in listed}
