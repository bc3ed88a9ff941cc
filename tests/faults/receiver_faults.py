"""Faults of the clients: slow, gone, with false bodies, with repeated posts."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

from loadgen.proof.letter_sources import Files
from tests.faults.machine import allow_files
from tests.faults.matrix import FILES_MAX, fault
from tests.faults.world import World

IDLE, IDLE_S = 2_000, 0.5  # connections, and how long it takes until all are there
CLOSED_S_MAX = 10.0  # the deadline is 2 s, and a body's 408 is given 5 s to be read
HEAD = "POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def _item(world: World, device: str, number: int, value: float = 1.0) -> dict[str, Any]:
    ts = world.run.job.plan.first_us - 1_000_000 + number
    return {
        "device_id": f"{device}-{world.run.job.plan.run}",
        "metric": "m",
        "ts": ts,
        "value": value,
    }


async def _rows(world: World, device: str, count: int, within_s: float = 20.0) -> int:
    """Wait until so many readings of a device are stored; return the number that is stored."""
    name = f"{device}-{world.run.job.plan.run}"
    sql = f"select count(*) from readings where device_id = '{name}'"
    found = -1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while found < count:
                found = (await world.server.run(sql))[0]["count"]
                await asyncio.sleep(0.1)
    await asyncio.sleep(0.3)  # and no more follow
    return int((await world.server.run(sql))[0]["count"])


async def _slow_client(world: World, data: bytes, *, drip: bool) -> bytes | None:
    """Send `data`; then with `drip` a byte every 0.2 s, else nothing.

    Returns the bytes that came until the service closed the connection; None if it never did.
    """
    host, _, port = world.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        came = bytearray()
        reading = asyncio.create_task(_read_into(came, reader))
        for _ in range(int(CLOSED_S_MAX / 0.2)):
            await asyncio.wait([reading], timeout=0.2)
            if reading.done():
                break
            if drip:
                writer.write(b"x")
        if reading.done():
            return bytes(came)
        reading.cancel()
        await asyncio.wait([reading])
        return None
    finally:
        writer.transport.abort()


async def _read_into(came: bytearray, reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):  # closed, while a byte was on its way
        while data := await reader.read(4_096):
            came += data


async def _idle_client(world: World, number: int) -> float:
    """Connect and send nothing; return the seconds until the service closed the connection."""
    host, _, port = world.url.removeprefix("http://").partition(":")
    await asyncio.sleep(number * IDLE_S / IDLE)  # all at once would delay our own clients
    began_s = world.now_s()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(CLOSED_S_MAX):
                await reader.read()
        return world.now_s() - began_s
    finally:
        writer.transport.abort()


@fault(
    "F34",
    "slow clients",
    "{n} endless heads and bodies, 2,000 idle ones: closed; others are served",
    times=40,
    settings={"body_s_max": 2},
    rate=100.0,
    files_max=IDLE + 3 * 40 + FILES_MAX,
)
async def slow_clients(world: World) -> None:
    """Keep connections open and send almost nothing."""
    allow_files(2 * IDLE)
    world.run.p99_ms()
    await world.answered(200)
    normal_ms = world.run.p99_ms()
    idle = [asyncio.create_task(_idle_client(world, number)) for number in range(IDLE)]
    half = f"{HEAD}Content-Length: 1000\r\n\r\n[".encode()
    work = [
        _slow_client(world, data, drip=drip)
        for data, drip in (
            (HEAD.encode() + b"X-Slow: ", True),
            (half, True),
            (half, False),
        )
        for _ in range(world.times)
    ]
    answers = await asyncio.gather(*work)
    left = answers.count(None)
    world.expect(not left, f"F34: {left} of {len(answers)} slow connections were not closed")
    late_bodies = sum((each or b"").startswith(b"HTTP/1.1 408 ") for each in answers)
    world.expect(late_bodies == 2 * world.times, f"F34: {late_bodies} late bodies answered 408")
    took_s = sorted(await asyncio.gather(*idle))
    late = sum(each >= CLOSED_S_MAX for each in took_s)
    world.expect(not late, f"F34: {late} of {IDLE} idle connections were not closed")
    world.expect(took_s[0] >= 1, f"F34: an idle connection was closed after {took_s[0]:.2f} s")
    slow_ms = world.run.p99_ms()
    world.found.count = len(answers) + len(idle)
    await world.answered(20)
    files = len(list(Path(f"/proc/{world.service.pid}/fd").iterdir()))
    world.expect(files < FILES_MAX, f"F34: {files} files are open when all are closed")
    world.found.figures.append(
        f"the others' p99 {normal_ms:.0f} ms before, {slow_ms:.0f} ms beside them; idle "
        f"connections were closed after {took_s[0]:.1f} to {took_s[-1]:.1f} s"
    )


@fault(
    "F35",
    "clients gone before the answer",
    "{n} resets at the answer or inside the post",
    times=40,
    front=True,
)
async def clients_gone(world: World) -> None:
    """Cut the clients' connections."""
    for number in range(world.times):
        if number % 2:
            over = world.front.lose_replies(1)
            async with asyncio.timeout(20):
                await over.wait()
        else:
            before = world.front.connections_total
            world.front.cut_after("to_server", world.random.randrange(1, 4_000))
            async with asyncio.timeout(20):
                while world.front.connections_total == before:  # noqa: ASYNC110  of the proxy
                    await asyncio.sleep(0.01)
        world.count()
        await world.sleep(0.02, 0.15)
    world.front.keep_whole()


@fault(
    "F36",
    "invalid gzip",
    "cut at {n} places, wrong checksum, a bomb ..: 400, 413 or 415, nothing kept",
    times=20,
)
async def bad_gzip(world: World) -> None:
    """Send bodies that are not of the encoding that their head names."""
    body = gzip.compress(json.dumps([_item(world, "gzip", n) for n in range(50)]).encode())
    cases: list[tuple[str, bytes, str, int]] = [
        ("cut", body[: world.random.randrange(1, len(body))], "gzip", 400)
        for _ in range(world.times)
    ]
    wrong = bytearray(body)
    wrong[-6] ^= 1
    cases += [
        ("checksum", bytes(wrong), "gzip", 400),
        ("trailing", body + b"x", "gzip", 400),
        ("none", b"[]", "gzip", 400),
        ("bomb", gzip.compress(b" " * (64 << 20)), "gzip", 413),
        ("twice", gzip.compress(body), "gzip, gzip", 415),
        ("unknown", body, "snappy", 415),
        ("brotli", body, "br", 415),
    ]
    for name, data, encoding, wanted in cases:
        answer = await world.service.post(data, headers={"Content-Encoding": encoding})
        world.expect(answer.status == wanted, f"F36: {name}: {answer.status}, not {wanted}")
        world.count()
    rows = await _rows(world, "gzip", 0)
    world.expect(rows == 0, f"F36: {rows} readings of broken bodies are stored")
    answer = await world.service.post(body, headers={"Content-Encoding": "gzip"})
    world.expect(answer.status == 202, f"F36: a good body: {answer.status}")
    rows = await _rows(world, "gzip", 50)
    world.expect(rows == 50, f"F36: {rows} of 50 readings of the good body are stored")


@fault(
    "F37",
    "bad items anywhere in a post",
    "{n} posts of 40: exactly the bad ones are named and dead-lettered",
    times=25,
)
async def bad_items(world: World) -> None:
    """Post good and bad items together."""
    rng = world.random
    good = kept = number = 0
    for post in range(world.times):
        share = post / (world.times - 1)
        items, bad = [], []
        for index in range(40):
            number += 1
            item = _item(world, "mixed", number)
            if rng.random() < share or share == 1:
                item["value"] = rng.choice(["21.5", None, [], {"a": 1}])
                bad.append(index)
            items.append(item)
        answer = await world.post(*items)
        if len(bad) == len(items):
            world.expect(answer.status == 422, f"F37: all bad: {answer.status}")
            continue
        named = sorted(each["index"] for each in answer.document["errors"])
        world.expect(answer.status == 202 and named == bad, f"F37: {named} named, {bad} are bad")
        good += len(items) - len(bad)
        kept += len(bad)
        world.found.count += len(bad)
    rows = await _rows(world, "mixed", good)
    world.expect(rows == good, f"F37: {rows} of {good} good readings are stored")
    letters = Files(world.state / "dead-letters").read("mixed-").letters
    world.expect(len(letters) == kept, f"F37: {len(letters)} of {kept} bad items are kept")


@fault(
    "F38",
    "the same post at once",
    "{n} posts, 50 times in parallel: stored once",
    times=6,
)
async def storms(world: World) -> None:
    """Send the same post in parallel."""
    for post in range(world.times):
        items = [_item(world, "storm", post * 20 + n) for n in range(20)]
        answers = await asyncio.gather(*(world.post(*items) for _ in range(50)))
        statuses = {each.status for each in answers}
        world.expect(statuses == {202}, f"F38: {statuses}")
        world.found.count += len(answers)
    rows = await _rows(world, "storm", 20 * world.times)
    world.expect(rows == 20 * world.times, f"F38: {rows} rows of {20 * world.times}")


@fault(
    "F39",
    "same key, another value",
    "{n} pairs: both are kept, as the contract says",
    times=30,
)
async def other_values(world: World) -> None:
    """Post two values of one device, metric and moment."""
    await world.answered(5)
    for number in range(world.times):
        pair = [_item(world, "pair", number, value) for value in (1.5, 2.5)]
        if number == world.times - 5:
            await world.server.stop()
        posts = [pair] if number % 2 else [[each] for each in pair]
        for each in posts:
            answer = await world.post(*each)
            world.expect(answer.status == 202, f"F39: {answer.status}")
        world.count()
    await world.server.come_back()
    world.fixed()
    rows = await _rows(world, "pair", 2 * world.times)
    world.expect(rows == 2 * world.times, f"F39: {rows} of {2 * world.times} facts")
