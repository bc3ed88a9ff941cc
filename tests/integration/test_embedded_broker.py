"""The embedded broker with the real nats-server: private, durable, and it ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from http.client import HTTPConnection
from pathlib import Path

import pytest
from nats.aio.client import Client

from ingest.model.errors import BrokerAway, StartError
from ingest.roles import embedded_broker as launcher
from ingest.roles.embedded_broker import EmbeddedBroker, find_program, running_broker
from ingest.roles.nats import session
from ingest.roles.nats.connection import connected
from ingest.roles.nats.protocol import ROLES, STREAM, SUBJECT, WRITER, Address, inbox_of
from ingest.roles.nats.watch import ask
from ingest.roles.supervisor import child
from tests.support.brokers import (
    embedded,
    ended,
    hit,
    is_up,
    joined,
    messages,
    put,
    start_parent,
    until,
)


async def _login(port: int, user: str, password: str) -> None:
    """Log in, as nobody if `user` is empty."""
    address = Address((f"nats://127.0.0.1:{port}",), user, password)
    async with connected(address, "admin"):
        pass


def _listening(pid: int) -> list[str]:
    """Return the local addresses at which a process listens, as the kernel's table has them."""
    inodes = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(each).removeprefix("socket:[").rstrip("]"))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[9] in inodes and row[3] == "0A"]


async def test_broker_is_private_and_syncs_each_message(tmp_path: Path) -> None:
    """It listens on the loopback only; only its owner can read its files; sync is `always`."""
    folder = tmp_path / "a b" / "ü'%$\""
    async with embedded(folder) as server:
        assert server.pid is not None
        assert folder.stat().st_mode & 0o777 == 0o700
        for name in ("server.conf", "server.json", "lock"):
            assert (folder / name).stat().st_mode & 0o777 == 0o600, name
        at = server.published.endpoints
        config = ask(at.monitor_url, "/varz")["jetstream"]["config"]
        assert config["sync_always"] is True
        assert config["store_dir"].startswith(str(folder))
        found = _listening(server.pid)
        assert {int(each.split(":")[1], 16) for each in found} == {at.port, at.monitor_port}
        assert {each.split(":")[0] for each in found} == {"0100007F"}
        assert str(folder / "server.conf") in Path(f"/proc/{server.pid}/cmdline").read_text()
        words = Path(f"/proc/{server.pid}/cmdline").read_text()
        assert not [each for each in at.passwords.values() if each in words]
    assert server.pid is None
    assert not (folder / "server.json").exists()


async def test_nobody_gets_in_without_a_password(tmp_path: Path) -> None:
    """No anonymous user, no wrong password, no role's password for another; no open monitor."""
    async with embedded(tmp_path) as server:
        at = server.published.endpoints
        writers = at.passwords["writer"]
        for user, password in (("", ""), ("admin", "x"), ("admin", writers)):
            with pytest.raises(BrokerAway, match="password is wrong"):
                await _login(at.port, user, password)
        assert len(set(at.passwords.values())) == len(ROLES)
        for path in ("/", "/varz", "/jsz", "/connz", "/debug/vars", "/healthz"):
            monitor = HTTPConnection("127.0.0.1", at.monitor_port, timeout=5)
            monitor.request("GET", path)
            assert monitor.getresponse().status == 404, path
            monitor.close()


FORBIDDEN = {
    "gateway": (
        f"$JS.API.STREAM.PURGE.{STREAM}",
        f"$JS.API.STREAM.DELETE.{STREAM}",
        f"$JS.API.STREAM.MSG.GET.{STREAM}",
        f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{WRITER}",
        f"$JS.API.CONSUMER.CREATE.{STREAM}.x",
        f"$JS.ACK.{STREAM}.{WRITER}.1.1.1.1.1",
    ),
    "writer": (
        SUBJECT,
        f"$JS.API.STREAM.DELETE.{STREAM}",
        f"$JS.API.STREAM.UPDATE.{STREAM}",
        f"$JS.API.CONSUMER.DELETE.{STREAM}.{WRITER}",
    ),
    "forward": (
        SUBJECT,
        f"$JS.API.STREAM.PURGE.{STREAM}",
        f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{WRITER}",
        f"$JS.ACK.{STREAM}.{WRITER}.1.1.1.1.1",
    ),
    "admin": (SUBJECT, f"$JS.ACK.{STREAM}.{WRITER}.1.1.1.1.1"),
}


@pytest.mark.parametrize("role", ROLES)
async def test_role_may_do_its_work_and_nothing_else(tmp_path: Path, role: str) -> None:
    """What a role does not need is refused by the server, also to hear what others are sent."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    async with embedded(tmp_path) as server:
        address = server.published.address(role)
        client = Client()
        await client.connect(
            address.servers[0], user=role, password=address.password, error_cb=note
        )
        for subject in FORBIDDEN[role]:
            await client.publish(subject, b"{}", reply=f"{inbox_of(role, 'x')}.1")
        others = [f"_INBOX.{each}.>" for each in ROLES if each != role]
        for subject in (*others, "ingest.>", "$JS.>", ">", "_INBOX.>"):
            await client.subscribe(subject)
        await client.subscribe(f"{inbox_of(role, 'y')}.*")
        await client.flush()
        expected = len(FORBIDDEN[role]) + len(others) + 4
        await until(lambda: len(refused) >= expected)
        assert len(refused) == expected, refused
        assert all("permissions violation" in each for each in refused)
        await client.close()
        async with joined(server, "admin") as admin:
            assert await messages(admin) == 0


async def test_messages_are_there_after_a_stop_and_the_passwords_are_new(tmp_path: Path) -> None:
    """A restart keeps the stream; an old password is worth nothing."""
    async with embedded(tmp_path) as server:
        old = server.published.endpoints
        async with joined(server, "gateway") as gateway:
            await put(gateway, b"one", b"two")
    async with embedded(tmp_path, wanted=None) as server, joined(server, "admin") as admin:
        assert await messages(admin) == 2
        with pytest.raises(BrokerAway, match="password is wrong"):
            await _login(server.published.endpoints.port, "admin", old.passwords["admin"])


async def test_frozen_server_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer, although it runs. Clients come back, and all messages are there."""
    monkeypatch.setattr(session, "PONG_S_MAX", 0.5)
    monkeypatch.setattr(launcher, "LOOK_S", 0.05)
    monkeypatch.setattr(launcher, "ANSWER_S_MAX", 0.2)
    async with embedded(tmp_path) as server, joined(server, "gateway") as gateway:
        await put(gateway, b"x")
        frozen = server.pid
        assert frozen is not None
        await asyncio.sleep(0.5)
        assert server.pid == frozen, "a server that answers is left alone"
        os.kill(frozen, signal.SIGSTOP)
        await until(lambda: server.pid not in (None, frozen))
        await is_up(gateway)
        await put(gateway, b"x")
        async with joined(server, "admin") as admin:
            assert await messages(admin) == 2


async def test_port_that_somebody_has_taken_is_left_to_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restarted server takes another port, and our connections find it."""
    monkeypatch.setattr(session, "CONNECT_S_MAX", 0.3)
    async with embedded(tmp_path) as server, joined(server, "gateway") as gateway:
        port = server.published.endpoints.port
        hit(server.pid, signal.SIGSTOP)  # so that it is not restarted meanwhile
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            hit(server.pid, signal.SIGKILL)
            await until(lambda: server.pid is None)
            thief.bind(("127.0.0.1", port))
            thief.listen()
            await until(lambda: server.published.endpoints.port != port)
            await is_up(gateway, False)
            await is_up(gateway)
            await put(gateway, b"x")
        assert running_broker(tmp_path) == server.published


async def test_broker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """No server is left, and the next one has the messages."""
    parent, pid = await asyncio.to_thread(start_parent, tmp_path)
    parent.kill()
    parent.communicate()
    await ended(pid)
    async with embedded(tmp_path):
        pass


async def test_server_that_was_left_is_ended_before_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers never write to one store, even if the old one is frozen."""
    monkeypatch.setattr(launcher, "LEFT_S_MAX", 0.2)
    parent, pid = await asyncio.to_thread(start_parent, tmp_path)
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    holders = child.holders
    monkeypatch.setattr(  # our parent's child: it has ended since it was found
        child, "holders", lambda path: [parent.pid, *holders(path)]
    )
    async with embedded(tmp_path) as server:
        assert server.pid != pid
        await ended(pid)


async def test_store_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second launcher names the process that runs the broker, and changes nothing."""
    monkeypatch.setattr(launcher, "LOCK_S_MAX", 0.1)
    async with embedded(tmp_path) as server:
        with pytest.raises(StartError, match=f"process {os.getpid()} runs the broker"):
            await EmbeddedBroker(tmp_path, find_program()).start()
        assert running_broker(tmp_path) == server.published
    assert running_broker(tmp_path) is None
