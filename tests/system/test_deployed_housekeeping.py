"""Runs the housekeeping as the examples of deploy/ do: the owner's URL is in the job alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ingest.system.clock import unix_us
from tests.support.archives import rows_in_files
from tests.support.commands import with_user
from tests.support.deployment import (
    DEPLOY,
    compose_services,
    shown_in_head,
)
from tests.system.service import Service, run_command

if TYPE_CHECKING:
    from tests.conftest import Server


UNIT = DEPLOY / "systemd" / "ingest-housekeeping.service"


def unit_lines() -> list[tuple[str, str]]:
    """Return the keys and values of the unit."""
    lines = (each.partition("=") for each in UNIT.read_text().splitlines() if each[:1] != "#")
    return [(name, value) for name, mark, value in lines if mark]


def settings_of_systemd() -> dict[str, str]:
    """Return those of the unit, and of the file ingest.env as its head shows it."""
    given = [
        each for name, value in unit_lines() if name == "Environment" for each in value.split()
    ]
    given += [each[0] for each in shown_in_head(UNIT) if each and each[0].startswith("INGEST_")]
    return dict(each.split("=", 1) for each in given if each.startswith("INGEST_"))


def settings_of_compose() -> dict[str, str]:
    """Return those of the service in compose.yaml."""
    found: dict[str, str] = compose_services("compose.yaml")["housekeeping"]["environment"]
    return found


def commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the command and the settings of each example, by its name."""
    words = dict(unit_lines())["ExecStart"].replace(" $HOUSEKEEPING_FLAGS", "").split()
    (loop,) = compose_services("compose.yaml")["housekeeping"]["command"]
    (once,) = re.findall(r"do python -P -m (ingest [\w ]+); sleep", loop)
    assert words[1:3] == ["-P", "-m"], words
    return {
        "systemd": (words[3:], settings_of_systemd()),
        "compose": (shlex.split(once), settings_of_compose()),
    }


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """Give the URL of a database without a table."""
    name = server.create("template0")
    yield server.url_of(name)
    server.drop(name)


async def service_says(state: Path, url: str, environ: dict[str, str]) -> None:
    """Run the service with a role that owns nothing: it writes, and says how many days last."""
    environ = {**environ, "INGEST_HOUSEKEEPING": "false"}
    own: Any = {"database_url": url, "schema_apply": False, "database_unsafe": True}
    async with Service(state, env=environ, **own) as service:
        await service.wait_state("accepting")
        reading = {"device_id": "d", "metric": "m", "ts": unix_us() / 1e6, "value": 1}
        assert (await service.post(reading, ack="committed")).status == 200
        words = ("housekeeping", "status", "--json", "--database-url", url)
        status = json.loads((await run_command("ingest", *words, env=environ)).stdout)
        assert status["spans_ahead"] >= 7
        assert "does not own" in status["cannot_make"]
        doctor = await run_command("ingest", "doctor", "--database-url", url, env=environ)
        said = "days after the present one have a partition; a job with the owner"
        assert said in doctor.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", ["systemd", "compose"])
async def test_job_of_the_owner_works_for_a_service_that_owns_nothing(
    open_tmp_path: Path, empty_database: str, example: str
) -> None:
    """It makes partitions, and archives old ones after a yes; the service says how many last."""
    words, environ = commands()[example]
    folder = open_tmp_path / "archive"
    owner = open_tmp_path / "owner_url"
    line = await asyncpg.connect(empty_database)
    try:
        await line.execute("drop role if exists job_owner; drop role if exists job_writer")
        await line.execute("create role job_owner login; create role job_writer login")
        await line.execute("grant all on schema public to job_owner")
        owner.write_text(with_user(empty_database, "job_owner") + "\n")
        writer = with_user(empty_database, "job_writer")
        environ |= {"INGEST_HOUSEKEEPING_URL_FILE": str(owner), "INGEST_ARCHIVE_DIR": str(folder)}
        apply = ("schema", "apply", "--role", "job_writer", "--partition-span", "day")
        done = await run_command("ingest", *apply, "--database-url-file", owner)
        assert done.code == 0, done.stderr
        (ahead,) = await line.fetch(
            "select max(inhrelid::regclass::text) from pg_inherits where inhparent = "
            "'readings'::regclass"
        )
        await line.execute(f"drop table {ahead[0]}")

        first = await run_command(*words, env=environ)
        assert first.code == 0, first.stderr
        assert f"make {ahead[0]}: done" in first.stdout

        shared = {name: value for name, value in environ.items() if not name.endswith("_FILE")}
        await service_says(open_tmp_path / "state", writer, shared)

        await line.execute("set role job_owner")
        old = "readings_p20250101"
        await line.execute(
            f"create table {old} partition of readings for values from ('2025-01-01+00') "
            f"to ('2025-01-02+00'); insert into {old} values ('2025-01-01 05:00+00', 'd', 'm', 7);"
            f"insert into ingest_housekeeping values ('partition/{old}', "
            '\'{"from_us": 1735689600000000, "to_us": 1735776000000000}\')'
        )
        waits = await run_command(*words, env=environ)
        assert (waits.code, "has not been confirmed" in waits.stdout) == (0, True)
        done = await run_command(*words, "--yes", env=environ)
        assert done.code == 0, done.stdout
        assert rows_in_files(folder.glob("*.parquet"))[0][1:3] == ("d", "m")
        assert await line.fetchval("select count(*) from readings") == 1
    finally:
        await line.execute("reset role; drop schema public cascade; create schema public")
        await line.execute("drop role job_owner; drop role job_writer")
        await line.close()
