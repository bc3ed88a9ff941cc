"""Ends of nats-servers, gateways and writers: killed, stopped, frozen, upgraded."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from ingest.roles.embedded_broker import find_program
from ingest.roles.nats.protocol import STREAM, SUBJECT
from ingest.roles.nats.watch import ask
from tests.faults import earlier_server
from tests.faults.broker_world import ENDS, BrokerWorld
from tests.faults.database_faults import QUICK_INSERTS, slow_inserts
from tests.faults.matrix import fault
from tests.faults.role_process import RoleProcess
from tests.faults.world import PATCHED, PLAIN
from tests.support.brokers import Member, lead

LONGEST_S_MAX = 10.0
IN_COPY = (
    "select count(*) from pg_stat_activity where state = 'active' "
    "and application_name like 'iot-ingest writer%' and query ilike 'copy%'"
)


async def _hit_in_turn(world: BrokerWorld, *members: Member) -> None:
    for number in range(world.times):
        await world.answered(60, within_s=60)
        await world.hit(ENDS[number % len(ENDS)], *members)


@fault(
    "B3",
    "the only nats-server ends",
    "SIGKILL, SIGTERM, SIGSTOP for 4 to 7 s, {n} times in turn",
    brokers=1,
    times=6,
)
async def only_server(world: BrokerWorld) -> None:
    """The gateways keep posts in memory meanwhile, or refuse them."""
    await _hit_in_turn(world, *world.servers.members)


@fault(
    "B4",
    "the stream's leader is killed",
    "SIGKILL {n} times: no post is refused, each 202 within 10 s",
    brokers=3,
    times=3,
    limit_s=240,
)
async def leader_killed(world: BrokerWorld) -> None:
    """Posts wait for the new leader."""
    for _ in range(world.times):
        await world.answered(60, within_s=60)
        leader = await world.servers.leads()
        world.run.refused, world.run.longest_s = 0, 0.0
        await leader.end(signal.SIGKILL)
        world.count()
        await world.answered(60, within_s=60)
        longest_s, refused = world.run.longest_s, world.run.refused
        world.found.figures.append(f"longest 202 {longest_s:.1f} s, {refused} posts refused")
        world.expect(not refused, f"B4: {refused} posts refused at a leader's death")
        world.expect(longest_s < LONGEST_S_MAX, f"B4: a 202 took {longest_s:.1f} s")
        await leader.start()
        world.fixed()
        await world.all_well()


@fault("B5", "the stream's leader ends", "as B3, {n} times", brokers=3, times=3, limit_s=240)
async def leader_ends(world: BrokerWorld) -> None:
    """Another server leads."""
    for number in ENDS[: world.times]:
        await world.answered(60, within_s=60)
        await world.hit(number, await world.servers.leads())


@fault("B6", "a follower ends", "as B3, {n} times", brokers=3, times=3)
async def follower_ends(world: BrokerWorld) -> None:
    """The other two are a majority."""
    leader = await world.servers.leads()
    followers = [each for each in world.servers.members if each is not leader]
    await _hit_in_turn(world, world.random.choice(followers))


@fault("B7", "the server of the gateways ends", "as B3, {n} times", brokers=3, times=3)
async def connected_ends(world: BrokerWorld) -> None:
    """It does not lead: its clients connect to another one, and publish again."""
    for number in ENDS[: world.times]:
        await world.answered(60, within_s=60)
        connected = await asyncio.to_thread(world.servers.that_serve, "gateway")
        hit = world.random.choice(connected)
        leader = await world.servers.leads()
        if hit is leader:
            others = [each for each in world.servers.members if each is not hit]
            async with world.servers.admin() as admin:
                await lead(admin, STREAM, world.random.choice(others).name)
        await world.hit(number, hit)


@fault(
    "B8", "all three nats-servers end at once", "as B3, {n} times", brokers=3, times=3, limit_s=240
)
async def all_end(world: BrokerWorld) -> None:
    """There is no majority; posts are refused after a while."""
    await _hit_in_turn(world, *world.servers.members)


@fault(
    "B9",
    "a writer is killed in COPY",
    "SIGKILL {n} times; its messages come again after 30 s",
    brokers=1,
    times=4,
    settings={"writers": 1},
    duplicates=0.0,
    limit_s=240,
)
async def writer_killed(world: BrokerWorld) -> None:
    """What it had is written by the other one."""
    for number in range(world.times):
        await world.answered(40, within_s=60)
        await slow_inserts(world.server)
        async with asyncio.timeout(30):
            while (await world.server.run(IN_COPY))[0][0] < len(world.writers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await kill(world, world.writers[number % len(world.writers)])
        await world.server.ask(QUICK_INSERTS)


async def kill(world: BrokerWorld, role: RoleProcess) -> None:
    """Kill a role, start it again as a supervisor would."""
    await role.stop(signal.SIGKILL)
    world.count()
    await world.again(role)


@fault(
    "B10",
    "a gateway is killed after the stream's answer, before its own",
    "{n} times; clients send again",
    brokers=1,
    times=6,
)
async def gateway_killed(world: BrokerWorld) -> None:
    """What was stored is posted again, and the key absorbs it."""
    cut_off = world.run.cut_off
    for number in range(world.times):
        gateway = world.gateways[number % len(world.gateways)]
        nth = world.random.randrange(5, 40)
        gateway.change(world.env("gateway", "dies_unanswered", FAULTS_NTH=nth), PATCHED)
        await world.again(gateway, stop=True)
        await gateway.ended(60)
        world.count()
        gateway.change(world.env("gateway"), PLAIN)
        await world.again(gateway)
        await gateway.wait_state("accepting", within_s=30)
    world.expect(world.run.cut_off > cut_off, "B10: no post was cut off")


@fault(
    "B11",
    "message ids forgotten before the outage ends",
    "known for 1 s, {n} outages of 3 s: twice in the stream, once in the table",
    brokers=1,
    times=4,
    mutant="short_window",
    stream={"duplicate_window": 1_000_000_000},
    duplicates=0.0,
)
async def short_window(world: BrokerWorld) -> None:
    """The key of the table absorbs what the stream has twice."""
    for _ in range(world.times):
        await world.answered(40, within_s=60)
        over = world.line.lose_replies(1, after=(SUBJECT.encode(),))
        async with asyncio.timeout(30):
            await over.wait()
        world.line.refuse()
        await world.line.cut()
        await asyncio.sleep(3)
        await world.line.accept()
        world.fixed()
        world.count()
    await world.answered(40, within_s=60)
    twice = 0.0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while not (twice := await world.total("ingest_readings_duplicate_total")):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    world.found.figures.append(f"{twice:g} readings were written again, and stored once")
    world.expect(twice, "B11: the stream had nothing twice")


async def _begin_earlier(world: BrokerWorld) -> None:
    program = await asyncio.to_thread(earlier_server.program)
    for each in world.servers.members:
        each.program = program


def _version_of(member: Member) -> str:
    return str(ask(member.monitor_url, "/varz")["version"])


@fault(
    "B12",
    "rolling upgrade from an earlier nats-server",
    f"three servers of {earlier_server.version()}, one after the other",
    brokers=3,
    settings={"broker_unsafe": True},
    before=_begin_earlier,
    limit_s=240,
)
async def upgrade(world: BrokerWorld) -> None:
    """Servers of both versions are one cluster meanwhile."""
    today = find_program()
    members = world.servers.members
    versions = {await asyncio.to_thread(_version_of, each) for each in members}
    earlier = earlier_server.version()
    world.expect(versions == {earlier}, f"B12: began with {versions}")
    world.run.refused, world.run.longest_s = 0, 0.0
    for each in members:
        await world.answered(60, within_s=60)
        each.program = today
        await world.hit(signal.SIGTERM, each)
    await world.answered(60, within_s=60)
    now = {await asyncio.to_thread(_version_of, each) for each in members}
    world.expect(earlier not in now, f"B12: ended with {now}")
    world.found.figures.append(
        f"{earlier} to {', '.join(sorted(now))}: longest 202 {world.run.longest_s:.1f} s, "
        f"{world.run.refused} posts refused"
    )
