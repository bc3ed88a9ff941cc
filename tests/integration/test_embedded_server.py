"""The embedded PostgreSQL with its real programs: it starts, survives, and ends with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import pytest

from ingest.embedded import server_process as running_server
from ingest.embedded.postgres import EmbeddedPostgres
from tests.support.embedded import SMALL, answers_again, ask, gone, running, start_parent


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
