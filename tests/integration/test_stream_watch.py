"""The watch of the stream, with the real nats-server: what differs is seen soon, and named."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ingest.model.errors import BrokerAway
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import streams, watch
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, WRITER
from ingest.roles.nats.publishing import Publisher
from ingest.roles.nats.stream_state import Removal, StreamState
from ingest.roles.nats.streams import WantedStream, wanted_readings
from ingest.roles.nats.watch import StreamWatch
from tests.faults import earlier_server
from tests.faults.machine import NotHere
from tests.support.brokers import (
    MIB,
    WANTED,
    api,
    embedded,
    hit,
    is_up,
    plain_server,
    until,
)
from tests.support.stream_writers import new_mark
from tests.support.tcp_ports import free_port

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it look more often."""
    for name, seconds in (("EVERY_S", 0.05), ("AGAIN_S", 0.05), ("MONITOR_S", 0.1)):
        monkeypatch.setattr(watch, name, seconds)


class Gateway:
    """A gateway's connection, with its publisher and its watch."""

    def __init__(self, server: EmbeddedBroker, wanted: WantedStream) -> None:
        self.connection = BrokerConnection(lambda: server.published.address("gateway"), "gateway")
        self.publisher = Publisher(self.connection, subject=SUBJECT, stream=STREAM, wait_s_max=60)
        self.unanswered_s = 0.0
        self.watch = StreamWatch(
            self.connection,
            wanted,
            monitors=lambda: (server.published.endpoints.monitor_url,),
            unsafe=False,
            unanswered_s=lambda: self.unanswered_s,
            published=lambda: self.publisher.published,
            mark=new_mark(),
        )

    @property
    def state(self) -> StreamState:
        """What the watch has seen last."""
        assert self.watch.state is not None
        return self.watch.state

    def says(self, word: str) -> bool:
        """Whether a fault has this word."""
        return any(word in str(each) for each in self.watch.faults)


@asynccontextmanager
async def gateway(server: EmbeddedBroker, wanted: WantedStream = WANTED) -> AsyncIterator[Gateway]:
    """Run a gateway's watch until it has looked."""
    made = Gateway(server, wanted)
    stopping = asyncio.Event()
    running = [asyncio.create_task(each.run(stopping)) for each in (made.connection, made.watch)]
    try:
        await until(lambda: made.watch.checked)
        yield made
    finally:
        stopping.set()
        await asyncio.gather(*running)


async def test_stream_as_it_must_be_has_no_faults(own_nats: EmbeddedBroker) -> None:
    """A gateway may see that. The numbers are there for the metrics."""
    async with gateway(own_nats) as it:
        await it.publisher.publish("1", b"x" * 100)
        await until(lambda: it.state.messages == 1)
        assert (it.watch.faults, it.watch.degraded, it.watch.removed) == ((), (), 0)
        assert it.watch.away_since_s is None
        state = it.state
        assert (state.first, state.last, state.waiting, state.pending, state.bytes_max) == (
            *(1, 1, 1, 0),
            64 * MIB,
        )
        assert it.publisher.published.to == 1
        assert it.watch.disk_failed == ""


async def test_what_differs_later_is_a_fault_until_it_is_corrected(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """A setting of the stream, and of its consumer."""
    async with gateway(own_nats) as it:
        config = (await api(admin, f"STREAM.INFO.{STREAM}"))["config"]
        changed = config | {"discard": "old", "max_age": 10**12}
        assert "error" not in await api(admin, f"STREAM.UPDATE.{STREAM}", changed)
        await until(lambda: it.says("discard is old") and it.says("max_age"))
        await api(admin, f"STREAM.UPDATE.{STREAM}", config)
        await until(lambda: not it.watch.faults)
        await api(admin, f"CONSUMER.DELETE.{STREAM}.{WRITER}")
        await until(lambda: it.says("consumer writer of INGEST: is missing"))
        await streams.apply(admin, WANTED)
        await until(lambda: not it.watch.faults)
        assert it.watch.removed == 0


async def test_messages_are_given_again_until_that_succeeds(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else would give them: the consumer has passed their places."""
    monkeypatch.setattr(watch, "GIVE_AGAIN_S", 0.1)
    tries: list[int] = []
    losses = [Removal("the stream ends early", 1, ends_early=True)]

    async def fails_first(_: BrokerConnection, first: int) -> None:
        tries.append(first)
        if len(tries) == 1:
            raise BrokerAway("it chooses a leader")

    monkeypatch.setattr(streams, "give_again", fails_first)
    async with gateway(own_nats) as it:
        see = it.watch._removals.see
        monkeypatch.setattr(
            it.watch._removals,
            "see",
            lambda *of, **more: losses.pop() if losses else see(*of, **more),
        )
        await until(lambda: len(tries) == 2)
        await asyncio.sleep(0.3)
        assert tries == [1, 1]
        assert it.watch.removed == 1


async def test_frozen_broker_is_away(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the connection still seems to be there."""
    monkeypatch.setattr(streams, "API_S_MAX", 0.2)
    async with gateway(own_nats) as it:
        assert own_nats.pid is not None
        os.kill(own_nats.pid, signal.SIGSTOP)
        try:
            await until(lambda: it.watch.away_since_s is not None)
        finally:
            os.kill(own_nats.pid, signal.SIGCONT)
        await until(lambda: it.watch.away_since_s is None)


async def test_server_that_does_not_sync_is_a_fault_unless_that_is_accepted(
    tmp_path: Path,
) -> None:
    """Without a monitor port it is one too. A port that is silent later is none."""
    port, monitor_port = free_port(), free_port()
    config = f'http: "127.0.0.1:{monitor_port}"\njetstream {{ store_dir: "{tmp_path}/s" }}\n'
    async with plain_server(config, tmp_path, port) as address:
        connection = BrokerConnection(lambda: address, "admin")
        urls = [f"http://127.0.0.1:{monitor_port}"]
        watches = {
            unsafe: StreamWatch(
                connection,
                WANTED,
                monitors=lambda: tuple(urls),
                unsafe=unsafe,
                mark=new_mark(),
            )
            for unsafe in (False, True)
        }
        stopping = asyncio.Event()
        parts = [connection.run(stopping), *(each.run(stopping) for each in watches.values())]
        running = [asyncio.create_task(each) for each in parts]
        await is_up(connection)
        await streams.apply(connection, WANTED)

        def shows(word: str) -> bool:
            return any(word in str(each) for each in watches[False].faults)

        await until(lambda: shows("does not sync") and watches[True].checked)
        await until(lambda: watches[True].faults == ())
        urls.clear()
        await until(lambda: shows("is not known"))
        assert watches[True].faults == ()
        stopping.set()
        await asyncio.gather(*running)


async def test_server_that_does_not_sync_what_a_purge_rewrites_is_a_fault(tmp_path: Path) -> None:
    """However it is configured."""
    port, monitor_port = free_port(), free_port()
    config = (
        f'http: "127.0.0.1:{monitor_port}"\n'
        f'jetstream {{ store_dir: "{tmp_path}/s", sync_interval: always }}\n'
    )
    try:
        program = await asyncio.to_thread(earlier_server.program)
    except NotHere as error:
        pytest.skip(str(error))
    async with plain_server(config, tmp_path, port, program=program):
        looks = [
            await asyncio.to_thread(watch.monitor_faults, (f"http://127.0.0.1:{monitor_port}",))
        ]
    async with plain_server(config, tmp_path, port):
        looks += [
            await asyncio.to_thread(watch.monitor_faults, (f"http://127.0.0.1:{monitor_port}",))
        ]
    (fault,), fine = looks
    assert "install 2.15.1 or later" in str(fault)
    assert earlier_server.version() in str(fault)
    assert fine == []


def test_silent_monitor_port_keeps_what_it_has_said() -> None:
    """A server that restarts is no reason to refuse posts."""
    silent = watch.look_at(f"http://127.0.0.1:{free_port()}")
    assert silent.unsafe is None
    assert [each.fault.partition(":")[0] for each in silent.degraded()] == [
        "its monitor port does not answer"
    ]
    safe = watch.ServerLook("x", unsafe="")
    assert silent.after(safe).unsafe == ""
    assert silent.after(None).unsafe is None
    assert safe.after(watch.ServerLook("x", unsafe="no")).unsafe == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("cannot mount a small disk: run the tests as root")
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_full_disk_of_the_server_is_named_until_it_is_restarted(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T3: it answers no message any more, and says why on its monitor port only."""
    monkeypatch.setattr(watch, "UNANSWERED_S", 0.2)
    wanted = wanted_readings(replicas=1, bytes_max=12 * MIB)
    async with (
        embedded(small_disk / "broker", wanted=wanted) as server,
        gateway(server, wanted) as it,
    ):
        (small_disk / "other").write_bytes(bytes(10 * MIB))
        results = [it.publisher.publish(str(n), bytes(MIB)) for n in range(9)]
        it.unanswered_s = 1.0
        await until(lambda: it.watch.disk_failed)
        assert "no space left" in it.watch.disk_failed
        (fault,) = it.watch.degraded
        assert "restart nats-server" in str(fault)
        (small_disk / "other").unlink()
        await asyncio.sleep(0.3)
        assert it.watch.disk_failed, "space alone does not help"
        hit(server.pid, signal.SIGKILL)
        await asyncio.gather(*results)
        await until(lambda: not it.watch.degraded)
        assert (it.watch.disk_failed, it.watch.removed) == ("", 0)
