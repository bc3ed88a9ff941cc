"""The commands of docs/grow/scaling.md after its recipe: TLS, upgrade, fewer processes.

With three nats-servers on one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from ingest.embedded.postgres import EmbeddedPostgres
from ingest.roles.embedded_broker import find_program
from tests.support.deployment import DEPLOY, program
from tests.support.documents import DOCUMENTS
from tests.support.receiver import Client, post
from tests.support.tcp_ports import free_port
from tests.system.roles import READING, Running, has_rows, running, takes
from tests.system.test_scaling import DATABASE, HOSTS, Recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

GUIDE = DOCUMENTS["docs/grow/scaling.md"]
ADMIN = "nats://admin:choose-a-fourth@nats1:4222,nats2:4222,nats3:4222"
WRITER = ADMIN.replace("admin:choose-a-fourth", "writer:choose-another")
GATEWAY = ADMIN.replace("admin:choose-a-fourth", "gateway:choose-one")
BEGIN_US = 1_700_000_000_000_000
DELETE = "delete from readings where ts >= timestamptz 'epoch' + $1 * interval '1 microsecond'"


def command(part: str) -> str:
    """Return the one block of commands that has a text."""
    whole = [text for _, text in re.findall(r"^ *```(sh)\n(.*?)^ *```$", GUIDE, re.M | re.S)]
    (found,) = (each for each in whole if part in each)
    return re.sub(r"^ {3}(?=\S)", "", found, flags=re.M)


class Machines(Recipe):
    """The servers and roles of one test. `login` is put before each command."""

    def __init__(self, folder: Path, database: str, ending: AsyncExitStack) -> None:
        super().__init__(folder, database)
        self.servers: dict[str, Running] = {}
        self.homes: dict[str, Path] = {}
        self._ending = ending
        self._count = 0

    async def serve(self, host: str) -> None:
        """Start a nats-server in the folder of its files."""
        home = self.homes[host]
        self._count += 1
        log = self.folder / f"{host}-{self._count}.log"
        words = (str(find_program()), "-c", "nats.conf")
        self.servers[host] = await self._ending.enter_async_context(
            running(log, *words, env={}, folder=home)
        )

    async def done(self, script: str) -> str:
        """Run commands to their end, also in a loop; return their output."""
        no_exec = f'ingest() {{ "{sys.executable}" -P -m ingest "$@"; }}\n'
        return await super().done(no_exec + script)

    async def role(self, script: str) -> Running:
        """Start a role by its commands."""
        self._count += 1
        name = f"role-{self._count}"
        return await self._ending.enter_async_context(self.shell(name, script))

    async def writer(self, login: str = WRITER, more: str = "") -> Running:
        """Start a writer, and wait until its page is there."""
        writer = await self.role(
            f"{more}export INGEST_BROKER_URL={login}\ningest writer --database-url {DATABASE}\n"
        )
        await writer.address()
        return writer

    async def gateway(self, login: str = GATEWAY, more: str = "") -> Running:
        """Start a gateway."""
        return await self.role(
            f"{more}export INGEST_BROKER_URL={login}\n"
            "ingest gateway --listen 0.0.0.0:8080 --access open\n"
        )


@asynccontextmanager
async def machines(folder: Path) -> AsyncIterator[tuple[Machines, str]]:
    """Give the files of three servers, which are not started, and the URL of a table."""
    server = EmbeddedPostgres(folder / "postgres")
    await server.start()
    url = server.url
    async with AsyncExitStack() as ending:
        ending.push_async_callback(server.stop)
        place = Machines(folder, url, ending)
        for host in HOSTS:
            place.homes[host] = place.config(host).parent
        await place.done(f"ingest schema apply --database-url {DATABASE}")
        yield place, url


async def cluster_is_there(place: Machines, login: str = "") -> None:
    """Start the servers, and make the streams once they have a leader."""
    for host in HOSTS:
        await place.serve(host)
    for each in place.servers.values():
        await each.has_leader()
    await place.done(f"export INGEST_BROKER_URL={ADMIN}\n{login}ingest stream apply")


# TLS


def run(script: str, folder: Path) -> None:
    """Run commands in a folder."""
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)


async def test_roles_and_servers_talk_by_tls(open_tmp_path: Path) -> None:
    """Certificates, servers, roles, by the guide; without the certificate nobody gets in."""
    async with machines(open_tmp_path) as (place, url):
        make = command("openssl req").replace("DNS:$host", "IP:127.0.0.1")
        run(make, open_tmp_path)
        for host, home in place.homes.items():
            shutil.copy(open_tmp_path / "ca.pem", home)
            shutil.copy(open_tmp_path / f"{host}.pem", home / "server.pem")
            shutil.copy(open_tmp_path / f"{host}.key", home / "server.key")
            shutil.copy(DEPLOY / "nats" / "tls.conf", home)
            run(command("sed -i -e '/^cluster"), home)
            assert (home / "nats.conf").read_text().count('include "tls.conf"') == 2
        start = command("INGEST_BROKER_CA_FILE")
        secure, _, _ = start.partition("export INGEST_BROKER_URL")
        start += "ingest gateway --listen 0.0.0.0:8080 --access open\n"
        tls = secure + f"export INGEST_BROKER_URL={ADMIN.replace('nats://', 'tls://')}\n"
        await cluster_is_there(place, tls)
        assert "as they must be" in await place.done(f"{tls}ingest stream check")
        await place.writer(WRITER.replace("nats://", "tls://"), secure)
        gateway = await place.role(start)
        await takes(await gateway.address(), 0, 20)
        await has_rows(url, 20)
        for login, before in ((ADMIN, ""), (ADMIN.replace("nats://", "tls://"), "")):
            script = f"{before}export INGEST_BROKER_URL={login}\ningest stream check"
            async with place.shell("refused", script) as refused:
                assert await refused.process.wait() == 2
                assert "certificate" in refused.output()
        for host, home in place.homes.items():  # another password, while all runs
            text = (home / "passwords.conf").read_text()
            (home / "passwords.conf").write_text(text.replace("choose-a-fourth", "a-fifth"))
            pid = place.servers[host].process.pid
            run(f"{shlex.quote(str(find_program()))} --signal reload={pid}", home)
        for each in place.servers.values():
            await each.line_with("Reloaded server configuration")
        assert "as they must be" in await place.done(
            tls.replace("choose-a-fourth", "a-fifth") + "ingest stream check"
        )
        async with place.shell("old", f"{tls}ingest stream check") as refused:
            assert await refused.process.wait() == 2
            assert "password is wrong" in refused.output()


# Upgrade and fewer


class Balancer:
    """Posts all the time, to a gateway that takes connections; each post again until its 202."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.kept = 0
        self.refused: list[bytes] = []
        self._stopping = False

    @asynccontextmanager
    async def posting(self) -> AsyncIterator[None]:
        """Post while the block runs."""
        task = asyncio.create_task(self._post())
        try:
            yield
        finally:
            self._stopping = True
            await task

    async def _post(self) -> None:
        turn = 0
        while not self._stopping:
            turn += 1
            address = self.addresses[turn % len(self.addresses)]
            with contextlib.suppress(OSError, EOFError):  # that one is away: the next one gets it
                await self._one(address)

    async def _one(self, address: str) -> None:
        client = await Client.connect(address)
        try:
            await client.send(post(READING % (BEGIN_US + self.kept)))
            reply = await client.reply(20)
            if reply.status == 202:
                self.kept += 1
            else:
                self.refused.append(reply.body)
        finally:
            await client.close()

    async def goes_on(self) -> None:
        """Wait until some more were taken."""
        async with asyncio.timeout(30):
            before = self.kept
            while self.kept < before + 10:  # noqa: ASYNC110  the other task
                await asyncio.sleep(0.02)


async def upgrade(place: Machines, balancer: Balancer) -> None:
    """Restart all, in the order of the guide; nothing is refused while servers and writers go."""
    check = command("until ingest stream check")
    for host in HOSTS:
        await place.servers[host].stop()
        await balancer.goes_on()
        await place.serve(host)
        await place.done(f"export INGEST_BROKER_URL={ADMIN}\n{check}")
        await balancer.goes_on()
    assert balancer.refused == []


async def replaced(place: Machines, balancer: Balancer, gateways: list[Running]) -> None:
    """Replace the gateways one after the other; the balancer sends to the others meanwhile."""
    ready = command("until curl")
    for number, old in enumerate(list(gateways)):
        balancer.addresses.pop(0)
        assert " held=0 lost=0" in await old.stop()
        gateways[number] = await place.gateway()
        line = await gateways[number].line_with("probes and metrics")
        (port,) = re.findall(r"http://0\.0\.0\.0:(\d+)/", line)
        await place.done(ready.replace(":8080", f":{port}"))
        balancer.addresses.append(f"127.0.0.1:{port}")
        await balancer.goes_on()


async def test_upgrade_and_fewer_processes_lose_and_refuse_nothing(open_tmp_path: Path) -> None:
    """Servers, writers, gateways are replaced under load; then one of each, and one copy, is left.

    At last all is moved to one server, and a part of the table is written again from its stream.
    """
    for needed in ("jq", "curl"):
        program(needed, needed)
    balancer = Balancer()
    async with machines(open_tmp_path) as (place, url):
        await cluster_is_there(place)
        writers = [await place.writer() for _ in range(2)]
        gateways = [await place.gateway() for _ in range(2)]
        balancer.addresses = [await each.address() for each in gateways]
        await takes(balancer.addresses[0], 0, 1)  # it knows the stream by now
        await takes(balancer.addresses[1], 0, 1)
        async with balancer.posting():
            await balancer.goes_on()
            await upgrade(place, balancer)
            for number in range(2):
                assert " lost=0" in await writers[number].stop()
                writers[number] = await place.writer()
            await replaced(place, balancer, gateways)
            assert balancer.refused == []
            balancer.addresses.pop(0)  # fewer: one gateway and one writer are left
            assert " held=0 lost=0" in await gateways.pop(0).stop()
            assert " lost=0" in await writers.pop(0).stop()
            await balancer.goes_on()
        await has_rows(url, balancer.kept)

        # One copy instead of three.
        for each in (*gateways, *writers):
            assert " lost=0" in await each.stop()
        one = "export INGEST_STREAM_REPLICAS=1\n"
        await place.done(f"{one}export INGEST_BROKER_URL={ADMIN}\ningest stream apply")
        old_writer = await place.writer(more=one)
        gateway = await place.gateway(more=one)
        await takes(await gateway.address(), balancer.kept, 20)
        await moved(place, gateway, old_writer, url, balancer.kept + 20)


async def moved(
    place: Machines, gateway: Running, old_writer: Running, url: str, rows: int
) -> None:
    """Follow the steps to other servers; then rewind the stream of the new one."""
    port, monitor = free_port(), free_port()
    home = place.homes["new"] = place.folder / "new"
    shutil.copytree(place.homes["nats1"], home, ignore=shutil.ignore_patterns("store"))
    text = (DEPLOY / "nats" / "single.conf").read_text()
    for old, new in (("0.0.0.0:4222", port), ("0.0.0.0:8222", monitor)):
        text = text.replace(old, f"127.0.0.1:{new}")
    (home / "nats.conf").write_text(text.replace("/var/lib/iot-ingest/nats", str(home / "store")))
    await place.serve("new")
    await place.servers["new"].line_with("Server is ready")
    more = (
        "export INGEST_STREAM_REPLICAS=1 INGEST_STREAM_KEEP_S=3600 "
        f"INGEST_BROKER_MONITOR_URL=http://127.0.0.1:{monitor}\n"
    )
    there = {
        each: f"{login.partition('@')[0]}@127.0.0.1:{port}"
        for each, login in (("admin", ADMIN), ("writer", WRITER), ("gateway", GATEWAY))
    }
    as_admin = f"{more}export INGEST_BROKER_URL={there['admin']}\n"
    await place.done(f"{as_admin}ingest stream apply")
    writer = await place.writer(there["writer"], more)
    new_gateway = await place.gateway(there["gateway"], more)
    assert " held=0 lost=0" in await gateway.stop()
    await takes(await new_gateway.address(), rows, 20)
    empty = command("jq --exit-status")
    await place.done(f"export INGEST_BROKER_URL={ADMIN} INGEST_STREAM_REPLICAS=1\n{empty}")
    assert " lost=0" in await old_writer.stop()
    for host in HOSTS:
        await place.servers[host].stop()
    await has_rows(url, rows + 20)

    assert " lost=0" in await writer.stop()  # as for a database that is restored
    connection = await asyncpg.connect(url)
    try:
        gone = await connection.execute(DELETE, BEGIN_US + rows + 5)
        assert gone == "DELETE 15"
    finally:
        await connection.close()
    rewind = command("ingest stream rewind")
    async with asyncio.timeout(20):
        while True:  # the broker knows after some seconds that no writer is left
            async with place.shell("rewind", as_admin + rewind) as process:
                if await process.process.wait() == 0:
                    break
                assert "Stop all writers" in process.output()
            await asyncio.sleep(0.5)
    await place.writer(there["writer"], more)
    await has_rows(url, rows + 20)
