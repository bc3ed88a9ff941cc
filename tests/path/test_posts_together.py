"""Posts that come together, over real sockets and a real journal: what each client is answered.

The journal writes a group while the next one gathers. A disk that hangs makes that last as long as
a test needs.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ingest.http.connection import Connection
from ingest.http.request_and_answer import Answer
from ingest.model.block import decode_rows
from ingest.model.reading import Reading
from tests.support.journals import HangingDisk, JournalRun, killed, on_disk
from tests.support.receiver import BAD, Client, OverFakes, Reply, post, until
from tests.support.ways import Ways, both_ways

CALLS_MAX = 60  # more than any run needs
CLIENTS = 8
ROUTE = "/v1/readings"


def reading(number: int) -> bytes:
    """Return the reading that a client posts."""
    return b'{"device_id":"d%d","metric":"m","ts":1750000000000,"value":%d.5}' % (number, number)


class Rig(OverFakes):
    """A receiver over a journal. Each client has a connection, and its number in its readings."""

    def __init__(self, folder: Path, disk: HangingDisk, **bounds: Any) -> None:
        self.folder = folder
        self.disk = disk
        self.life = JournalRun(folder, calls=disk, **bounds)
        super().__init__(self.life.buffer, self.life.ledger, levels=self.life.buffer.levels)
        self.clients: list[Client] = []

    async def connect(self, count: int = CLIENTS) -> None:
        """Open connections."""
        self.clients += [await Client.connect(self.address) for _ in range(count)]

    async def gather(self, query: str = "") -> None:
        """Let all clients post: the first one's group hangs at the disk, the others wait behind."""
        self.disk.go.clear()
        before = self.life.buffer.stats().rows
        for number, client in enumerate(self.clients):
            await client.send(post(reading(number), query))
            if number == 0:
                await until(lambda: self.life.journal._busy)
        await until(lambda: self.ledger.at_receiver == len(self.clients))
        assert self.ledger.imbalance == 0
        assert self.life.buffer.stats().rows == before

    async def replies(self) -> list[Reply]:
        """Let the disk go on; return the answer of each client."""
        self.disk.go.set()
        return [await client.reply() for client in self.clients]

    def kept(self) -> list[int]:
        """Return whose readings are on the disk, in order."""
        return [number for each in on_disk(self.folder) for number in _numbers(each)]

    async def stored(self) -> list[int]:
        """Play the writer; return whose readings the buffer had, in order."""
        blocks = await self.life.drain()
        return [number for block in blocks for number in _numbers(block.tuples)]


def _numbers(tuples: bytes) -> list[int]:
    return [_number(each) for each in decode_rows(tuples)]


def _number(found: Reading) -> int:
    assert found.value == float(found.device_id[1:]) + 0.5
    return int(found.device_id[1:])


@asynccontextmanager
async def running(
    folder: Path, *, disk: HangingDisk | None = None, **bounds: Any
) -> AsyncIterator[Rig]:
    """Run a receiver with its clients; at the end nothing is in the receiver."""
    rig = Rig(folder, disk or HangingDisk(), **bounds)
    async with rig.life:
        rig.address = await rig.endpoint.start("127.0.0.1", 0)
        await rig.connect()
        try:
            yield rig
        finally:
            rig.disk.go.set()
            for client in rig.clients:
                await client.close()
            await rig.endpoint.close()
        await rig.life.quiet()
        assert rig.ledger.at_receiver == 0
        assert rig.endpoint._keeping.in_work == 0
        assert rig.life.buffer.unwritten.size_bytes == 0
        rig.life.settle(rig.life.buffer.take(1 << 20))


async def reset(client: Client) -> None:
    """Break a connection off, and not by a polite end."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.close()


@both_ways
async def test_each_client_is_answered_and_counted(tmp_path: Path, goes: Ways) -> None:
    """Eight posts are two frames, and eight answers, eight requests, eight readings."""
    async with running(tmp_path) as rig:
        await rig.gather()
        assert not rig.ledger.requests
        replies = await rig.replies()
        assert {(each.status, each.body) for each in replies} == {
            (202, b'{"accepted":1,"dead_lettered":0,"ack":"durable","errors":[]}')
        }
        assert len(on_disk(tmp_path)) == (CLIENTS if goes.declines else 2)
        assert rig.kept() == list(range(CLIENTS))
        assert rig.ledger.requests == {(ROUTE, 202): CLIENTS}
        assert sum(rig.ledger.request_s[ROUTE].counts) == CLIENTS
        assert rig.ledger.received == rig.ledger.accepted == CLIENTS
        assert await rig.stored() == list(range(CLIENTS))


@both_ways
async def test_each_client_of_a_group_that_fails_gets_a_503(tmp_path: Path) -> None:
    """Nothing of theirs is kept. The group before it is, and so is the next one."""
    async with running(tmp_path) as rig:
        await rig.gather()
        rig.disk.failing, rig.disk.nth = {"fdatasync": errno.EIO}, 3  # header, first group, second
        kept, *refused = await rig.replies()
        assert kept.status == 202
        assert {(each.status, each.code) for each in refused} == {(503, "disk_low")}
        assert {each.headers.get("connection") for each in refused} == {None}
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert rig.kept() == [0]
        assert rig.ledger.requests == {(ROUTE, 202): 1, (ROUTE, 503): CLIENTS - 1}
        assert sum(rig.ledger.request_s[ROUTE].counts) == CLIENTS
        assert rig.ledger.posts_refused == {"disk_low": CLIENTS - 1}
        assert rig.ledger.rejected == {"disk_low": CLIENTS - 1}
        assert not rig.life.buffer.broken
        await rig.gather()
        assert {each.status for each in await rig.replies()} == {202}
        assert await rig.stored() == [0, *range(CLIENTS)]


@both_ways
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)],
    ids=errno.errorcode.get,
)
async def test_nth_call_fails_and_each_answer_is_true(
    tmp_path: Path, goes: Ways, code: int, forever: bool
) -> None:
    """Of posts that are one group some clients have gone; the next process finds what was kept."""
    shared = refused = 0
    for nth in range(1, CALLS_MAX):
        folder, copy = tmp_path / f"a{nth}", tmp_path / f"b{nth}"
        disk = HangingDisk(**dict.fromkeys(("write", "fdatasync", "fsync", "ftruncate"), code))
        disk.nth, disk.onwards = nth + 1, forever  # the folder itself is fine
        async with running(folder, disk=disk) as rig:
            told: list[tuple[int, int]] = []
            sent = 0
            for _ in range(2):
                if rig.life.buffer.broken:
                    break
                await rig.gather()
                sent += CLIENTS
                shared += rig.life.journal._gathering[0].block.posts == CLIENTS - 1
                await reset(rig.clients.pop())
                told += [(at, each.status) for at, each in enumerate(await rig.replies())]
                await rig.connect(1)
            assert {status for _, status in told} <= {202, 503}
            await rig.life.quiet()
            await killed(folder, copy)
            held = await rig.stored()
            kept = [number for number, status in told if status == 202]
            assert [number for number in held if number != CLIENTS - 1] == kept
            assert rig.ledger.accepted == len(held) == sent - rig.ledger.rejected["disk_low"]
            refused += rig.ledger.rejected["disk_low"]
            for number, status in ((202, len(held)), (503, sent - len(held))):
                assert rig.ledger.requests[ROUTE, number] == status
        async with JournalRun(copy) as after:
            await after.scan()
            found = Counter(n for each in await after.drain() for n in _numbers(each.tuples))
            assert Counter(held) <= found  # what could not be cut off may come back, unpromised
            assert forever or found == Counter(held)
        if not disk.fired:
            assert bool(shared) is not goes.declines
            assert refused > CLIENTS
            return
    pytest.fail("the sweep did not come to a clean run")


@both_ways
async def test_clients_that_have_gone_change_nothing_for_the_others(tmp_path: Path) -> None:
    """Their posts were whole: they are kept and counted, and the rest is answered."""
    async with running(tmp_path) as rig:
        await rig.gather()
        gone, rig.clients = rig.clients[::2], rig.clients[1::2]
        for number, client in enumerate(gone):  # half of them have closed one side only
            await (client.close() if number % 2 else reset(client))
        await until(lambda: rig.connections.count == CLIENTS - len(gone) // 2)
        assert {each.status for each in await rig.replies()} == {202}
        assert rig.ledger.requests == {(ROUTE, 202): CLIENTS}
        assert await rig.stored() == list(range(CLIENTS))


@both_ways
async def test_clients_that_have_gone_are_refused_like_the_others(tmp_path: Path) -> None:
    """The disk fails besides: the counters have all of them."""
    async with running(tmp_path) as rig:
        await rig.gather()
        gone, rig.clients = rig.clients[1::2], rig.clients[::2]
        for client in gone:
            await reset(client)
        rig.disk.failing, rig.disk.nth = {"fdatasync": errno.ENOSPC}, 3
        rig.disk.onwards = True
        first, *others = await rig.replies()
        assert first.status == 202
        assert {each.code for each in others} == {"disk_low"}
        assert rig.ledger.rejected == {"disk_low": CLIENTS - 1}
        rig.disk.failing = {}
        await until(lambda: not rig.life.buffer.broken)


@both_ways
async def test_drain_waits_for_a_group_under_way(tmp_path: Path) -> None:
    """Its clients get their 202; posts that come meanwhile are refused."""
    async with running(tmp_path) as rig:
        await rig.gather()
        rig.admission.code = "draining"
        finishing = asyncio.create_task(rig.endpoint.finish(5))
        late = await Client.connect(rig.address)
        await late.send(post(reading(99)))
        assert (await late.reply()).code == "draining"
        assert not finishing.done()
        assert {each.status for each in await rig.replies()} == {202}
        async with asyncio.timeout(2):  # and not only when its own time is over
            await finishing
        await late.close()
        rig.life.buffer.shut_inlet()
        await rig.life.buffer.keep_rest()
        assert rig.life.buffer.stats().rows_kept == CLIENTS


async def test_stop_with_a_disk_that_hangs_keeps_what_it_writes_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ports are closed before the group is on the disk: nobody is answered, all is counted."""
    async with running(tmp_path) as rig:
        await rig.gather()
        await rig.endpoint.finish(0.05)
        await rig.endpoint.close()
        assert f"count={CLIENTS}" in capsys.readouterr().out
        assert [await client.closed() for client in rig.clients] == [True] * CLIENTS
        assert rig.ledger.at_receiver == CLIENTS
        rig.disk.go.set()
        await rig.life.quiet()
        assert rig.ledger.accepted == CLIENTS
        assert await rig.stored() == list(range(CLIENTS))


@both_ways
async def test_pipelined_posts_are_answered_in_order_from_groups_of_their_own(
    tmp_path: Path,
) -> None:
    """One connection has one post in work, so its posts never share a group; others' do."""
    async with running(tmp_path) as rig:
        for number, client in enumerate(rig.clients):
            await client.send(b"".join(post(reading(100 * step + number)) for step in range(5)))
        for client in rig.clients:
            assert [(await client.reply()).status for _ in range(5)] == [202] * 5
        kept = rig.kept()
        assert sorted(kept) == sorted(100 * step + n for step in range(5) for n in range(CLIENTS))
        for number in range(CLIENTS):
            mine = [each for each in kept if each % 100 == number]
            assert mine == sorted(mine)


@both_ways
async def test_each_kind_of_post_goes_its_way_in_one_crowd(tmp_path: Path) -> None:
    """Posts with invalid items reserve; others are taken in; each one has its own answer."""
    async with running(tmp_path) as rig:
        queries = ("", "?ack=buffered", "", "?ack=buffered", "", "", "", "")
        rig.disk.go.clear()
        for number, (client, query) in enumerate(zip(rig.clients, queries, strict=True)):
            body = reading(number)
            if number in (4, 5):
                body = b"[%b,%b]" % (body, BAD)
            await client.send(post(body, query))
        for number in (1, 3):
            assert (await rig.clients[number].reply()).document["ack"] == "buffered"
        rig.disk.go.set()
        for number in (0, 2, 4, 5, 6, 7):
            document = (await rig.clients[number].reply()).document
            assert (document["accepted"], document["ack"]) == (1, "durable")
            assert document["dead_lettered"] == int(number in (4, 5))
        assert sorted(await rig.stored()) == list(range(CLIENTS))


async def test_fault_of_ours_in_one_answer_is_not_one_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other clients of its group are answered, it is logged, and the journal goes on."""
    failing: set[int] = set()  # ports of clients
    reply = Connection.reply

    def fail(connection: Connection, answer: Answer) -> None:
        transport = connection.transport
        if transport is not None and transport.get_extra_info("peername")[1] in failing:
            failing.clear()
            raise RuntimeError("a bug")
        reply(connection, answer)

    monkeypatch.setattr(Connection, "reply", fail)
    async with running(tmp_path) as rig:
        await rig.gather()
        unlucky = rig.clients.pop(2)
        failing.add(unlucky.writer.get_extra_info("sockname")[1])
        try:
            assert {each.status for each in await rig.replies()} == {202}
        finally:
            await unlucky.close()
        assert "request_failed" in capsys.readouterr().out
        await rig.clients[0].send(post(reading(9)))
        assert (await rig.clients[0].reply()).status == 202
        assert sorted(await rig.stored()) == [*range(CLIENTS), 9]
