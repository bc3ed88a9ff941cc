"""Hostile clients: `python -m benchmarks.attackers half_heads PORT`, `.. bombs PORT`.

`half_heads` keeps HALF_HEADS connections that have sent half of a request's head, and opens a new
one for each that the service closes. `bombs` posts gzip bombs of BOMB_BYTES on BOMBERS connections,
one after another. Both print `ready` when all connections attack, and go on until they are killed.
`bombs` ends with an error if a bomb is not answered with 413.
"""

from __future__ import annotations

import asyncio
import gzip
import sys

import aiohttp
import uvloop

from benchmarks.processes import raise_open_files_limit

HALF_HEADS = 10_000
HALF_HEAD = b"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Ty"
OPENED_AT_ONCE = 50
BOMB_BYTES = 200 * 1024**2
BOMBERS = 8
PAUSE_S = 0.02  # of a bomber: else they would use the core of the ordinary client
KINDS = ("half_heads", "bombs")
READY = "ready"


async def half_heads(port: int) -> None:
    """Keep the connections, for ever."""
    opened = 0

    async def keep() -> None:
        nonlocal opened
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(HALF_HEAD)
                opened += 1
                if opened == HALF_HEADS:
                    print(READY, flush=True)
                await reader.read()
                writer.close()
            except OSError:
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        for number in range(1, HALF_HEADS + 1):
            group.create_task(keep())
            if number % OPENED_AT_ONCE == 0:
                await asyncio.sleep(0.01)


async def bombs(port: int) -> None:
    """Post bombs, for ever. Raises RuntimeError if one is not refused for its size."""
    bomb = gzip.compress(bytes(BOMB_BYTES), 9)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    url = f"http://127.0.0.1:{port}/v1/readings"
    refused = 0

    async def post(session: aiohttp.ClientSession) -> None:
        nonlocal refused
        while True:
            async with session.post(url, data=bomb, headers=headers) as answer:
                if answer.status != 413:
                    raise RuntimeError(f"a bomb got {answer.status}: {await answer.text()}")
            refused += 1
            if refused == BOMBERS:
                print(READY, flush=True)
            await asyncio.sleep(PAUSE_S)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(BOMBERS):
            group.create_task(post(session))


def main(kind: str, port: str) -> None:
    """Attack until killed."""
    raise_open_files_limit()
    uvloop.run({"half_heads": half_heads, "bombs": bombs}[kind](int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
