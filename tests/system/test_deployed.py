"""Runs what deploy/ starts: the unit's command, Compose's database."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.embedded.programs import find_binaries
from tests.support.deployment import DEPLOY, REPOSITORY
from tests.system.database import Database
from tests.system.manager import Manager
from tests.system.service import Service, environment, run_command


def _unit() -> list[tuple[str, str]]:
    lines = (DEPLOY / "iot-ingest.service").read_text().splitlines()
    parts = (each.partition("=") for each in lines if "=" in each and not each.startswith("#"))
    return [(name, value) for name, _, value in parts]


async def test_unit_starts_the_service_with_its_credential(
    open_tmp_path: Path, readings_url: str
) -> None:
    """The unit's command runs with its environment, the credential and the watchdog's period."""
    unit = _unit()
    keys = dict(unit)
    credentials = open_tmp_path / "credentials"
    credentials.mkdir()
    name = keys["LoadCredential"].partition(":")[0]
    (credentials / name).write_text(f"{readings_url}\n")
    state = open_tmp_path / keys["StateDirectory"]
    state.mkdir(mode=int(keys["StateDirectoryMode"], 8))
    settings = [each for key, value in unit if key == "Environment" for each in shlex.split(value)]
    given = dict(each.replace("%d", str(credentials)).split("=", 1) for each in settings)
    given["PYTHONPATH"] = given["PYTHONPATH"].replace("/opt/iot-ingest", str(REPOSITORY))
    words = keys["ExecStart"].split()
    assert words[0] == "/opt/iot-ingest/.venv/bin/python"
    with Manager(str(open_tmp_path / "notify")) as manager:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *words[1:]),
            cwd=state,
            env={
                **environment(given),
                "NOTIFY_SOCKET": manager.address,
                "WATCHDOG_USEC": str(int(keys["WatchdogSec"]) * 1_000_000),
                "STATE_DIRECTORY": str(state),
                "INGEST_LISTEN": "127.0.0.1:0",
                "INGEST_DATABASE_UNSAFE": "true",  # the tests' server does not fsync
                "INGEST_ADMIN_LISTEN": "127.0.0.1:0",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            await manager.wait("READY", "1")
            await manager.wait("STATUS", "accepting")
            assert manager.values("WATCHDOG") == ["1"]
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, said.decode()
    assert b"lost=0" in said
    assert (state / "dead-letters").is_dir()


async def _shell(script: Path, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(script),
        env=environment(variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.slow
async def test_database_of_compose_lets_the_service_write_and_no_more(
    open_tmp_path: Path, free_port: int
) -> None:
    """The script makes the role, `ingest schema` the table; the writer needs its password.

    Grafana's role reads the table, with the queries of the device dashboard, and writes nothing.
    """
    await _shell(Path(shutil.copy(DEPLOY / "make-secrets", open_tmp_path)))
    secrets = open_tmp_path / "secrets"
    async with Database(open_tmp_path / "db", free_port) as database:
        await database.run("create database telemetry", database="postgres")
        rules = (
            "('host all ingest 127.0.0.1/32 scram-sha-256'), ('host all all 127.0.0.1/32 trust')"
        )
        ((hba_file,),) = await database.run("show hba_file")
        await database.run(f"copy (values {rules}) to '{hba_file}'; select pg_reload_conf();")
        await _shell(
            DEPLOY / "timescaledb-init.sh",
            PATH=f"{find_binaries()}{os.pathsep}{os.environ['PATH']}",
            SECRETS=str(secrets),
            PGHOST="127.0.0.1",
            PGPORT=str(free_port),
            POSTGRES_USER="postgres",
            POSTGRES_DB="telemetry",
        )
        urls = {}
        for who in ("admin", "writer"):
            url = (secrets / f"{who}_url").read_text()
            urls[who] = open_tmp_path / f"{who}_url"
            urls[who].write_text(url.replace("timescaledb:5432", f"127.0.0.1:{free_port}"))
        # A plain table, as on TimescaleDB: only the owner could make a partition for old readings.
        apply = ("schema", "apply", "--role", "ingest", "--partition-span", "none")
        done = await run_command("ingest", *apply, "--database-url-file", urls["admin"])
        assert done.code == 0, done.stderr
        settings: dict[str, Any] = {
            "database_url_file": urls["writer"],
            "schema_apply": False,
        }
        async with Service(open_tmp_path / "state", **settings) as service:
            await service.wait_state("accepting")
            reading = {"device_id": "d'or", "metric": "m", "ts": 1_760_000_000, "value": 1}
            assert (await service.post(reading, ack="committed")).status == 200
        await check_grafana(f"postgresql://ingest_reader@127.0.0.1:{free_port}/telemetry")
        writer = urls["writer"].read_text().strip()
        line = await asyncpg.connect(writer)
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await line.execute("delete from readings")
        finally:
            await line.close()
        password = (secrets / "writer_password").read_text().strip()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(writer.replace(password, "guessed"))


def grafana_sql() -> dict[str, str]:
    """Return the queries of the device dashboard with its variables and macros filled in."""
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "device.json").read_text())
    found = {each["name"]: each["query"] for each in board["templating"]["list"][1:]}
    found |= {each["title"]: each["targets"][0]["rawSql"] for each in board["panels"]}
    filled = {
        "${device:sqlstring}": "'d''or'",
        "${metric:sqlstring}": "'m'",
        "$__interval_ms": "15000",
        "$__timeFilter(ts)": "ts between '2025-10-09T00:00:00Z' and '2025-10-10T00:00:00Z'",
    }
    for macro, value in filled.items():
        found = {name: sql.replace(macro, value) for name, sql in found.items()}
    return found


async def check_grafana(url: str) -> None:
    """Check that the role of Grafana's data source gets the values of a device, and writes none."""
    line = await asyncpg.connect(url)
    try:
        got = {name: await line.fetch(sql) for name, sql in grafana_sql().items()}
        assert not [name for name, rows in got.items() if not rows]
        (curve,) = got["$metric of $device"]
        assert tuple(curve)[1:] == (1, 1, 1)
        assert [tuple(each) for each in got["device"]] == [("d'or",)]
        assert got["Last value"][0][0] == 1
        await line.execute("set default_transaction_read_only = off")
        for statement in (
            "delete from readings",
            "create table mine ()",
            "insert into readings values (now(), 'd', 'm', 1)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await line.execute(statement)
    finally:
        await line.close()
