"""Other clients' latency while the door is attacked: `python -m benchmarks.under_attack`.

A client posts 1,000 single readings a second, open loop, latency from the intended time: alone,
beside 10,000 connections that send half a head, and beside gzip bombs of 200 MiB. Attackers run in
a process of their own. Prints p50, p99 and the service's peak memory of each phase.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import multiprocessing
import time

import aiohttp
import uvloop

from benchmarks.processes import raise_open_files_limit, scratch
from benchmarks.service import Service

RATE_PER_S = 1_000
HALF_HEADS = 10_000
BOMB_BYTES = 200 * 1024**2
BOMBERS = 8
HALF_HEAD = b"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Ty"


def attack(kind: str, port: int, ready: object) -> None:
    """Attack until killed."""
    raise_open_files_limit()
    uvloop.run(half_heads(port, ready) if kind == "half heads" else bombs(port, ready))


async def half_heads(port: int, ready: object) -> None:
    """Hold HALF_HEADS connections, opening again each one that the service closes."""

    async def hold() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(HALF_HEAD)
                await reader.read()
                writer.close()
            except OSError:
                await asyncio.sleep(0.1)

    holding = []
    for _ in range(HALF_HEADS):
        holding.append(asyncio.create_task(hold()))
        if len(holding) % 50 == 0:
            await asyncio.sleep(0.01)
    ready.set()  # type: ignore[attr-defined]
    await asyncio.gather(*holding)


async def bombs(port: int, ready: object) -> None:
    """Post bombs one after another on BOMBERS connections."""
    bomb = gzip.compress(bytes(BOMB_BYTES), 9)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    async def post(session: aiohttp.ClientSession) -> None:
        while True:
            async with session.post(
                f"http://127.0.0.1:{port}/v1/readings", data=bomb, headers=headers
            ) as answer:
                assert answer.status == 413, answer.status
            await asyncio.sleep(0.02)

    async with aiohttp.ClientSession() as session:
        ready.set()  # type: ignore[attr-defined]
        await asyncio.gather(*(post(session) for _ in range(BOMBERS)))


async def post_steadily(port: int, seconds: float, first_us: int) -> list[float]:
    """Post RATE_PER_S readings a second; return the latencies in ms, sorted."""
    latencies: list[float] = []
    headers = {"Content-Type": "application/json"}

    async def one(session: aiohttp.ClientSession, ts_us: int, due_s: float) -> None:
        body = b'{"device_id":"d","metric":"m","ts":%d,"value":1.5}' % ts_us
        async with session.post(
            f"http://127.0.0.1:{port}/v1/readings", data=body, headers=headers
        ) as answer:
            await answer.read()
            assert answer.status == 202, answer.status
        latencies.append((time.monotonic() - due_s) * 1000)

    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        began_s = time.monotonic()
        for n in range(int(seconds * RATE_PER_S)):
            due_s = began_s + n / RATE_PER_S
            if (pause_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            group.create_task(one(session, first_us + n, due_s))
    return sorted(latencies)


def main() -> None:
    """Measure the three phases on one service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    with scratch() as folder, Service(folder / "state") as service:
        for number, kind in enumerate(("alone", "half heads", "bombs", "alone again")):
            found = measure(service, kind, options.seconds, number)
            p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
            print(
                f"{kind:12} {len(found)} posts, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
                f"max {found[-1]:.1f} ms, peak RSS {service.child.rss_peak_mib():.0f} MiB",
                flush=True,
            )


def measure(service: Service, kind: str, seconds: float, number: int) -> list[float]:
    """Post steadily beside an attack; return the latencies in ms, sorted."""
    context = multiprocessing.get_context("spawn")
    attacker = None
    if not kind.startswith("alone"):
        ready = context.Event()
        attacker = context.Process(target=attack, args=(kind, service.port, ready))
        attacker.start()
        ready.wait(60)
    first_us = 1_700_000_000_000_000 + number * 1_000_000_000
    try:
        return uvloop.run(post_steadily(service.port, seconds, first_us))
    finally:
        if attacker is not None:
            attacker.kill()
            attacker.join()


if __name__ == "__main__":
    main()
