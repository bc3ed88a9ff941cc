"""Programs of our own that the service is compared with: floors, and the usual first program.

`python -m benchmarks.floors PORT bare` decodes a post, answers, and keeps nothing: the floor of the
receiver (uvloop, msgspec). `.. PORT first URL` is what people write first: aiohttp, an asyncpg
pool, one INSERT a reading, each in its own transaction, into the same keyed table. `.. PORT tuned
URL` is the same on uvloop and with msgspec. `.. PORT fixed` is the floor of a new connection: a
server of uvloop that reads nothing, gives one answer and closes. `.. PORT tls CERT KEY` is the same
in a loop of blocking calls, with the TLS of Python. The floor of the database is `copy`: ready
bytes by asyncpg.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, cast

import asyncpg
import msgspec
import uvloop
from aiohttp import web

from benchmarks.database import connected
from ingest.model.block import HEADER, TRAILER, encode_reading
from ingest.model.reading import Reading
from ingest.sinks.postgres.schema import KEY, TABLE

COPY_CONNECTIONS = 2
COPY_BATCHES = (1_000, 5_000)
INSERT = f"insert into {TABLE} (ts, device_id, metric, value) values ($1, $2, $3, $4)"
ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
BACKLOG = 2_048
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


class Fixed(asyncio.Protocol):
    """Gives one answer to whatever comes, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self._transport.write(ANSWER)
        self._transport.close()


async def serve_fixed(port: int) -> None:
    """Serve one answer for each connection until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Fixed, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


def serve_tls(port: int, cert_file: str, key_file: str) -> None:
    """Do the same over TLS, one connection after another."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    context.num_tickets = 1  # as the service
    with socket.create_server(("127.0.0.1", port), backlog=BACKLOG) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                secured = context.wrap_socket(connection, server_side=True)
                secured.recv(65_536)
                secured.send(ANSWER)
                secured.close()


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
    """Serve `PORT KIND ..`: see above."""
    port, kind, *more = words
    if kind == "tls":
        serve_tls(int(port), *more)
    run = asyncio.run if kind == "first" else uvloop.run
    run(serve_fixed(int(port)) if kind == "fixed" else serve(int(port), kind, *more))


if __name__ == "__main__":
    main(sys.argv[1:])
