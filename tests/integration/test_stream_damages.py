"""Damage to the files of a stream, with the real nats-server: each is told, or does no harm.

Each message has one body, so what was acknowledged can be compared with what writers got and with
what was told. Of one copy, what is lost must be told; of three, nothing may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ingest.embedded import server_process as embedded_running
from ingest.model.errors import BrokerAway, BrokerRefused, StartError
from ingest.roles.embedded_broker import EmbeddedBroker, find_program
from ingest.roles.nats import audit, purge, streams, watch
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, WRITER, Address
from ingest.roles.nats.publishing import Publisher
from ingest.roles.nats.pulling import Pull
from ingest.roles.nats.streams import WantedStream, wanted_readings
from ingest.roles.nats.watch import StreamWatch
from ingest.system.state_folder import MarkFile
from tests.support.brokers import LOCAL, Cluster, api, hit, joined, lead, members_in, running, until
from tests.support.stream_writers import StreamWriter, purged, writing

SMALL = wanted_readings(replicas=1, bytes_max=120 * 1024)  # so a block has some 37 messages
DONE, WAITING, NEW = 40, 50, 30
QUICK = {"length of a record, killed", "last block deleted"}
ILL = "state of the consumer is garbage"  # of three servers: this one is not well, and says so
# `up` does not begin, and says why.
TOLD_BY_THE_START = {
    ILL,
    "settings of the stream gone",
    "settings of the stream are garbage",
}
# Of a record: length (4), sequence (8), time (8), length of the subject (2), subject, .., sum (8).
_HEAD_BYTES = 22
_MIDDLE, _LAST = -2, -1  # blocks

Damage = Callable[["Store"], None]


class Store:
    """The files of the stream below `root`, and what they were at an earlier moment."""

    def __init__(self, root: Path, earlier: dict[str, bytes]) -> None:
        self._root = root
        self.earlier = earlier  # by the name of a block

    @property
    def folder(self) -> Path:
        """The folder of the stream."""
        (found,) = self._root.rglob(f"streams/{STREAM}")
        return found

    @property
    def blocks(self) -> list[Path]:
        """The files with messages, in order."""
        return sorted(self.folder.glob("msgs/*.blk"), key=lambda path: int(path.stem))


def blocks_now(root: Path) -> dict[str, bytes]:
    """Return the content of all blocks."""
    return {path.name: path.read_bytes() for path in Store(root, {}).blocks}


def _records(data: bytes) -> list[int]:
    """Return where the records of a block begin."""
    found, at = [], data.find(SUBJECT.encode())
    while at >= 0:
        found.append(at - _HEAD_BYTES)
        at = data.find(SUBJECT.encode(), at + 1)
    return found


def _written(block: int, offset: int, new: bytes, *, from_end: bool = False) -> Damage:
    """Write bytes into a record in the middle of a block."""

    def do(store: Store) -> None:
        path = store.blocks[block]
        data = bytearray(path.read_bytes())
        begins = _records(bytes(data))
        record = len(begins) // 2
        at = begins[record + from_end] + offset
        assert data[at : at + len(new)] != new
        data[at : at + len(new)] = new
        path.write_bytes(data)

    return do


def _cut(store: Store) -> None:
    path = store.blocks[_LAST]
    os.truncate(path, path.stat().st_size // 2 + 7)


def _emptied(store: Store) -> None:
    os.truncate(store.blocks[_LAST], 0)


def _deleted(block: int) -> Damage:
    return lambda store: store.blocks[block].unlink()


def _swapped(store: Store) -> None:
    path = store.blocks[_LAST]
    old = store.earlier[path.name]
    assert len(old) < path.stat().st_size
    path.write_bytes(old)


def _file(pattern: str, content: bytes | None) -> Damage:
    """Overwrite files, or remove them."""

    def do(store: Store) -> None:
        found = list(store.folder.glob(pattern))
        assert found, pattern
        for path in found:
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)

    return do


def _folder(name: str) -> Damage:
    return lambda store: shutil.rmtree(store.folder / name)


_GARBAGE = b"\x07garbage" * 20


class Kind(NamedTuple):
    """A kind of damage; nats-server was killed before it, or stopped in order."""

    what: str
    killed: bool
    do: Damage


KINDS = (
    Kind("length of a record", False, _written(_LAST, 0, b"ZZZZ")),
    Kind("length of a record, killed", True, _written(_LAST, 0, b"ZZZZ")),
    Kind("length in an earlier block", True, _written(_MIDDLE, 0, b"ZZZZ")),
    Kind("number of a record, killed", True, _written(_LAST, 4, b"\xff")),
    Kind("check sum of a record", False, _written(_LAST, -8, b"12345678", from_end=True)),
    Kind("check sum, killed", True, _written(_LAST, -8, b"12345678", from_end=True)),
    Kind("payload", False, _written(_LAST, 80, b"!")),
    Kind("payload, killed", True, _written(_LAST, 80, b"!")),
    Kind("zeros over records", False, _written(_MIDDLE, 0, bytes(5_000))),
    Kind("zeros over records, killed", True, _written(_LAST, 0, bytes(5_000))),
    Kind("end cut off", False, _cut),
    Kind("end cut off, killed", True, _cut),
    Kind("last block emptied, killed", True, _emptied),
    Kind("last block deleted", False, _deleted(_LAST)),
    Kind("last block deleted, killed", True, _deleted(_LAST)),
    Kind("block in the middle deleted", True, _deleted(_MIDDLE)),
    Kind("last block is an old one, killed", True, _swapped),
    Kind("index gone", False, _file("msgs/index.db", None)),
    Kind("index is garbage", False, _file("msgs/index.db", _GARBAGE)),
    Kind("all blocks gone", False, _folder("msgs")),
    Kind("stream gone", False, _folder("")),
    Kind("consumer gone", False, _folder("obs")),
    Kind("state of the consumer gone", False, _file("obs/*/o.dat", None)),
    Kind("state of the consumer is garbage", True, _file("obs/*/o.dat", _GARBAGE)),
    Kind("settings of the stream gone", False, _file("meta.inf", None)),
    Kind("settings of the stream are garbage", False, _file("meta.inf", _GARBAGE)),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all look ten times as often: what takes 10 s takes one."""
    for module, name, seconds in (
        (audit, "EVERY_S", 0.1),
        (audit, "HEARD_S", 0.4),
        (purge, "EVERY_S", 1.0),
        (watch, "EVERY_S", 0.1),
        (watch, "AGAIN_S", 0.1),
    ):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(embedded_running, "START_S_MAX", 4.0)


def bodies(begin: str, count: int) -> list[bytes]:
    """Return bodies that differ."""
    return [f"{begin}-{number:03}".encode().ljust(780, b".") for number in range(count)]


class Gateway:
    """A gateway that publishes, watches, and keeps a mark."""

    def __init__(self, where: Callable[[], Address], wanted: WantedStream, folder: Path) -> None:
        self.connection = BrokerConnection(where, "gateway")
        self.publisher = Publisher(self.connection, subject=SUBJECT, stream=STREAM, wait_s_max=25)
        self.mark = MarkFile(folder)
        self.watch = StreamWatch(
            self.connection,
            wanted,
            monitors=tuple,
            unsafe=True,
            published=lambda: self.publisher.published,
            mark=self.mark,
        )

    async def publish(self, messages: list[bytes]) -> set[bytes]:
        """Publish; return what was acknowledged."""
        for each in messages:
            await self.publisher.publish(each[:20].decode().rstrip("."), each)
        return set(messages)

    async def has_noted(self, done_to: int) -> None:
        """Wait for the mark."""
        to = self.publisher.published.to
        await until(lambda: self.mark.read()[2:] >= (done_to, to))


@asynccontextmanager
async def gateway(
    where: Callable[[], Address], wanted: WantedStream, folder: Path
) -> AsyncIterator[Gateway]:
    """Run a gateway."""
    made, stopping = Gateway(where, wanted, folder), asyncio.Event()
    running = [
        asyncio.create_task(made.connection.run(stopping)),
        asyncio.create_task(made.watch.run(stopping)),
    ]
    try:
        await until(lambda: made.watch.checked)
        yield made
    finally:
        stopping.set()
        await asyncio.gather(*running)


async def is_empty(admin: BrokerConnection) -> None:
    """Wait until all is done that can be; what a writer that ended was given comes after 30 s."""
    async with asyncio.timeout(45):
        while True:
            with contextlib.suppress(BrokerAway):  # a leader is chosen
                found = await streams.look_at_consumer(admin, WRITER)
                if found and not found["num_pending"] and not found["num_ack_pending"]:
                    return
            await asyncio.sleep(0.05)


def got(*writers: StreamWriter) -> set[bytes]:
    """Return the bodies that they were given."""
    return {body for each in writers for body in each.bodies}


async def _filled(folder: Path, *, kill: bool) -> tuple[set[bytes], set[bytes], dict[str, bytes]]:
    """Make a store; return what was acknowledged, what is done, and its blocks at some time."""
    server = EmbeddedBroker(folder, find_program())
    await _begin(server)
    async with gateway(lambda: server.published.address("gateway"), SMALL, folder) as one:
        acknowledged = await one.publish(bodies("done", DONE))
        async with writing(server, purges=True, mark=one.mark) as writer:
            await until(lambda: got(writer) == acknowledged)
            await until(lambda: one.mark.read().purged_to == DONE)
        acknowledged |= await one.publish(bodies("waits", WAITING - 10))
        earlier = blocks_now(folder / "store")
        acknowledged |= await one.publish(bodies("late", 10))
        await one.has_noted(DONE)
    if kill:
        hit(server.pid, signal.SIGKILL)
    await server.stop()
    return acknowledged, got(writer), earlier


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(each, id=each.what, marks=() if each.what in QUICK else pytest.mark.slow)
        for each in KINDS
    ],
)
async def test_damage_to_the_only_copy_is_told_or_does_no_harm(kind: Kind, tmp_path: Path) -> None:
    """The roles start anew, as `up` does, and posts come in."""
    acknowledged, done, earlier = await _filled(tmp_path, kill=kind.killed)
    kind.do(Store(tmp_path / "store", earlier))
    server = EmbeddedBroker(tmp_path, find_program())
    try:
        if kind.what in TOLD_BY_THE_START:
            with pytest.raises((StartError, BrokerRefused)):
                await _begin(server)
        else:
            await _begin(server)
            await _goes_on(server, tmp_path, acknowledged, done)
    finally:
        await server.stop()


async def _begin(server: EmbeddedBroker) -> None:
    """Start it as `up` does."""
    await server.start()
    async with joined(server, "admin") as admin:
        await streams.apply(admin, SMALL)


async def _goes_on(
    server: EmbeddedBroker, folder: Path, acknowledged: set[bytes], done: set[bytes]
) -> None:
    async with joined(server, "admin") as admin:
        async with (
            gateway(lambda: server.published.address("gateway"), SMALL, folder) as one,
            writing(server, Pull(), purges=True, mark=one.mark) as writer,
            writing(server, Pull(), purges=True, mark=one.mark) as other,
        ):
            new = await one.publish(bodies("new", NEW))
            await is_empty(admin)

            def told() -> int:
                return one.watch.removed + writer.audit.skipped + other.audit.skipped

            await asyncio.sleep(1.0)
            lost = (acknowledged | new) - done - got(writer, other)
            print(f"lost={len(lost)} told={told()}")  # noqa: T201  for the table of the document
            with contextlib.suppress(TimeoutError):
                await until(lambda: told() >= len(lost))
            assert not lost & new
            assert len(lost) <= told() <= len(lost) + 1 if lost else told() == 0
            given = [each for w in (writer, other) for each in w.got if each.data in new]
            assert all(each.ack_subject for each in given), "by a second look"
        # What was told is not told again.
        async with gateway(lambda: server.published.address("gateway"), SMALL, folder) as again:
            await asyncio.sleep(0.3)
            assert again.watch.removed == 0


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_loss_while_the_roles_run_is_told_though_posts_come_at_once(
    killed: bool, tmp_path: Path
) -> None:
    """They come before anybody looks, and get places that the stream has given before."""
    servers = [EmbeddedBroker(tmp_path, find_program())]
    await _begin(servers[0])

    def where(role: str) -> Callable[[], Address]:
        return lambda: servers[-1].published.address(role)

    try:
        async with (
            gateway(where("gateway"), SMALL, tmp_path) as one,
            writing(where("writer"), Pull(), purges=True, mark=one.mark) as writer,
        ):
            acknowledged = await one.publish(bodies("done", DONE))
            await until(lambda: one.mark.read().purged_to == DONE)
            writer.puller.wanted.clear()
            await until(writer.puller._over.is_set)  # else the broker gives it some all the same
            acknowledged |= await one.publish(bodies("waits", WAITING))
            await one.has_noted(DONE)
            if killed:
                hit(servers[0].pid, signal.SIGKILL)
            await servers[0].stop()
            KINDS[0].do(Store(tmp_path / "store", {}))
            publishing = asyncio.create_task(one.publish(bodies("new", NEW)))
            servers.append(EmbeddedBroker(tmp_path, find_program()))
            await servers[1].start()
            new = await publishing
            writer.puller.wanted.set()
            async with joined(servers[1], "admin") as admin:
                await is_empty(admin)
            await asyncio.sleep(1.0)
            lost = acknowledged - got(writer)
            assert lost
            assert new <= got(writer)
            assert len(lost) <= one.watch.removed <= len(lost) + 1
    finally:
        await servers[-1].stop()


async def test_what_others_removed_is_no_loss_and_a_stream_that_is_gone_is_told_once(
    tmp_path: Path,
) -> None:
    """Writers of another machine did it while no process of this one ran."""
    server = EmbeddedBroker(tmp_path, find_program())
    await _begin(server)

    def on(machine: str) -> AbstractAsyncContextManager[Gateway]:
        return gateway(lambda: server.published.address("gateway"), SMALL, tmp_path / machine)

    try:
        async with on("here") as one, writing(server, purges=True, mark=one.mark):
            await one.publish(bodies("done", DONE))
            await until(lambda: one.mark.read().purged_to == DONE)
        async with on("elsewhere") as other, writing(server, purges=True, mark=other.mark):
            await other.publish(bodies("waits", WAITING))
            await until(lambda: other.mark.read().purged_to == DONE + WAITING)
        async with on("here") as one:
            await one.publish(bodies("new", 5))
            await one.has_noted(DONE + WAITING)
            assert one.watch.removed == 0
        async with joined(server, "admin") as admin:
            await api(admin, f"STREAM.DELETE.{STREAM}")
        told = []
        for _ in range(2):
            async with on("here") as one:
                await asyncio.sleep(1.0)  # many looks
            told.append(one.watch.removed)
        assert told == [5, 0]
    finally:
        await server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
async def test_damage_to_one_copy_of_three_does_no_harm(kind: Kind, tmp_path: Path) -> None:
    """It is that of the server that then leads stream and consumer."""
    wanted = wanted_readings(3, SMALL.stream["max_bytes"])

    def where(role: str) -> Callable[[], Address]:
        return lambda: servers.address(role)

    async with (
        running(Cluster(members_in(tmp_path, (LOCAL,) * 3)), wanted) as servers,
        joined(where("admin"), "admin") as admin,
        gateway(where("gateway"), wanted, tmp_path) as one,
    ):
        async with writing(where("writer"), Pull(), purges=True) as writer:
            acknowledged = await one.publish(bodies("done", DONE))
            await purged(admin, one.publisher.published.to)
        acknowledged |= await one.publish(bodies("waits", WAITING - 10))
        bad = await servers.leader(admin)
        earlier = blocks_now(bad.store)
        acknowledged |= await one.publish(bodies("late", 10))
        await bad.end(signal.SIGKILL if kind.killed else signal.SIGTERM)
        kind.do(Store(bad.store, earlier))
        await bad.start()
        await servers.leader(admin)
        if kind.what != ILL:
            await bad.is_well(60)
            await lead(admin, STREAM, bad.name)
            await lead(admin, f"{STREAM}.{WRITER}", bad.name)
        async with (
            writing(where("writer"), Pull(), purges=True) as first,
            writing(where("writer"), Pull(), purges=True) as second,
        ):
            acknowledged |= await one.publish(bodies("new", NEW))
            await until(lambda: got(writer, first, second) >= acknowledged, 45)
            await is_empty(admin)
            told = one.watch.removed + first.audit.skipped + second.audit.skipped
            print(f"lost=0 told={told}")  # noqa: T201  for the table of the document
            assert told == 0
        if kind.what == ILL:
            with pytest.raises(TimeoutError):
                await bad.is_well(2)
