"""Programs of our own that the service is compared with: floors, and the usual first program.

`python -m benchmarks.floors PORT bare` decodes a post, answers, and keeps nothing: the floor of the
receiver (uvloop, msgspec). `.. PORT first URL` is what people write first: aiohttp, an asyncpg
pool, one INSERT a reading, each in its own transaction, into the same keyed table. `.. PORT tuned
URL` is the same on uvloop and with msgspec. The floor of the database is `copy`: ready bytes by
asyncpg.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import asyncpg
import msgspec
import uvloop
from aiohttp import web

from benchmarks.database import connected
from ingest.model.reading import Reading
from ingest.model.rows import HEADER, TRAILER, encode_reading
from ingest.sinks.postgres.target import KEY, TABLE

COPY_CONNECTIONS = 2
COPY_BATCHES = (1_000, 5_000)
INSERT = f"insert into {TABLE} (ts, device_id, metric, value) values ($1, $2, $3, $4)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Plain(msgspec.Struct):
    """A reading as the bare handler decodes it; `ts` is Unix microseconds."""

    device_id: str
    metric: str
    value: float
    ts: int


class Item(TypedDict):
    """The same as a dict, which is what json.loads gives."""

    device_id: str
    metric: str
    value: float
    ts: int


Handler = Callable[[web.Request], Awaitable[web.Response]]


def bare_handler() -> Handler:
    """Decode, answer, keep nothing."""
    decoder = msgspec.json.Decoder(Plain)

    async def handle(request: web.Request) -> web.Response:
        decoder.decode(await request.read())
        return web.Response(body=b'{"accepted":1}', status=202, content_type="application/json")

    return handle


async def insert_handler(url: str, decode: Callable[[bytes], Any]) -> Handler:
    """Decode, insert one by one, answer."""
    pool = await asyncpg.create_pool(url)

    async def handle(request: web.Request) -> web.Response:
        found = decode(await request.read())
        readings = found if isinstance(found, list) else [found]
        async with pool.acquire() as connection:
            for each in readings:
                ts = EPOCH + timedelta(microseconds=each["ts"])
                values = each["device_id"], each["metric"], each["value"]
                await connection.execute(INSERT, ts, *values)
        return web.json_response({"accepted": len(readings)}, status=201)

    return handle


async def serve(port: int, kind: str, url: str = "") -> None:
    """Serve one of the handlers until killed."""
    if kind == "bare":
        handle = bare_handler()
    else:
        decode = json.loads if kind == "first" else msgspec.json.Decoder(Item | list[Item]).decode
        handle = await insert_handler(url, decode)
    app = web.Application()
    app.router.add_post("/v1/readings", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def ready_batches(rows: int, batch_rows: int, first_us: int) -> list[bytes]:
    """Encode fresh rows like those of the posts of 100, as whole binary COPY streams."""
    streams = []
    for first in range(0, rows, batch_rows):
        tuples = b"".join(
            encode_reading(
                Reading(
                    first_us + n, f"device-{n * 7 % 200:03d}", "temperature", 20 + n % 500 / 100
                )
            )
            for n in range(first, min(first + batch_rows, rows))
        )
        streams.append(b"".join((HEADER, tuples, TRAILER)))
    return streams


async def copy(url: str, streams: Sequence[bytes]) -> float:
    """COPY all streams over COPY_CONNECTIONS; return the seconds that it took."""
    todo = iter(streams)

    async def work(connection: asyncpg.Connection) -> None:
        for stream in todo:
            await connection.copy_to_table(
                TABLE,
                source=memoryview(stream),  # type: ignore[arg-type]  # sent in one piece
                columns=KEY,
                format="binary",
            )

    async with AsyncExitStack() as ending:
        connections = [
            await ending.enter_async_context(connected(url)) for _ in range(COPY_CONNECTIONS)
        ]
        began_s = time.monotonic()
        await asyncio.gather(*map(work, connections))
        return time.monotonic() - began_s


def main(words: Sequence[str]) -> None:
    """Serve `PORT bare`, `PORT first URL` or `PORT tuned URL`."""
    port, kind, *url = words
    run = asyncio.run if kind == "first" else uvloop.run
    run(serve(int(port), kind, *url))


if __name__ == "__main__":
    main(sys.argv[1:])
