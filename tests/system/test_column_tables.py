"""Declared tables at the real service: made at its start, and compared at each later one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.system.fleet import FIRST_US
from tests.system.service import Service, run_command

CLIMATE = '[[table]]\nname = "climate"\nmetrics = ["temperature", "humidity"]\nsince = {}\n'
SINCE = "2025-10-09T08:53:20.000005Z"  # of FIRST_US, and 5 us
LATER = '[[table]]\nname = "climate"\nmetrics = ["co2"]\nsince = 2025-10-09T08:53:20.000007Z\n'
ROWS = "select (select count(*) from climate) + (select count(*) from readings)"


def moment(at: int, **values: float) -> dict[str, Any]:
    """Return an item with several values of one time."""
    return {"device_id": "d", "ts": FIRST_US + at, "values": values}


async def test_tables_are_made_at_the_start_and_a_changed_one_stops_it(
    open_tmp_path: Path, readings_url: str
) -> None:
    """What was stored before stays where it is, and is found there. Columns may be added."""
    file = open_tmp_path / "tables.toml"
    settings: dict[str, Any] = {"database_url": readings_url, "database_unsafe": True}
    async with Service(open_tmp_path / "state", **settings) as service:
        assert (await service.post([moment(0, temperature=1)], ack="committed")).status == 200
        (row,) = await service.query("select to_regclass('all_readings') is null")
        assert row[0], "who declares nothing has no view"
    file.write_text(CLIMATE.format(SINCE))
    settings["tables_file"] = file
    async with Service(open_tmp_path / "state", **settings) as service:
        items = [moment(at, temperature=1, humidity=2, co2=3) for at in (0, 5, 6)]
        for duplicates in (1, 10):
            assert (await service.post(items, ack="committed")).status == 200
            await service.wait_sample("ingest_readings_duplicate_total", duplicates)
        rival = moment(6, temperature=1, humidity=7)
        assert (await service.post([rival], ack="committed")).status == 200
        (row,) = await service.query(ROWS)
        assert row[0] == 2 + 6
        assert await service.imbalance() == 0
    file.write_text(CLIMATE.format(SINCE) + LATER)
    async with Service(open_tmp_path / "state", **settings) as service:
        items.append(moment(7, temperature=1, humidity=2, co2=3))
        assert (await service.post(items, ack="committed")).status == 200
        (row,) = await service.query("select count(*) from climate where co2 = 3")
        assert row[0] == 1
        (row,) = await service.query("select count(*) from all_readings")
        assert row[0] == 13
    file.write_text(CLIMATE.format("2020-01-01T00:00:00Z") + LATER)
    ports = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    serve = ("serve", *ports, "--database-unsafe", "true")
    of_lines = (CLIMATE + LATER).replace("metrics", 'measurement = "climate"\nfields')
    at = ("--state-dir", open_tmp_path / "state", "--database-url", readings_url)
    for command, code in (
        (serve, 2),
        (serve, 2),  # as a process manager does it: no post is taken that no start could write
        (("schema", "show"), 1),
        (("schema", "apply"), 2),
    ):
        done = await run_command("ingest", *command, *at, "--tables-file", file)
        assert done.code == code, done
        assert f"takes readings since {SINCE}, and is declared since" in done.stdout + done.stderr
    file.write_text(of_lines.format(SINCE))
    done = await run_command("ingest", *serve, *at, "--tables-file", file)
    assert f"is declared since {SINCE} of the measurement climate" in done.stderr, done
    for folder in ("state", "new"):
        at = ("--state-dir", open_tmp_path / folder, *at[2:])
        done = await run_command("ingest", *serve, *at)
        assert done.code == 2, done
        assert 'table "climate" is not declared any more' in done.stderr


async def test_changed_table_of_a_database_that_comes_later_pauses_the_writes(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Once posts are taken no check ends the process. Nothing is written until it is corrected.

    Also if `readings` does not fit: else it would be all that is corrected.
    """
    sockets = open_tmp_path / "sockets"  # the server's, while this link is there
    parts = urlsplit(readings_url)
    found = parse_qs(parts.query)["host"][0]
    file = open_tmp_path / "tables.toml"
    file.write_text(CLIMATE.format(SINCE))
    settings: dict[str, Any] = {
        "database_url": readings_url.replace(quote(found, safe="/"), str(sockets)),
        "database_unsafe": True,
        "tables_file": file,
        "wait_s_max": 0.2,
    }
    sockets.symlink_to(found)
    async with Service(open_tmp_path / "made", **settings) as service:
        await service.wait_state("accepting")
        await service.query("comment on column climate.humidity is 'iot-ingest: since never'")
        await service.query("alter table readings drop constraint readings_pkey")
        await service.stop()
        sockets.unlink()
        await service.start()
        await service.wait_state("accepting")
        assert (await service.post(moment(9, temperature=1, humidity=2))).status == 202
        sockets.symlink_to(found)
        document = await service.wait_state("on_hold")
        assert document["cause"] == "tables"
        assert "humidity" in await service.wait_line("on_hold")
        assert (await service.post(moment(9, temperature=1, humidity=2))).status == 202
        (row,) = await service.query(ROWS)
        assert row[0] == 0
        await service.query(f"comment on column climate.humidity is 'iot-ingest: since {SINCE}'")
        await service.query("alter table readings add primary key (ts, device_id, metric, value)")
        await service.wait_sample("ingest_readings_committed_total", 2)
        (row,) = await service.query(ROWS)
        assert row[0] == 1
