"""Runs what deploy/ starts for gateways, writers and brokers: containers' commands, units.

Each as a local process: names of hosts and paths of secrets are replaced, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from ingest.embedded.broker_program import find_program
from ingest.embedded.server import EmbeddedPostgres
from tests.support.brokers import until
from tests.support.deployment import (
    DEPLOY,
    compose_services,
    environment_of,
    image_environment,
    manifest,
)
from tests.support.tcp_ports import free_port
from tests.support.webhook import Webhook
from tests.system.manager import Manager
from tests.system.roles import Running, has_rows, running, takes
from tests.system.service import REPOSITORY, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NATS_PORTS = (4222, 6222, 8222)
INGEST = (sys.executable, "-P", "-m", "ingest")


class Place:
    """Where the hosts and the files of deploy/ are in this test."""

    def __init__(self, folder: Path, *hosts: str) -> None:
        self.folder = folder
        self.ending = AsyncExitStack()
        self._names = {
            f"{host}:{port}": f"127.0.0.1:{free_port()}" for host in hosts for port in NATS_PORTS
        }

    def add(self, name: str, here: str) -> None:
        """Replace a name, too."""
        self._names[name] = here

    def here(self, text: str) -> str:
        """Return a text with the names of this test."""
        for name, here in self._names.items():
            text = text.replace(name, here)
        return text

    async def nats(
        self, config: str, host: str, passwords: str, users: str = "roles.conf", **env: str
    ) -> Running:
        """Start a nats-server with a configuration of deploy/nats."""
        home = self.folder / host
        home.mkdir()
        text = self.here((DEPLOY / "nats" / config).read_text())
        for port in NATS_PORTS:
            text = text.replace(f"0.0.0.0:{port}", self._names[f"{host}:{port}"])
        text, count = re.subn(r'store_dir: ".*"', f'store_dir: "{home / "store"}"', text)
        assert count == 1
        (home / "nats.conf").write_text(text.replace("roles.conf", users))
        shutil.copy(DEPLOY / "nats" / users, home)
        (home / "passwords.conf").write_text(passwords)
        words = (str(find_program()), "--config", str(home / "nats.conf"))
        log = self.folder / f"{host}.log"
        return await self.ending.enter_async_context(running(log, *words, env=env))

    async def role(self, name: str, words: list[str], env: Mapping[str, str]) -> Running:
        """Start a role with the environment of its image or unit."""
        listen = env.get("INGEST_LISTEN", "127.0.0.1:0")  # beyond the loopback it asks who may post
        given = {each: self.here(value) for each, value in env.items()} | {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "INGEST_LISTEN": f"{listen.rpartition(':')[0]}:0",
            "INGEST_ADMIN_LISTEN": "127.0.0.1:0",
            "INGEST_STREAM_BYTES_MAX": "64MiB",
        }
        given.setdefault("INGEST_STATE_DIR", str(self.folder / "state"))
        here = [self.here(each) for each in words]
        log = self.folder / f"{name}.log"
        return await self.ending.enter_async_context(running(log, *INGEST, *here, env=given))

    async def done(self, process: Running) -> None:
        """Wait for the end of a command."""
        async with asyncio.timeout(60):
            assert await process.process.wait() == 0, process.output()


@asynccontextmanager
async def table(folder: Path) -> AsyncIterator[str]:
    """Give the URL of a database that has the table."""
    server = EmbeddedPostgres(folder / "postgres")
    url = await server.start()
    try:
        done = await run_command("ingest", "schema", "apply", "--database-url", url)
        assert done.code == 0, done.stderr
        yield url
    finally:
        await server.stop()


async def check(gateway: Running, writer: Running, forward: Running, url: str, to: Webhook) -> None:
    """Post, and find all in the table and at the target; each stops in order, and loses nothing."""
    await takes(await gateway.address(), 0, 20)
    await has_rows(url, 20)
    await until(lambda: len(to.items) == 20, 20)
    for each in (gateway, writer):
        assert " lost=0" in await each.stop()
    assert "sent=20" in await forward.stop()


def made_secrets(folder: Path, broker: str = "nats:4222") -> Path:
    """Run make-secrets; return its folder."""
    script = shutil.copy(DEPLOY / "make-secrets", folder)
    env = {**os.environ, "BROKER": broker}
    subprocess.run([script], check=True, capture_output=True, env=env)
    for each in (folder / "secrets").iterdir():
        each.chmod(0o600)
    return folder / "secrets"


async def test_containers_of_compose_work_together(open_tmp_path: Path) -> None:
    """The nats-server, the job of the stream and each role, with the secrets of make-secrets."""
    secrets = made_secrets(open_tmp_path)
    services = compose_services("compose.roles.yaml")
    place = Place(open_tmp_path, "nats")
    async with table(open_tmp_path) as url, Webhook() as target, place.ending:
        for each in secrets.iterdir():
            each.write_text(place.here(each.read_text()))
        (secrets / "writer_url").write_text(url)
        (secrets / "forward_url").write_text(target.url)
        place.add("/run/secrets", str(secrets))
        place.add("${FORWARDS:-}", "billing")
        place.add("${FORWARDS:-none}", "billing")
        place.add("/var/lib/iot-ingest", str(open_tmp_path / "state"))

        async def started(name: str) -> Running:
            env = {**image_environment(), **services[name]["environment"]}
            return await place.role(name, services[name]["command"], env)

        passwords = (secrets / "broker_passwords").read_text()
        nats = await place.nats("single.conf", "nats", passwords)
        await nats.line_with("Server is ready")
        await place.done(await started("stream"))
        gateway, writer = await started("gateway"), await started("writer")
        assert not (open_tmp_path / "state").exists(), "they need no disk"
        await check(gateway, writer, await started("forward"), url, target)


async def test_pods_of_kubernetes_work_together(open_tmp_path: Path) -> None:
    """Three nats-servers, the Job, gateway and writer, with the secrets of make-secrets."""
    hosts = [f"nats-{number}.nats" for number in range(3)]
    place = Place(open_tmp_path, *hosts)
    made = made_secrets(open_tmp_path, ",".join(f"{host}:4222" for host in hosts))
    broker = {
        f"iot-ingest-broker-{role}": {"broker_url": (made / f"broker_{role}_url").read_text()}
        for role in ("gateway", "writer", "admin")
    }
    async with table(open_tmp_path) as url, place.ending:
        secrets = {**broker, "iot-ingest-database": {"database_url": url}}

        async def started(kind: str, name: str) -> Running:
            pod = manifest(kind, name)["spec"]["template"]
            (container,) = pod["spec"]["containers"]
            mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
            own = open_tmp_path / f"secrets-of-{name}"
            for volume in pod["spec"]["volumes"]:
                if "secret" in volume:
                    folder = own / volume["name"]
                    folder.mkdir(parents=True)
                    for key, text in secrets[volume["secret"]["secretName"]].items():
                        (folder / key).write_text(place.here(text))
                    place.add(mounts[volume["name"]], str(folder))
            env = {**image_environment(), **environment_of(pod)}
            env["INGEST_STATE_DIR"] = str(open_tmp_path / "state" / name)
            return await place.role(name, container["args"], env)

        passwords = (made / "broker_passwords").read_text()
        servers = [
            await place.nats("kubernetes.conf", host, passwords, POD_NAME=host.partition(".")[0])
            for host in hosts
        ]
        for each in servers:
            await each.has_leader()
        await place.done(await started("Job", "iot-ingest-stream"))
        gateway = await started("Deployment", "iot-ingest-gateway")
        writer = await started("Deployment", "iot-ingest-writer")
        assert not (open_tmp_path / "state").exists(), "they need no disk"
        await takes(await gateway.address(), 0, 20)
        await has_rows(url, 20)
        for each in (gateway, writer):
            assert " lost=0" in await each.stop()


class Unit:
    """A unit of deploy/systemd, started as systemd would. `shared` is what ingest.env has."""

    def __init__(
        self, name: str, credentials: Mapping[str, str], shared: Mapping[str, str] | None = None
    ) -> None:
        template, _, self._instance = name.partition("@")
        mark = "@" if self._instance else ""
        folder = DEPLOY / "systemd"
        text = (folder / f"{template}{mark}.service").read_text()
        text += (folder / "iot-ingest-.service.d" / "common.conf").read_text()
        text = text.replace("%i", self._instance)
        lines = (each.partition("=") for each in text.splitlines() if not each.startswith("#"))
        self._lines = [(key, value) for key, equals, value in lines if equals]
        self.keys = dict(self._lines)
        self._credentials = credentials
        self._shared = shared or {}

    async def start(self, place: Place, manager: Manager) -> Running:
        """Write the credentials, and start the command."""
        name = f"unit-{self.keys['ExecStart'].split()[4]}"
        folder = place.folder / name
        folder.mkdir()
        for each in (value for key, value in self._lines if key == "LoadCredential"):
            file, _, _path = each.partition(":")
            (folder / file).write_text(f"{self._credentials[file]}\n")
        parts = [
            each.replace("%d", str(folder))
            for key, value in self._lines
            if key == "Environment"
            for each in shlex.split(value)
        ]
        env = dict(each.split("=", 1) for each in parts)
        env |= {
            **self._shared,
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": str(int(self.keys["WatchdogSec"]) * 1_000_000),
            "INGEST_DATABASE_UNSAFE": "true",
        }
        words = [each.replace("%d", str(folder)) for each in self.keys["ExecStart"].split()]
        assert words[1:4] == ["-P", "-m", "ingest"]
        return await place.role(name, words[4:], env)


async def test_units_of_roles_report_to_systemd_and_work_together(open_tmp_path: Path) -> None:
    """READY when the ports listen, the state as text, STOPPING; with the credentials of each."""
    secrets = made_secrets(open_tmp_path)
    place = Place(open_tmp_path, "nats")
    async with table(open_tmp_path) as url, Webhook() as target, place.ending:
        login = {
            role: place.here((secrets / f"broker_{role}_url").read_text().strip())
            for role in ("gateway", "writer", "forward", "admin")
        }
        passwords = (secrets / "broker_passwords").read_text()
        nats = await place.nats("single.conf", "nats", passwords)
        await nats.line_with("Server is ready")
        shared = {
            "INGEST_FORWARDS": "billing",
            "INGEST_BROKER_MONITOR_URL": place.here("http://nats:8222"),
        }
        admin = {**shared, "INGEST_BROKER_URL": login["admin"]}
        await place.done(await place.role("stream", ["stream", "apply"], admin))
        processes: list[Running] = []
        for name, credentials, state in (
            ("iot-ingest-gateway@8080", {"broker_url": login["gateway"]}, "accepting"),
            (
                "iot-ingest-writer@8091",
                {"broker_url": login["writer"], "database_url": url},
                "accepting",
            ),
            (
                "iot-ingest-forward@billing",
                {"broker_url": login["forward"], "url": target.url, "secret": "s" * 24},
                "forwarding",
            ),
        ):
            manager = place.ending.enter_context(Manager(str(open_tmp_path / f"n{len(processes)}")))
            processes.append(await Unit(name, credentials, shared).start(place, manager))
            await manager.wait("READY", "1")
            await manager.wait("STATUS", state)
            assert manager.values("WATCHDOG") == ["1"]
            assert manager.values("STOPPING") == []
        await check(processes[0], processes[1], processes[2], url, target)


async def test_unit_of_up_reloads_and_stops_as_systemd_wants(open_tmp_path: Path) -> None:
    """ExecReload replaces its processes, and says when that ends; a post is stored all the time."""
    place = Place(open_tmp_path)
    with Manager(str(open_tmp_path / "notify")) as manager:
        async with table(open_tmp_path) as url, place.ending:
            unit = Unit("iot-ingest-up", {"database_url": url})
            process = await unit.start(place, manager)
            await manager.wait("READY", "1")
            await manager.wait("STATUS", "accepting")
            address = await process.address()
            await takes(address, 0, 5)
            number = re.fullmatch(r"/bin/kill -(\w+) \$MAINPID", unit.keys["ExecReload"])
            assert number
            process.process.send_signal(signal.Signals[f"SIG{number[1]}"])
            await manager.wait("RELOADING", "1")
            async with asyncio.timeout(40):
                while manager.values("READY") != ["1", "1"]:  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.05)
            await takes(address, 5, 5)
            await has_rows(url, 10)
            assert " lost=0" in await process.stop()
            assert manager.values("STOPPING") == ["1"]


async def test_up_uses_a_broker_of_yours_with_its_one_user(open_tmp_path: Path) -> None:
    """up.conf in place of roles.conf: streams, all processes of `up`, and the commands."""
    place = Place(open_tmp_path, "nats")
    async with table(open_tmp_path) as url, place.ending:
        nats = await place.nats("single.conf", "nats", 'UP_PASSWORD: "one"\n', "up.conf")
        await nats.line_with("Server is ready")
        env = {
            "INGEST_BROKER_URL": "nats://up:one@nats:4222",
            "INGEST_BROKER_MONITOR_URL": "http://nats:8222",
            "INGEST_DATABASE_URL": url,
            "INGEST_GATEWAYS": "2",
        }
        await place.done(await place.role("stream", ["stream", "apply"], env))
        up = await place.role("up", ["up"], env)
        await takes(await up.address(), 0, 20)
        await has_rows(url, 20)
        await place.done(await place.role("check", ["stream", "check"], env))
        assert " lost=0" in await up.stop()
