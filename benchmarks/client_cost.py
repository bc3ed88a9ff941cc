"""What one request costs its sender: loadgen's own client beside aiohttp's, in CPU seconds.

`python -m benchmarks.client_cost`. Each run is a process of its own that posts the same ready
bodies, one reading each, over 64 connections to the same tiny server (another process, which
answers a fixed 202 to whatever comes); closed loop, uvloop, runs alternate. What counts is the CPU
time of the client's process between the first and the last request, user and system, so that it
does not matter who else uses the machine. Prints the medians, their spread and the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import aiohttp
import uvloop

from loadgen.driver.driver import Driver, Post
from loadgen.driver.ports import Loss
from loadgen.traffic.post import finish, head_of

CONNECTIONS = 64
ANSWER_BODY = b'{"accepted":1,"dead_lettered":0,"ack":"buffered","errors":[]}'
# As many bytes as the service sends.
ANSWER = (
    b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nDate: Wed, 25 Nov 2026 12:00:00 GMT\r\nServer: bench\r\n\r\n%b"
) % (len(ANSWER_BODY), ANSWER_BODY)


class Answering(asyncio.Protocol):
    """Answers each request, which comes in one piece, and looks at none."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self.transport.write(ANSWER)


def serve(says: Connection) -> None:
    """Serve for ever; say the port."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=1024)
        says.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(main())


def bodies(count: int) -> Iterator[bytes]:
    """Yield single readings, each timestamp new."""
    for number in range(count):
        yield (
            b'{"device_id":"device-%03d","metric":"temperature","ts":%d,"value":21.5}'
            % (number % 200, 1_750_000_000_000 + number)
        )


class Ready:
    """Hands out posts with bodies made ahead, and counts what was accepted."""

    def __init__(self, port: int, count: int) -> None:
        self._head = head_of("/v1/readings", f"127.0.0.1:{port}")
        self._bodies = enumerate(list(bodies(count)))
        self.accepted = 0

    def take(self) -> Post | None:
        """Return the next."""
        for number, body in self._bodies:
            return Post(finish(self._head, body), 1, "live", number)
        return None

    def sending(self, post: Post) -> None:
        """Pass over it."""

    def answered(
        self, post: Post, status: int, body: bytes, intended_s: float, now_s: float, *, final: bool
    ) -> None:
        """Count it."""
        self.accepted += status == 202

    def lost(self, loss: Loss) -> None:
        """Stop: nothing may be lost here."""
        raise RuntimeError(loss.why)


Client = Callable[[int, int], Coroutine[Any, Any, tuple[int, float]]]


async def by_loadgen(port: int, count: int) -> tuple[int, float]:
    """Return how many were accepted, and the CPU seconds that it took."""
    ready = Ready(port, count)
    began_s = time.process_time()
    await Driver("127.0.0.1", port, ready, ready, connections=CONNECTIONS).run()
    return ready.accepted, time.process_time() - began_s


async def by_aiohttp(port: int, count: int) -> tuple[int, float]:
    """The same by aiohttp's client as its manual shows it, one worker a connection."""
    url = f"http://127.0.0.1:{port}/v1/readings"
    left = iter(list(bodies(count)))
    accepted = 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal accepted
        for body in left:
            async with session.post(url, data=body) as response:
                await response.read()
                accepted += response.status == 202

    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    headers = {"Content-Type": "application/json"}
    began_s = time.process_time()
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await asyncio.gather(*(work(session) for _ in range(CONNECTIONS)))
    return accepted, time.process_time() - began_s


def measure(client: Client, port: int, count: int, says: Connection) -> None:
    """Post in a process of its own; say the microseconds of CPU a request."""
    accepted, cpu_s = uvloop.run(client(port, count))
    assert accepted == count, f"{accepted} of {count} accepted"
    says.send(cpu_s / count * 1e6)


@contextmanager
def child(work: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run something in a new process and listen to what it says."""
    context = multiprocessing.get_context("spawn")
    hears, says = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, says))
    process.start()
    says.close()
    try:
        yield hears
    finally:
        process.terminate()
        process.join()


def compare(runs: int, requests: int) -> dict[str, list[float]]:
    """Return the microseconds of CPU a request, of each client and run."""
    clients: dict[str, Client] = {"loadgen": by_loadgen, "aiohttp": by_aiohttp}
    found: dict[str, list[float]] = {name: [] for name in clients}
    with child(serve) as server:
        port = server.recv()
        for _ in range(runs):
            for name, client in clients.items():
                with child(measure, client, port, requests) as result:
                    found[name].append(result.recv())
    return found


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_cost", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each client (%(default)s)")
    parser.add_argument("--requests", type=int, default=40_000, help="a run (%(default)s)")
    parser.add_argument("--json", type=Path, help="append one line of all figures to this file")
    options = parser.parse_args()
    found = compare(options.runs, options.requests)
    medians = {name: statistics.median(each) for name, each in found.items()}
    print(
        f"CPU of the client a request, {options.requests:,} single readings, {CONNECTIONS} "
        f"connections, medians of {options.runs} alternating runs, Python "
        f"{platform.python_version()}, aiohttp {aiohttp.__version__}, {os.cpu_count()} cores"
    )
    for name, each in found.items():
        print(f"  {name:8} {medians[name]:7.1f} us   ({min(each):.1f} to {max(each):.1f})")
    print(f"  ratio    {medians['aiohttp'] / medians['loadgen']:7.2f}")
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps({"cpu_us_per_request": found}) + "\n")


if __name__ == "__main__":
    main()
