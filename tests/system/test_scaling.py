"""The recipe of docs/grow/scaling.md, as it is printed, with three nats-servers on one machine."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from ingest.embedded.postgres import EmbeddedPostgres
from ingest.roles.embedded_broker import find_program
from tests.support.documents import DOCUMENTS, fences
from tests.support.tcp_ports import free_port
from tests.system.manager import Manager
from tests.system.roles import Running, has_rows, running, takes
from tests.system.service import REPOSITORY
from tests.system.test_up_roles import real_up

SCALING = DOCUMENTS["docs/grow/scaling.md"]
DATABASE = "postgresql://ingest@db.example/metrics"
HOSTS = ("nats1", "nats2", "nats3")
FENCE = re.compile(r"^ +```(\w+)\n(.*?)^ +```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the recipe."""
    return [
        re.sub(r"^ +", "", text, flags=re.M)
        for name, text in FENCE.findall(SCALING)
        if name == language
    ]


class Recipe:
    """Hosts and ports of the document, and where they are in this test."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.ports = {(host, port): free_port() for host in HOSTS for port in (4222, 6222, 8222)}
        self._database = database

    def here(self, text: str) -> str:
        """Return a text of the document with the addresses of this test."""
        for (host, port), real in self.ports.items():
            text = text.replace(f"{host}:{port}", f"127.0.0.1:{real}")
        database = shlex.quote(self._database)  # the URL of a socket has `&`
        return (
            text.replace(DATABASE, database)
            .replace("0.0.0.0:8080", "0.0.0.0:0")
            .replace("127.0.0.1:18080", "127.0.0.1:0")
        )

    def config(self, host: str) -> Path:
        """Write the files of one server; return its nats.conf."""
        home = self.folder / host
        home.mkdir()
        deploy = REPOSITORY / "deploy" / "nats"
        text = self.here((deploy / "nats.conf").read_text())
        for port in (4222, 6222, 8222):
            assert f"0.0.0.0:{port}" in text
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{self.ports[host, port]}")
        text = text.replace("server_name: nats1", f"server_name: {host}")
        text = text.replace("/var/lib/nats", str(home / "store")).replace("100GB", "4GB")
        (home / "nats.conf").write_text(text)
        (home / "roles.conf").write_text((deploy / "roles.conf").read_text())
        (home / "passwords.conf").write_text(blocks("conf")[0])
        return home / "nats.conf"

    @asynccontextmanager
    async def shell(self, name: str, script: str, **more: str) -> AsyncIterator[Running]:
        """Run commands of the document in a shell, which ends with the block."""
        shared = blocks("sh")[0].partition("export INGEST_BROKER_URL")[0]
        ours = f'ingest() {{ exec "{sys.executable}" -P -m ingest "$@"; }}\n'
        env = {
            "PYTHONPATH": str(REPOSITORY),
            "INGEST_STATE_DIR": str(self.folder / name),
            "INGEST_ADMIN_LISTEN": "127.0.0.1:0",
            "INGEST_STREAM_BYTES_MAX": "64MiB",
            **more,
        }
        words = ("bash", "-ec", ours + self.here(shared + script))
        log = self.folder / f"{name}.log"
        async with running(log, *words, env=env, folder=self.folder) as process:
            yield process

    async def done(self, script: str) -> str:
        """Run one command to its end; return its output."""
        async with self.shell("command", script) as process:
            code = await process.process.wait()
            assert code == 0, process.output()
            return process.output()


@pytest.mark.slow
async def test_first_command_takes_posts_with_three_gateways(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Its three processes that take posts are listed on the page."""
    _, word, flag, count = fences(SCALING)[0].text.split()
    assert (word, flag) == ("up", "--gateways")
    async with real_up(open_tmp_path, readings_url, gateways=count) as service:
        assert (await service.post({"device_id": "d", "metric": "m", "value": 1})).status == 202
        samples = await service.metrics()
    assert {f'instance="gateway-{each}"' in str(samples) for each in range(1, 4)} == {True}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_recipe_of_three_machines_works_and_survives_one(open_tmp_path: Path) -> None:
    """Two gateways and two writers on three servers: all is in the table, the leader is killed.

    A process manager hears when a role is ready.
    """
    server = EmbeddedPostgres(open_tmp_path / "postgres")
    await server.start()
    url = server.url
    async with AsyncExitStack() as ending:
        ending.push_async_callback(server.stop)
        recipe = Recipe(open_tmp_path, url)
        servers = {}
        for host in HOSTS:
            log = open_tmp_path / f"{host}.log"
            words = (str(find_program()), "-c", str(recipe.config(host)))
            servers[host] = await ending.enter_async_context(running(log, *words, env={}))
        for each in servers.values():
            await each.line_with("Server is ready")
        stream, table, writer, gateway, *_ = blocks("sh")
        login, _, commands = stream.partition("ingest stream apply\n")
        login = login.partition("8222\n")[2]
        await asyncio.sleep(2)  # they choose a leader
        await recipe.done(f"{login}ingest stream apply")
        assert "as they must be" in await recipe.done(login + commands)
        await recipe.done(table)
        shells = [
            await ending.enter_async_context(recipe.shell(f"writer{number}", writer))
            for number in range(2)
        ]
        manager = ending.enter_context(Manager(str(open_tmp_path / "notify")))
        addresses = []
        for number in range(2):
            named = recipe.shell(f"gateway{number}", gateway, NOTIFY_SOCKET=manager.address)
            addresses.append(await (await ending.enter_async_context(named)).address())
        await manager.wait("READY", "1")
        await manager.wait("STATUS", "accepting")
        await takes(addresses[0], 0, 20)
        await takes(addresses[1], 20, 20)
        await has_rows(url, 40)
        shown = await recipe.done(f"{login}ingest stream show")
        leader = re.search(r"3 copies, leader (nats[123])", shown)
        assert leader, shown
        os.kill(servers[leader[1]].process.pid, signal.SIGKILL)
        await takes(addresses[0], 40, 20)
        await takes(addresses[1], 60, 20)
        await has_rows(url, 80)
        assert all(each.process.returncode is None for each in shells)
