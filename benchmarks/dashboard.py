"""What the dashboard costs: ten open pages, its feed, a million devices, and the door's posts.

python -m benchmarks.dashboard [--seconds 20]

Pages are raw readers of the feed that ask for devices as often as the real page does. CPU seconds
are the service's own, from /proc, so other work on the machine disturbs little. Posts are decoded
in this process, with and without the witness and the looks at the devices.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import REPOSITORY
from ingest.admin.dashboard.devices import Devices
from ingest.admin.dashboard.tail import Tail
from ingest.formats.json_post import decode
from ingest.formats.post import Decoded, Post, Rules

RULES = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
PAGES = 10
DEVICES_PERIOD_S = 5.0
DOOR_S = 1.5  # of CPU time, each way, three times
TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_bytes(pid: int | str) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Service:
    """`ingest serve` on free ports, by the command line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listen = self.admin = ""

    async def __aenter__(self) -> Service:
        flags = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        command = (sys.executable, "-m", "ingest", "serve", *flags)
        self.process = await asyncio.create_subprocess_exec(
            *(*command, "--state-dir", str(self._folder), "--log-level", "error"),
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode()
            if "/v1/readings" in text:
                self.listen = text.split("http://")[1].split("/")[0]
            if "/metrics" in text:
                self.admin = text.split("http://")[1].split("/")[0]
                return self
        raise RuntimeError("the service did not start")

    async def __aexit__(self, *_: object) -> None:
        self.process.terminate()
        await self.process.communicate()

    def cpu_s(self) -> float:
        """Return its CPU seconds so far."""
        return cpu_s(self.process.pid)


async def ask(address: str, target: str, body: bytes = b"") -> bytes:
    """Send one request; return what comes until the connection is closed."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    method = "POST" if body else "GET"
    head = f"{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer


class Pages:
    """Open pages, and the bytes of their feeds."""

    def __init__(self, address: str, count: int) -> None:
        self._address = address
        self._count = count
        self.feed_bytes = 0

    async def run(self, seconds: float) -> None:
        """Keep the pages open for so long."""
        await asyncio.gather(*(self._page(seconds) for _ in range(self._count)))

    async def _page(self, seconds: float) -> None:
        host, _, port = self._address.rpartition(":")
        await ask(self._address, "/history?since=0")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /feed?tail=true HTTP/1.1\r\nHost: {self._address}\r\n\r\n".encode())
        asking = asyncio.create_task(self._devices())
        try:
            async with asyncio.timeout(seconds):
                while data := await reader.read(65_536):
                    self.feed_bytes += len(data)
        except TimeoutError:
            pass
        finally:
            asking.cancel()
            writer.close()

    async def _devices(self) -> None:
        while True:
            await ask(self._address, "/devices?silent_s=60")
            await asyncio.sleep(DEVICES_PERIOD_S)


async def load(listen: str, posts_per_s: int, seconds: float) -> None:
    """Post arrays of 20 readings of 2,000 devices, evenly."""
    host, _, port = listen.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began_s = time.monotonic()
    number = 0
    while time.monotonic() - began_s < seconds:
        items = [
            {"device_id": f"device-{(number * 20 + i) % 2000}", "metric": "temperature", "value": i}
            for i in range(20)
        ]
        body = json.dumps(items).encode()
        head = f"POST /v1/readings HTTP/1.1\r\nHost: {listen}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        size = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(size)
        number += 1
        await asyncio.sleep(max(0.0, began_s + number / posts_per_s - time.monotonic()))
    writer.close()


async def pages(seconds: float) -> Iterator[tuple[str, float]]:
    """Measure ten pages on a service under a small load."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        async with Service(folder / "state") as service:
            await load(service.listen, 50, 3)
            shares: dict[int, float] = {}
            feed = 0
            for count in (0, PAGES, 0, PAGES):
                opened = Pages(service.admin, count)
                before = service.cpu_s()
                await asyncio.gather(load(service.listen, 50, seconds), opened.run(seconds))
                share = (service.cpu_s() - before) / seconds
                shares[count] = min(share, shares.get(count, share))
                feed = opened.feed_bytes or feed
    return iter(
        (
            ("ten pages, CPU of one core, %", round(100 * (shares[PAGES] - shares[0]), 2)),
            ("service without a page, CPU of one core, %", round(100 * shares[0], 2)),
            ("feed of one page, bytes/s", round(feed / PAGES / seconds)),
        )
    )


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
    """Decode as the door does."""
    return decode(body, Post(None, False, 1_790_000_000_000_000, 0.0, RULES))


async def observed_post(count: int, devices: int) -> float:
    """Return what witness and looks add to a post, in us; looks at its usual times."""
    bodies = [body_of(count, number, devices) for number in range(max(1, 2 * devices // count))]
    best: dict[bool, float] = {}
    for watched in (False, True, False, True, False, True):
        tail, registry = Tail(), Devices()
        tail.watched = 1
        began_s, next_s, posts = time.process_time(), time.process_time() + 1, 0
        while (now_s := time.process_time()) < began_s + DOOR_S:
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


async def million() -> tuple[float, int, bool]:
    """Let a million devices post once; return the growth of memory (MB), the count, exactness."""
    registry = Devices()
    take(body_of(100, 0, 100))
    await registry.look()
    before = rss_bytes("self")
    for number in range(10_000):
        take(body_of(100, number, 1_000_000))
        if number % 500 == 499:
            await registry.look()
    return (rss_bytes("self") - before) / 1e6, registry.count, registry.exact


async def measure(seconds: float) -> None:
    """Measure and print all."""
    grown, count, exact = await million()
    print(f"a million devices: {grown:.0f} MB more memory; counted {count:,}, exact: {exact}")
    for posts, devices in ((1, 2_000), (1, 30_000), (100, 2_000), (100, 30_000)):
        added = await observed_post(posts, devices)
        print(f"added to a post of {posts} ({devices:,} devices): {added:+.2f} us")
    for name, figure in await pages(seconds):
        print(f"{name}: {figure}")


def main() -> int:
    """Measure what was asked."""
    parser = argparse.ArgumentParser(description="What the dashboard costs.")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run with pages")
    asyncio.run(measure(parser.parse_args().seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
