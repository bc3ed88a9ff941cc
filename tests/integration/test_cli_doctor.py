"""`ingest doctor`: it finds what would lose readings or stop the service."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from ingest.cli.commands import main
from ingest.cli.doctor.checks import Check, database_checks
from ingest.cli.doctor.command import port_checks
from ingest.config.settings import Settings
from ingest.sinks.postgres.connection import SessionNotKept
from ingest.sinks.postgres.durability import examine
from ingest.system.files import filesystem_of, is_volatile
from ingest.system.state_folder import StateFolder
from tests.support.commands import Here, ingest, with_user


async def test_doctor_on_a_fresh_machine_finds_nothing_wrong(open_tmp_path: Path) -> None:
    """It makes no database, and says so. One that is there is started for the time of the check."""
    state = ("--state-dir", open_tmp_path / "state")
    at = (*state, "--listen", "127.0.0.1:0", "--admin-listen", "[::1]:0")
    for more, told in (((), "warn  database"), (("--broker-url", "nats://h"), "ok    database")):
        done = await ingest("doctor", *at, *more)
        assert (done.code, done.stderr) == (len(more) // 2, ""), "there is no such broker"
        assert (told in done.stdout, "has run on the state" in done.stdout) == (True, not more)
    assert not (open_tmp_path / "state" / "postgres").exists()
    assert "of the writers" in (await ingest("schema", "show", *at, *more)).stderr
    assert (await ingest("schema", "apply", *state)).code == 0
    done = await ingest("doctor", *at)
    assert done.code == 0, done.stdout
    assert done.stderr == ""
    lines = {line[6:].split("  ")[0]: line[:4].strip() for line in done.stdout.splitlines()}
    assert lines["fsync"] == lines["synchronous_commit"] == lines["full_page_writes"] == "ok"
    assert "FAIL" not in lines.values()
    assert not (open_tmp_path / "state" / "postgres" / "data" / "postmaster.pid").exists()


async def test_doctor_on_a_database_without_fsync_fails_and_says_what_to_set(
    here: Here, readings_url: str, tmp_path: Path
) -> None:
    """A server without fsync fails the check, which names the setting."""
    done = await here("doctor", "--database-url", readings_url, "--state-dir", tmp_path, "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert done.code == 1
    assert found["fsync"]["state"] == "FAIL"
    assert found["fsync"]["detail"].endswith("set fsync = on")
    assert found["full_page_writes"]["state"] == "FAIL"
    assert found["synchronous_commit"]["state"] == "ok"
    assert found["table"]["state"] == found["privileges"]["state"] == "ok"


async def test_doctor_names_the_port_in_use_and_its_flag(here: Here, tmp_path: Path) -> None:
    """A port in use fails the check, which names the address and the flag."""
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        done = await here(
            *("doctor", "--state-dir", tmp_path, "--admin-listen", f"127.0.0.1:{port}", "--json"),
            *("--database-url", "postgresql://127.0.0.1:1/x"),
        )
        by_role, _ = port_checks(Settings(listen=f"127.0.0.1:{port}", broker_url="nats://n"), None)
    assert (by_role.state, "gateway" in by_role.detail) == ("warn", True)
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert found["admin_listen"]["state"] == "FAIL"
    assert "Address already in use" in found["admin_listen"]["detail"]
    assert "--admin-listen HOST:PORT" in found["admin_listen"]["detail"]
    assert found["database"]["state"] == "FAIL"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Correct the name"),
        (SessionNotKept(), "Read `said` in `ingest hold show`"),
        (ssl.SSLCertVerificationError("expired"), "Read `said` in `ingest hold show`"),
        (TimeoutError(), "repair the network"),
    ],
)
def test_doctor_tells_the_next_step_of_this_cause(
    error: Exception,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not each failure without a SQLSTATE is an outage."""

    async def connect(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncpg, "connect", connect)
    words = f"doctor --state-dir {tmp_path} --database-url postgresql://u@h/x --json"
    assert main(words.split()) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert told in found["database"]["detail"]
    assert told == "repair the network" or "repair the network" not in found["database"]["detail"]


async def test_doctor_of_an_embedded_database_that_fails_speaks_of_no_network(
    here: Here, tmp_path: Path
) -> None:
    """There is no network between."""
    (tmp_path / "postgres").write_text("not a folder")
    done = await here("doctor", "--state-dir", tmp_path, "--json")
    assert done.code == 1
    assert "network" not in done.stdout


async def checks(url: str, settings: Settings | None = None) -> dict[str, Check]:
    """Check one database; return the findings by name."""
    connection = await asyncpg.connect(url)
    try:
        found = await examine(connection)
    finally:
        await connection.close()
    return {
        each.name: each
        for each in database_checks(found, settings or Settings(), service_runs=False)
    }


async def test_doctor_tells_what_a_role_lacks(
    here: Here, readings_url: str, readings_connection: asyncpg.Connection[Any], role: str
) -> None:
    """Missing rights (INSERT, SELECT, TEMP) are named, with the command for the table's owner."""
    await readings_connection.execute(
        f"revoke temp on database {urlsplit(readings_url).path[1:]} from public"
    )
    found = (await checks(with_user(readings_url, role)))["privileges"]
    assert found.state == "FAIL"
    assert "lacks INSERT, SELECT, TEMP on the database" in found.detail
    assert f"ingest schema apply --database-url OWNER_URL --role {role}" in found.detail
    assert (await here("schema", "apply", "--role", role, "--database-url", readings_url)).code == 0
    found = (await checks(with_user(readings_url, role)))["privileges"]
    assert found == Check("privileges", "ok", "INSERT, SELECT and TEMP")
    await readings_connection.execute(f"drop owned by {role}")


async def test_doctor_tells_a_missing_table_apart_from_one_that_serve_would_make(
    database_url: str, role: str
) -> None:
    """A missing table is fine for a role that may create it; for others it fails."""
    assert (await checks(database_url))["table"].state == "ok"
    found = (await checks(database_url, Settings(schema_apply=False)))["table"]
    assert found.state == "FAIL"
    found = (await checks(with_user(database_url, role)))["table"]
    assert found.state == "FAIL"
    assert "may create tables" in found.detail


async def test_doctor_judges_the_roles_own_settings(
    readings_connection: asyncpg.Connection[Any], readings_url: str, role: str
) -> None:
    """Settings of the role count, because they win over postgresql.conf."""
    for setting in ("synchronous_commit = off", "default_transaction_read_only = on"):
        await readings_connection.execute(f"alter role {role} set {setting}")
    await readings_connection.execute(f"alter role {role} connection limit 1")
    found = await checks(with_user(readings_url, role))
    assert found["synchronous_commit"].state == "FAIL"
    assert found["writable"].state == "FAIL"
    assert found["connections"].state == "FAIL"
    assert found["connections"].detail.startswith("1 of ")
    assert "raise the role's CONNECTION LIMIT or lower writers" in found["connections"].detail
    await readings_connection.execute(f"alter role {role} connection limit 3")
    assert (await checks(with_user(readings_url, role)))["connections"].state == "warn"


async def test_doctor_tells_a_column_that_differs(
    readings_connection: asyncpg.Connection[Any], readings_url: str
) -> None:
    """A column that differs fails the check, as it does in the service."""
    await readings_connection.execute("alter table readings alter value type bigint")
    found = (await checks(readings_url))["table"]
    assert found.state == "FAIL"
    assert "value" in found.detail


async def test_doctor_warns_of_clocks_that_differ_and_fails_on_an_old_server(
    readings_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that differ are a warning; a version that is too old fails."""
    found = await checks(readings_url)
    assert (found["clock"].state, found["version"].state) == ("ok", "ok")
    monkeypatch.setattr("ingest.sinks.postgres.durability.unix_us", lambda: 0)
    monkeypatch.setattr("ingest.cli.doctor.checks.VERSION_MIN", 99)
    found = await checks(readings_url)
    assert found["clock"].state == "warn"
    assert found["version"].state == "FAIL"
    assert "99 or later" in found["version"].detail


def test_doctor_counts_dead_letters_and_full_disks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dead letters that wait are a warning; a nearly full disk is a warning or a failure."""
    folder = StateFolder.open(tmp_path / "state").dead_letters
    (folder / "dlq-20260101T000000000000Z-1-00000000.jsonl").write_bytes(b"{}\n{}\n{")
    words = ["doctor", "--state-dir", str(tmp_path / "state"), "--json"]
    words += ["--database-url", "postgresql://127.0.0.1:1/x", "--connections-max", "1000000"]
    assert main([*words, "--disk-free-bytes-min", str(2**44), "--dlq-bytes-max", str(2**44)]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["dead letters"]["state"] == "warn"
    assert found["dead letters"]["detail"].startswith("2 waiting; skipped 1 torn")
    assert found["free space"]["state"] == "FAIL"
    assert main([*words, "--disk-free-bytes-min", "0", "--dlq-bytes-max", str(2**44)]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["free space"]["state"] == "warn"
    assert "repair the network to it" in found["database"]["detail"]
    assert "Correct --database-url, then restart" in found["database"]["detail"]
    with (folder / "dlq-20260101T000000000000Z-1-00000001.jsonl").open("wb") as file:
        file.truncate(2 * 1024 * 1024 - 4_000)
    assert main([*words, "--dlq-bytes-max", "4MiB"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["dead letters"]["state"] == "FAIL"
    assert "kept for valid readings (2,044.1 of 2,048.0 KiB)" in found["dead letters"]["detail"]


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """Return a folder on a real file system in memory."""
    base = Path("/dev/shm")  # noqa: S108  the folder below it gets a name of mkdtemp
    if not is_volatile(filesystem_of(base)):
        pytest.skip("there is no file system in memory at /dev/shm")
    with tempfile.TemporaryDirectory(prefix="ingest-test-", dir=base) as folder:
        yield Path(folder)


async def test_journal_in_memory_fails_doctor_and_start_unless_it_does_not_matter(
    here: Here, readings_url: str, memory_folder: Path
) -> None:
    """On a real tmpfs doctor and start fail and name the ways out; each of these works."""
    ports = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    where = ("--state-dir", memory_folder / "state", "--database-url", readings_url)
    at = (*ports, *where, "--database-unsafe", "true", "--disk-free-bytes-min", "0")
    done = await here("doctor", *at)
    (line,) = [each for each in done.stdout.splitlines() if each[6:].startswith("file system")]
    assert (done.code, line[:4]) == (1, "FAIL")
    assert "--journal-unsafe true" in line
    started = await ingest("serve", *at)
    assert started.code == 2
    assert "--journal-unsafe true" in started.stderr
    for way in (("--journal-unsafe", "true"), ("--buffer", "memory")):
        assert (await here("doctor", *at, *way)).code == 0
