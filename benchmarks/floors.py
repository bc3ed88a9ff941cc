"""What the service is measured against that we wrote ourselves: floors, and the obvious way.

`python -m benchmarks.floors bare PORT` answers after decoding and keeps nothing: the floor of the
door (uvloop, msgspec). `.. first PORT URL` is what people write first: aiohttp, an asyncpg pool,
one INSERT a reading, each its own transaction, into the same keyed table; `.. tuned PORT URL` is
the same on uvloop and with msgspec. The floor of the database is `copy`: ready bytes by asyncpg.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import asyncpg
import msgspec
import uvloop
from aiohttp import web

from ingest.model.reading import Reading
from ingest.model.rows import HEADER, TRAILER, encode_reading
from ingest.sinks.postgres.schema import KEY, TABLE, apply

COPY_CONNECTIONS = 2
COPY_BATCHES = (1_000, 5_000)
INSERT = f"insert into {TABLE} (ts, device_id, metric, value) values ($1, $2, $3, $4)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Plain(msgspec.Struct):
    """A reading as the handlers decode it; `ts` is Unix microseconds."""

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
        async with pool.acquire() as line:
            for each in readings:
                ts = EPOCH + timedelta(microseconds=each["ts"])
                await line.execute(INSERT, ts, each["device_id"], each["metric"], each["value"])
        return web.json_response({"accepted": len(readings)}, status=201)

    return handle


async def serve(kind: str, port: int, url: str) -> None:
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


async def fresh_table(url: str) -> None:
    """Make the table anew, and let the server settle."""
    line = await asyncpg.connect(url)
    try:
        await line.execute(f"drop table if exists {TABLE}")
        await apply(line)
        await line.execute("checkpoint")
    finally:
        await line.close()


async def settle(url: str) -> None:
    """Do what the server would do by itself some time after a large load."""
    line = await asyncpg.connect(url)
    try:
        await line.execute(f"vacuum (freeze, analyze) {TABLE}")
        await line.execute("checkpoint")
    finally:
        await line.close()


async def copy(url: str, streams: Sequence[bytes]) -> float:
    """COPY all streams over COPY_CONNECTIONS; return the seconds that it took."""
    lines = [await asyncpg.connect(url) for _ in range(COPY_CONNECTIONS)]
    todo = iter(streams)

    async def work(line: asyncpg.Connection) -> None:
        for stream in todo:
            await line.copy_to_table(
                TABLE,
                source=memoryview(stream),  # type: ignore[arg-type]  # sent in one piece
                columns=KEY,
                format="binary",
            )

    try:
        began_s = time.monotonic()
        await asyncio.gather(*(work(line) for line in lines))
        return time.monotonic() - began_s
    finally:
        for line in lines:
            await line.close()


def main(words: Sequence[str]) -> None:
    """Serve `bare PORT`, `first PORT URL` or `tuned PORT URL`."""
    kind, port = words[0], int(words[1])
    run = asyncio.run if kind == "first" else uvloop.run
    run(serve(kind, port, "".join(words[2:])))


if __name__ == "__main__":
    main(sys.argv[1:])
