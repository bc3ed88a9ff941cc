"""Commands that need a database or a running service; both are real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from ingest.system.state_folder import ServiceInfo, StateFolder, running_service
from tests.support.commands import Here, ingest, with_user
from tests.support.documents import commands, marked
from tests.support.processes import killed_after
from tests.system.database import give_data
from tests.system.service import REPOSITORY, Service, environment, is_alive

# schema


async def test_schema_apply_makes_the_table_and_a_second_time_changes_nothing(
    here: Here,
    database_url: str,
) -> None:
    """`schema apply` may be repeated, and makes the device index only on request."""
    connection = await asyncpg.connect(database_url)
    role = await connection.fetchval("select current_user")
    there, index = "the table readings was there, and fits\n", "the index readings_device_idx"
    for extra, said in (
        ([], "made the table readings\n"),
        (["--device-index"], f"{there}made {index}\n"),
        (["--device-index"], f"{there}{index} was there\n"),
        (["--role", role], f"{there}the role {role} may write and read the table\n"),
    ):
        plain = ("--partition-span", "none", "--database-url", database_url)
        done = await here("schema", "apply", *plain, *extra)
        assert (done.code, done.stdout, done.stderr) == (0, said, "")
    try:
        found = await connection.fetch(
            "select indexname from pg_indexes where tablename = $1", "readings"
        )
    finally:
        await connection.close()
    assert len(found) == 2


async def test_schema_apply_of_an_administrator_lets_a_role_write(
    here: Here, database_url: str
) -> None:
    """The block of docs/run/database.md, with another name of the role."""
    (block,) = marked("docs/run/database.md", "test_cli_commands.py")
    name = f"of_page_{os.getpid()}"
    create, apply = commands(block.replace("role ingest", f"role {name}"))
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(create[-1])
        done = await here(*(each.replace("$ADMIN_URL", database_url) for each in apply))
        assert (done.code, done.stderr) == (0, "")
        assert f"the role {name} may write and read the table\n" in done.stdout
    finally:
        await connection.execute(f"drop owned by {name}; drop role {name}")
        await connection.close()


async def test_schema_show_tells_by_its_exit_code_whether_the_table_fits(
    here: Here, database_url: str, readings_url: str
) -> None:
    """`schema show` prints the columns and returns 0, or prints the difference and returns 1."""
    done = await here("schema", "show", "--database-url", readings_url)
    assert done.code == 0
    assert "double precision" in done.stdout
    found = json.loads((await here("schema", "show", "--json", "--database-url", readings_url))[1])
    assert (found["fits"], found["difference"]) == (True, None)
    assert found["table"] + "\n" == done.stdout
    done = await here("schema", "--database-url", database_url, "show")
    assert done.code == 1
    assert "ingest schema apply" in done.stdout


async def test_schema_failure_is_the_databases_sentence_without_password(
    here: Here, database_url: str
) -> None:
    """A missing role, a table of another owner and an unreachable server give one sentence each."""
    done = await here("schema", "apply", "--role", "nobody_here", "--database-url", database_url)
    assert done.code == 2
    assert done.stderr.startswith("ingest: ")
    assert "nobody_here" in done.stderr
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("create table readings (ts int)")
    finally:
        await connection.close()
    done = await here("schema", "apply", "--database-url", database_url)
    assert done.code == 2
    assert "no column device_id; table readings has no column metric; " in done.stderr
    assert "\n-- alter table public.readings rename THE_COLUMN to metric; " in done.stderr
    away = "postgresql://me:hunter2@127.0.0.1:1/x"
    done = await here("schema", "show", "--database-url", away)
    assert done.code == 2
    assert "postgresql://me:***@127.0.0.1:1/x" in done.stderr
    assert "hunter2" not in done.stderr


async def test_schema_without_rights_is_a_sentence_with_its_sqlstate(
    here: Here, database_url: str, role: str
) -> None:
    """A missing right gives a sentence, with its SQLSTATE."""
    done = await here("schema", "apply", "--database-url", with_user(database_url, role))
    assert done.code == 2
    assert "SQLSTATE 42501" in done.stderr


# psql


async def test_psql_runs_on_the_configured_database_with_its_own_arguments(
    readings_url: str,
) -> None:
    """psql's output and exit code are passed on; settings may be among its arguments."""
    done = await ingest("psql", "-At", "--database-url", readings_url, "-c", "select 6 * 7")
    assert (done.code, done.stdout, done.stderr) == (0, "42\n", "")
    done = await ingest("psql", "--database-url", readings_url, "--", "-c", "select nonsense")
    assert done.code == 1
    assert "nonsense" in done.stderr


async def test_psql_starts_the_embedded_database_and_leaves_nothing_behind(
    open_tmp_path: Path,
) -> None:
    """The next command finds the data of the one before; no server and no lock are left."""
    state = open_tmp_path / "state"
    assert (await ingest("schema", "apply", "--state-dir", state)).code == 0
    words = ("psql", "--state-dir", state, "-Atq", "-c")
    assert (await ingest(*words, "create table t as select 42 as a")).code == 0
    done = await ingest(*words, "select a from t")
    assert (done.code, done.stdout) == (0, "42\n")
    assert (await ingest(*words, "select nonsense")).code == 1
    assert not (state / "postgres" / "data" / "postmaster.pid").exists()
    folder = StateFolder.open(state)
    folder.lock().close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_psql_that_is_told_to_end_stops_the_database_it_started(
    open_tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C cancels psql's query; SIGINT and SIGTERM end all three processes in order."""
    state = open_tmp_path / "state"
    await give_data(state)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ingest", "psql", "--state-dir", str(state)),
        *("-c", "select pg_sleep(60)"),
        cwd=REPOSITORY,
        env=environment(),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    async with killed_after(process):
        pid = await until_sleeping(state)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to all of the group
        else:
            process.send_signal(number)
        async with asyncio.timeout(20):
            _, stderr = await process.communicate()
    assert process.returncode not in {0, None}
    assert b"Traceback" not in stderr
    assert not is_alive(pid)


async def until_sleeping(state: Path) -> int:
    """Wait until the state folder's own server runs a pg_sleep; return the server's pid."""
    pid_file = state / "postgres" / "data" / "postmaster.pid"
    question = "select count(*) from pg_stat_activity where state = 'active' and query ~ $1"
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.1)
            lines = pid_file.read_text().splitlines() if pid_file.exists() else []
            if len(lines) < 8 or lines[7].strip() != "ready":
                continue
            connection = await asyncpg.connect(host=lines[4], user="postgres", database="postgres")
            try:
                if await connection.fetchval(question, "^select pg_sleep"):
                    return int(lines[0])
            finally:
                await connection.close()


# with a running service


async def test_commands_find_the_running_service(here: Here, open_tmp_path: Path) -> None:
    """With its --state-dir, config, psql and doctor find the service's database, hold its port."""
    state = open_tmp_path / "state"
    async with Service(state, dlq_auto_replay=False) as service:
        await service.wait_state("accepting")
        at = ("--state-dir", state)
        done = await here("config", "--print", "database_url", *at)
        assert done.stdout.strip() == service.info.database_url
        assert (await service.post({"device_id": "d", "metric": "m", "value": 1})).status == 202
        await service.wait_sample("ingest_readings_committed_total", 1)
        done = await ingest("psql", *at, "-Atc", "select device_id, value from readings")
        assert done.stdout == "d|1\n"
        done = await here("hold", "show", *at)
        assert done.stdout.splitlines()[:2] == ["state:   accepting", "reason:  -"]
        assert json.loads((await here("hold", "show", *at, "--json"))[1])["state"] == "accepting"
        done = await here("hold", "release", *at, "--json")
        assert json.loads(done.stdout)["released"] is False
        done = await here("doctor", *at, "--json")
        found = {each["name"]: each for each in json.loads(done.stdout)}
        assert done.code == 0, done.stdout
        assert str(service.pid) in found["service"]["detail"]
        assert found["service"]["detail"].endswith(", accepting")
        done = await here("hold", "release", "--dead-letter", *at)
        assert (done.code, done.stdout.partition(":")[0]) == (0, "nothing is on hold")
        assert "listen" not in found
        assert found["table"] == {
            "name": "table",
            "state": "ok",
            "detail": "public.readings is correct",
        }
    assert running_service(state) is None
    done = await here("hold", "show", *at)
    assert done.code == 2


async def test_serve_whose_reader_went_away_still_ends_well(
    readings_url: str, tmp_path: Path
) -> None:
    """`ingest serve | head -1` goes on, and its exit code does not depend on the pipe."""
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ingest", "serve", "--database-url", readings_url),
        *("--database-unsafe", "true"),  # the tests' server does not fsync
        *("--state-dir", str(tmp_path), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"),
        cwd=REPOSITORY,
        env=environment(),
        stdout=write,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write)
    assert process.stderr is not None
    async with killed_after(process), asyncio.timeout(20):
        async for line in process.stderr:
            if b'"accepting"' in line:
                break
        process.send_signal(signal.SIGTERM)
        _, stderr = await process.communicate()
    assert (process.returncode, b"Traceback" in stderr) == (0, False)


async def test_hold_is_shown_with_its_reason_and_released(
    here: Here, readings_url: str, tmp_path: Path
) -> None:
    """After the operator fixed the table, release tries at once and not at the next probe."""
    at = ("--state-dir", tmp_path / "state")
    connection = await asyncpg.connect(readings_url)
    try:
        async with Service(
            tmp_path / "state",
            database_url=readings_url,
            database_unsafe=True,
            hold_probe_s_max=600,
            wait_s_max=600,
            schema_check_s=0.2,
        ) as service:
            await service.wait_state("accepting")
            await connection.execute("alter table readings rename metric to metrik")
            await service.post({"device_id": "d", "metric": "m", "value": 1})
            await service.wait_state("on_hold")
            done = await here("hold", "show", *at)
            assert done.stdout.startswith("state:   on_hold\nreason:  ")
            assert "reason: -" not in done.stdout
            assert "metric" in done.stdout.splitlines()[3].removeprefix("said:   ")
            await connection.execute("alter table readings rename metrik to metric")
            assert (await here("hold", "release", *at)).stdout.startswith("released: ")
            await service.wait_state("accepting", within_s=5)
            await service.wait_sample("ingest_readings_committed_total", 1, within_s=5)
    finally:
        await connection.close()


async def test_hold_is_told_when_the_service_does_not_answer(
    here: Here, open_tmp_path: Path, free_port: int
) -> None:
    """A service that does not answer gives one sentence with its pid and address."""
    folder = StateFolder.open(open_tmp_path / "state")
    lock = folder.lock()
    try:
        folder.publish(
            ServiceInfo(
                pid=os.getpid(),
                version="0",
                listen="127.0.0.1:1",
                admin_listen=f"127.0.0.1:{free_port}",
                database_url="postgresql://x/y",
                token="t",
                started_us=0,
            )
        )
        done = await here("hold", "show", "--state-dir", folder.path)
    finally:
        lock.close()
    assert done.code == 2
    assert f"pid {os.getpid()}" in done.stderr
    assert f"127.0.0.1:{free_port}" in done.stderr
