"""The cost of the dashboard: ten open pages, its feed, a million devices, and each post.

python -m benchmarks.dashboard [--seconds 20]

A page is a reader of the feed that asks for devices as often as the real page does, and accepts
gzip as a browser does. CPU seconds are the service's own, so other work on the machine disturbs
little. Posts are decoded in this process, with and without the observation of posts and the search
for devices.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import suppress

import aiohttp

from benchmarks.contenders import running_service
from benchmarks.processes import rss_mib, run_driver
from benchmarks.service import Service
from benchmarks.soak import AS_DELIVERED
from ingest.admin.dashboard.devices import Devices
from ingest.admin.dashboard.tail import Tail
from ingest.formats.json_post import decode
from ingest.formats.post import Decoded, Post, Rules

RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
PAGES = 10
DEVICES_PERIOD_S = 10.0
DECODE_S = 1.5  # of CPU time, each way, three times
FLEET = ("--rate", "50", "--batch", "20", "--devices", "2000", "--connections", "1")


def load(service: Service, seconds: float) -> None:
    """Post arrays of 20 readings of 2,000 devices, evenly."""
    url = f"http://127.0.0.1:{service.port}"
    command = (sys.executable, "-m", "loadgen", "run", "--url", url, *FLEET)
    run_driver((*command, "--duration-s", f"{seconds:g}"), seconds)


async def page(session: aiohttp.ClientSession, seconds: float) -> int:
    """Keep a page open for so long; return the bytes of its feed."""

    async def ask(target: str) -> None:
        async with session.get(target) as answer:
            await answer.read()

    async def ask_for_devices() -> None:
        while True:
            await ask("/devices?silent_s=60")
            await ask("/devices/list?limit=50&prefix=&after=")
            await asyncio.sleep(DEVICES_PERIOD_S)

    await ask("/history?since=0")
    asking = asyncio.create_task(ask_for_devices())
    feed_bytes = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), session.get("/feed?tail=true") as answer:
            async for data in answer.content.iter_any():
                feed_bytes += len(data)
    asking.cancel()
    return feed_bytes


async def measure_pages(service: Service, seconds: float) -> None:
    """Measure and print ten pages on a service under a small load."""
    load(service, 3)
    shares: dict[int, float] = {}
    feed_bytes: list[int] = []
    async with aiohttp.ClientSession(
        f"http://{service.info['admin_listen']}", timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        for count in (0, PAGES, 0, PAGES):
            used_s = service.child.cpu_s()
            _, sizes = await asyncio.gather(
                asyncio.to_thread(load, service, seconds),
                asyncio.gather(*(page(session, seconds) for _ in range(count))),
            )
            share = (service.child.cpu_s() - used_s) / seconds
            shares[count] = min(share, shares.get(count, share))
            feed_bytes += sizes
    print(f"ten pages, CPU of one core, %: {100 * (shares[PAGES] - shares[0]):.2f}")
    print(f"service without a page, CPU of one core, %: {100 * shares[0]:.2f}")
    print(f"feed of one page, bytes/s: {sum(feed_bytes) / len(feed_bytes) / seconds:.0f}")


def body_of(count: int, number: int, devices: int) -> bytes:
    """Return a post of `count` readings."""
    return json.dumps(
        [
            {
                "device_id": f"device-{(number * count + i) % devices:07}",
                "metric": "temperature",
                "ts": 1_790_000_000_000 + number,
                "value": 21.5,
            }
            for i in range(count)
        ]
    ).encode()


def take(body: bytes) -> Decoded:
    """Decode as the receiver does."""
    return decode(body, Post(None, False, 1_790_000_000_000_000, 0.0, RULES))


async def observed_post(count: int, devices: int) -> float:
    """Return what the observation and the usual search for devices add to a post, in us."""
    bodies = [body_of(count, number, devices) for number in range(max(1, 2 * devices // count))]
    best: dict[bool, float] = {}
    for watched in (False, True, False, True, False, True):
        tail, registry = Tail(), Devices()
        tail.watched = 1
        began_s, next_s, posts = time.process_time(), time.process_time() + 1, 0
        while (now_s := time.process_time()) < began_s + DECODE_S:
            for body in bodies[posts % len(bodies) :][:200]:
                decoded = take(body)
                if watched:
                    tail.observe(decoded)
                posts += 1
            if watched and now_s > next_s:
                next_s = now_s + 1
                registry.rejected(tail.take().rejected)
                if registry.is_due():
                    await registry.look()
        us = 1e6 * (time.process_time() - began_s) / posts
        best[watched] = min(us, best.get(watched, us))
    return best[True] - best[False]


async def measure_parts() -> None:
    """Measure and print a million devices that post once, and what is added to a post."""
    registry = Devices()
    take(body_of(100, 0, 100))
    await registry.look()
    before = rss_mib(os.getpid())
    for number in range(10_000):
        take(body_of(100, number, 1_000_000))
        if number % 500 == 499:
            await registry.look()
    grown = rss_mib(os.getpid()) - before
    counted = f"counted {registry.count:,}, exact: {registry.exact}"
    print(f"a million devices: {grown:.0f} MiB more memory; {counted}")
    for posts, devices in ((1, 2_000), (1, 30_000), (100, 2_000), (100, 30_000)):
        added = await observed_post(posts, devices)
        print(f"added to a post of {posts} ({devices:,} devices): {added:+.2f} us")


def main() -> int:
    """Measure and print all."""
    parser = argparse.ArgumentParser(description="The cost of the dashboard.")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run with pages")
    seconds = parser.parse_args().seconds
    asyncio.run(measure_parts())
    with running_service(*AS_DELIVERED) as service:
        asyncio.run(measure_pages(service, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
