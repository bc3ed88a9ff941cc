"""The folder of an embedded database: what may be in it, and who may use it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from ingest.embedded import data as postgres_data
from ingest.embedded import postgres as server_postgres
from ingest.embedded.data import make_socket_folder
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.embedded.programs import DatabaseUser
from ingest.model.errors import StartError
from tests.support.embedded import SMALL, answers_again, ask, gone, running, start_parent
from tests.support.receiver import until


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
