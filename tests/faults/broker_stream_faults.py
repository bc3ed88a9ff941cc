"""Harm to the stream itself: full, removed by somebody, damaged on a disk; and a forwarder."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal

from ingest.buffers.frames import HEAD_BYTES, MARK
from ingest.roles.nats.protocol import STREAM, WRITER
from tests.faults.broker_power_faults import UNEVEN
from tests.faults.broker_world import BrokerWorld
from tests.faults.controls import LOST
from tests.faults.machine import SmallDisk
from tests.faults.matrix import fault
from tests.support.brokers import MIB, Member, api, lead
from tests.support.webhook import Webhook

FREE_BYTES = 192 * 1024
SMALL_KIB = 24 * 1024
ROWS_MIN = 5
FEW = 30  # posts that wait in the stream when harm is done to it
REMOVED, SKIPPED = "ingest_stream_removed", "ingest_stream_skipped_total"


async def _refused(world: BrokerWorld, count: int, within_s: float = 60.0) -> None:
    """Wait until so many tries were refused."""
    before = world.run.refused
    async with asyncio.timeout(within_s):
        while world.run.refused < before + count:  # noqa: ASYNC110  of the traffic
            await asyncio.sleep(0.02)


@fault(
    "B13",
    "the stream is full",
    "1 MiB, until 20 posts were refused",
    brokers=1,
    settings={"stream_bytes_max": MIB},
    rate=120.0,
)
async def stream_full(world: BrokerWorld) -> None:
    """Posts are refused until the writers have made room."""
    world.proxy.refuse()
    await world.proxy.cut()
    await _refused(world, 20)
    await asyncio.gather(*(each.wait_state("full", within_s=20) for each in world.gateways))
    await world.proxy.accept()
    world.fixed()
    world.count()
    for each in world.gateways:
        await each.wait_state("accepting", within_s=40)


async def _begin_small(world: BrokerWorld) -> None:
    disk = SmallDisk(world.servers.members[0].store, SMALL_KIB)
    world.undo.enter_context(disk)


@fault(
    "B14",
    "the disk of nats-server is full",
    "192 KiB left; then room, and a start",
    brokers=1,
    before=_begin_small,
    rate=120.0,
)
async def disk_full(world: BrokerWorld) -> None:
    """nats-server does not answer any more; nothing that it acknowledged is lost."""
    (member,) = world.servers.members
    await world.answered(40)
    world.proxy.refuse()
    await world.proxy.cut()
    ballast = member.store / "ballast"
    free = shutil.disk_usage(member.store).free - FREE_BYTES
    await asyncio.to_thread(ballast.write_bytes, bytes(free))
    await _refused(world, 20, within_s=90)
    codes = {(await each.readyz()).document["state"] for each in world.gateways}
    world.found.figures.append(f"the gateways are {', '.join(sorted(codes))} meanwhile")
    world.expect("accepting" not in codes, f"B14: a gateway is {codes}")
    ballast.unlink()
    await member.end(signal.SIGKILL)
    await world.proxy.accept()
    await member.start()
    world.fixed()
    world.count()
    await world.all_well()


async def _let_wait(world: BrokerWorld) -> None:
    """Stop the writers: what is posted from now on waits in the stream."""
    await world.answered(40)
    await asyncio.gather(*(each.stop() for each in world.writers))
    await world.answered(FEW)


async def _remove(world: BrokerWorld, subject: str) -> float:
    """Ask the broker's API to remove something; return when that was."""
    async with world.servers.admin() as admin:
        answer = await api(admin, subject)
    assert "error" not in answer, answer
    world.count()
    return world.now_s()


@fault(
    "B15",
    "the writers' consumer is deleted by hand",
    "while posts wait; then it is made again",
    brokers=1,
)
async def consumer_deleted(world: BrokerWorld) -> None:
    """The stream keeps its messages, and gives them all again."""
    await _delete_consumer(world)


@fault(
    "C7",
    "retention by interest",
    "as B15; messages are kept for consumers only",
    kind="control",
    mutant="by_interest",
    stream={"retention": "interest"},
    brokers=1,
    breaks=LOST,
    follows=UNEVEN,
)
async def by_interest(world: BrokerWorld) -> None:
    """The stream drops what waited for the consumer."""
    await _delete_consumer(world)


async def _delete_consumer(world: BrokerWorld) -> None:
    await _let_wait(world)
    await _remove(world, f"CONSUMER.DELETE.{STREAM}.{WRITER}")
    await world.sleep(0.5, 1)
    await world.servers.make_consumers()
    await world.again(*world.writers)


@fault(
    "L1",
    "the stream is deleted by hand",
    "while posts wait; then `ingest stream apply`",
    kind="loss",
    brokers=1,
    breaks=LOST,
    follows=UNEVEN,
)
async def stream_deleted(world: BrokerWorld) -> None:
    """What waited is lost. No post is accepted until there is a stream again."""
    await _let_wait(world)
    at_s = await _remove(world, f"STREAM.DELETE.{STREAM}")
    await world.expect_told(at_s, REMOVED, "stream_messages_removed")
    for each in world.gateways:
        document = (await each.readyz()).document
        world.expect(document["state"] != "accepting", "L1: a gateway accepts without a stream")
    await world.apply()
    await world.again(*world.writers)
    for each in world.gateways:
        await each.wait_state("accepting", within_s=30)


@fault(
    "L2",
    "the stream is purged by hand",
    "while posts wait",
    kind="loss",
    brokers=1,
    breaks=LOST,
    follows=UNEVEN,
)
async def stream_purged(world: BrokerWorld) -> None:
    """What waited is lost."""
    await _let_wait(world)
    at_s = await _remove(world, f"STREAM.PURGE.{STREAM}")
    await world.expect_told(at_s, REMOVED, "stream_messages_removed")
    await world.again(*world.writers)


def _flip(member: Member) -> int:
    """Flip a bit of one of the last messages of a server that does not run; return its rows.

    It has some rows: a single one may be there once more, since some readings are sent twice.
    """
    files = member.store.rglob(f"streams/{STREAM}/msgs/*.blk")
    newest = max(files, key=lambda path: int(path.stem))
    data = bytearray(newest.read_bytes())
    at, rows = data.rfind(MARK, 0, data.rfind(MARK)), 0
    while rows < ROWS_MIN:
        at = data.rfind(MARK, 0, at)
        assert at >= 0, "there is no such message"
        rows = int.from_bytes(data[at + 20 : at + 24], "big")
    data[at + HEAD_BYTES + 9] ^= 1
    newest.write_bytes(data)
    return rows


@fault(
    "L3",
    "a flipped bit on the only disk",
    "in a message that waits",
    kind="loss",
    brokers=1,
    breaks=LOST,
    follows=UNEVEN,
)
async def bit_of_one(world: BrokerWorld) -> None:
    """nats-server passes over the message without a word; the writers notice it."""
    await _let_wait(world)
    (member,) = world.servers.members
    await member.end(signal.SIGTERM)
    rows = await asyncio.to_thread(_flip, member)
    world.count()
    await member.start()
    await world.all_well()
    await world.again(*world.writers)
    skipped = await world.expect_told(world.now_s(), SKIPPED, "stream_messages_skipped")
    world.expect(skipped == 1, f"L3: {skipped:g} messages counted, not 1")
    world.found.figures.append(f"the message had {rows} readings")


@fault(
    "B16",
    "a flipped bit on one of three disks",
    "on the leader: read from another copy",
    brokers=3,
)
async def bit_of_three(world: BrokerWorld) -> None:
    """The writers read the message from another server."""
    await _bit_of_leader(world)
    again = "stream_messages_read_again"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while not any(again in each.output for each in world.writers):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    noticed = any(again in each.output for each in world.writers)
    world.expect(noticed, "B16: no writer has read the message again")


@fault(
    "M6",
    "does not look for messages that nobody got",
    "as B16",
    kind="mutant",
    mutant="blind",
    brokers=3,
    breaks=LOST,
    follows=UNEVEN,
)
async def blind(world: BrokerWorld) -> None:
    """The damaged message is passed over, though two good copies exist."""
    await _bit_of_leader(world)


async def _bit_of_leader(world: BrokerWorld) -> None:
    await _let_wait(world)
    member = await world.servers.leads()
    await member.end(signal.SIGTERM)
    await asyncio.to_thread(_flip, member)
    world.count()
    await member.start()
    await world.all_well()
    async with world.servers.admin() as admin:
        await lead(admin, STREAM, member.name)
        await lead(admin, f"{STREAM}.{WRITER}", member.name)
    await world.again(*world.writers)


async def _has_all(world: BrokerWorld, target: Webhook) -> None:
    """Wait until the target has each reading that the table has now."""
    sql = "select distinct device_id, metric, value from readings"
    missing = {tuple(each) for each in await world.server.run(sql)}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(40):
            while missing := missing - {item[1:] for item in target.items}:  # noqa: ASYNC110
                await asyncio.sleep(0.3)
    world.expect(not missing, f"B17: the target has not got {len(missing)} readings")
    world.found.figures.append(
        f"the target has {len(target.items):,} readings, {target.again} posts came again"
    )


@fault(
    "B17",
    "the target of a forwarder is down",
    "for 6 s, {n} times: no post is refused",
    brokers=1,
    times=2,
    settings={"forwards": "x"},
)
async def target_down(world: BrokerWorld) -> None:
    """The forwarder has a consumer of its own; writers and gateways do not wait for it."""
    async with Webhook() as target:
        forward = world.role("forward", "forward", name="x", to=target.url, send_retry_s_max=0.5)
        async with forward:
            for _ in range(world.times):
                await world.answered(40)
                refused = world.run.refused
                await target.stop()
                await world.sleep(6)
                await target.start()
                world.fixed()
                world.count()
                world.expect(world.run.refused == refused, "B17: posts were refused")
            await world.answered(40)
            await _has_all(world, target)
            code, _ = await forward.stop()
            world.expect(code == 0, f"B17: the forwarder ended with {code}")
