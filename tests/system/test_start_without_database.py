"""The service starts, goes on and stops while its database is away or refuses.

The database is real and listens on TCP. The service is the command line.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from tests.system.database import PASSWORD, Database
from tests.system.fleet import FIRST_US, reading
from tests.system.service import Service, run_command

QUICK: dict[str, Any] = {"wait_s_max": 0.2, "schema_check_s": 0.2}


async def start_without_url(folder: Path) -> None:
    """Forget the URL: the reading that waits in the journal must not go to another database."""
    ports = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    done = await run_command("ingest", "serve", "--state-dir", folder, *ports)
    assert (done.code, "for the database 127.0.0.1:" in done.stderr) == (2, True), done


async def test_outage_with_restart_costs_no_post(open_tmp_path: Path, free_port: int) -> None:
    """A database that was seen may be away or refuse: posts are taken from the start.

    The stop does not wait for it either: the journal keeps the rest. A new password needs no start.
    """
    secret = open_tmp_path / "url"
    settings: dict[str, Any] = {
        "drain_s_max": 600,
        "ack_wait_s_max": 300,
        **QUICK,
    }  # not waited for
    async with Database(open_tmp_path / "db", free_port) as database:
        secret.write_text(database.url)
        service = Service(open_tmp_path / "state", database_url_file=secret, **settings)
        async with service:
            await service.wait_state("accepting")
            assert ("started_as_root" in service.output) == (os.geteuid() == 0)
            await database.kill()
            assert (await service.post(reading(FIRST_US))).status == 202
            waiting = asyncio.create_task(service.post(reading(FIRST_US + 1), ack="committed"))
            await service.wait_sample("ingest_db_up", 0)
            code, output = await service.stop()
            assert (code, "held=2 lost=0" in output) == (0, True), output
            assert "posts_left_inside" not in output, "no post had to wait for a time limit"
            assert (await waiting).document["code"] == "outcome_unknown"
            # Nobody answers.
            await service.start()
            document = (await service.readyz()).document
            assert document["state"] == "accepting"
            assert "no connection to the database since the start" in document["reason"]
            assert (await service.metrics())["ingest_db_up"] == 0
            assert (await service.post(reading(FIRST_US + 2))).status == 202
            assert "database_never_seen" not in service.output
            await database.start()
            await service.wait_sample("ingest_readings_committed_total", 3)
            await service.stop()
            # It refuses the password; the file of the URL gets the new one.
            await database.run("alter role fleet password 'second'")
            await service.start()
            document = await service.wait_state("on_hold")
            assert document["reason"].endswith("the database refuses the password or the role")
            assert (await service.post(reading(FIRST_US + 3))).status == 202
            secret.write_text("")  # a file that is being written changes nothing
            await service.wait_line("database_url_file_unusable")
            reason = (await service.readyz()).document["reason"]
            assert reason.endswith("role; database_url_file is empty; the old URL is still used")
            secret.write_text(database.url.replace(PASSWORD, "second"))
            await service.wait_state("accepting")
            await service.wait_sample("ingest_readings_committed_total", 1)
            assert await service.imbalance() == 0
            assert ":second@" in service.info.database_url, "commands use it"
            assert "second@" not in service.output
            # A stop while writes are paused.
            await database.run("alter table readings rename metric to metrik")
            assert (await service.post(reading(FIRST_US + 4))).status == 202
            await service.wait_state("on_hold")
            code, output = await service.stop()
            assert (code, "held=1 lost=0" in output) == (0, True), output
            await start_without_url(open_tmp_path / "state")
        assert len(await database.run("table readings")) == 4


async def test_first_start_takes_posts_only_if_nobody_answers(
    open_tmp_path: Path, postgres_server: str
) -> None:
    """No answer is an outage, a refusal a wrong setting. Once posts are taken it pauses writes."""
    sockets = open_tmp_path / "sockets"  # the server's, while this link is there
    found = parse_qs(urlsplit(postgres_server).query)["host"][0]
    url = f"postgresql://postgres@/late?host={sockets}&port=5432"
    settings: dict[str, Any] = {"database_url": url, "database_unsafe": True, **QUICK}
    sockets.symlink_to(found)
    async with Service(open_tmp_path / "refused", **settings) as service:
        document = await service.wait_state("starting")
        assert document["reason"].endswith("writes are paused: there is no such database")
        assert (await service.post(reading(FIRST_US))).document["code"] == "starting"
    sockets.unlink()
    connection = await asyncpg.connect(postgres_server)
    try:
        async with Service(open_tmp_path / "state", **settings) as service:
            await service.wait_state("accepting")
            assert "check database_url" in await service.wait_line("database_never_seen")
            assert (await service.post(reading(FIRST_US))).status == 202
            sockets.symlink_to(found)
            await service.wait_state("on_hold")
            await connection.execute("create database late")
            await service.wait_state("accepting")
            await service.wait_sample("ingest_readings_committed_total", 1)
            assert service.output.count("database_never_seen") == 1, "once a minute"
    finally:
        await connection.execute("drop database if exists late with (force)")
        await connection.close()
