"""The library in use: an app of aiohttp with the pages of the data port, and tasks that put.

`python -m benchmarks.library serve FLAGS` takes the flags of `ingest serve`, but needs a database.
It tells its addresses in the same file, and in its first line. The app has all pages of the data
port, and a second app /readyz and /metrics. SIGTERM closes the pipeline first: until then posts are
refused. The event loop is uvloop, and the garbage collector is set, as `ingest serve` does it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import uvloop
from aiohttp import web
from prometheus_client import REGISTRY, generate_latest

import ingest
import ingest.web
from ingest.cli.serve import collect_rarely
from loadgen.measure.histogram import Histogram

ROWS = 100  # of a put
FIRST_US = 1_700_000_000_000_000
ALL = ("/{path:.*}",)
OF_PROCESS = ("log_level", "admin_token")  # settings that a pipeline does not have


async def serve(words: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    given = {words[at][2:].replace("-", "_"): words[at + 1] for at in range(0, len(words), 2)}
    addresses = given.pop("listen"), given.pop("admin_listen")
    pipeline = ingest.Pipeline(**{k: v for k, v in given.items() if k not in OF_PROCESS})
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)

    async def readyz(_request: web.Request) -> web.Response:
        return web.json_response(pipeline.state())

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest())

    app, admin = web.Application(), web.Application()
    app.add_routes(ingest.web.routes(pipeline, access="open", only=ALL))
    admin.add_routes([web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runners = [web.AppRunner(each, access_log=None, auto_decompress=False) for each in (app, admin)]
    async with pipeline:
        REGISTRY.register(pipeline.collector)
        for runner, address in zip(runners, addresses, strict=True):
            await runner.setup()
            host, port = address.split(":")
            await web.TCPSite(runner, host, int(port), backlog=1_024).start()
        listen, admin_listen = ("{}:{}".format(*runner.addresses[0]) for runner in runners)
        info = {"pid": os.getpid(), "listen": listen, "admin_listen": admin_listen}
        file = Path(given["state_dir"], "app.json")
        file.write_text(json.dumps({**info, "database_url": given["database_url"]}))
        file.rename(file.with_name("service.json"))
        print(f"http://{listen}/v1/readings http://{admin_listen}/metrics", flush=True)
        await stopping.wait()
        print("drained:", await pipeline.close())
        for runner in runners:
            await runner.cleanup()


async def puts(url: str, folder: Path, tasks: int, seconds: float) -> dict[str, float]:
    """Put from so many tasks for so long; return the figures, until all is in the table."""
    next_us, took = count(FIRST_US), Histogram()

    async def work() -> None:
        devices = [f"device-{at * 7 % 200:03d}" for at in range(ROWS)]
        items = [{"device_id": each, "metric": "temperature", "value": 20.5} for each in devices]
        while (put_s := time.monotonic()) < until_s:
            for item in items:
                item["ts"] = next(next_us)
            await pipeline.put(items, ack="durable")
            took.add(time.monotonic() - put_s)

    async with ingest.Pipeline(url, state_dir=folder, partition_span="none") as pipeline:
        began_s, used_s = time.monotonic(), time.process_time()
        until_s = began_s + seconds
        await asyncio.gather(*(work() for _ in range(tasks)))
        rows = (await pipeline.close()).committed
    took_s, used_s = time.monotonic() - began_s, time.process_time() - used_s
    return {
        "posts_per_s": took.count / seconds,
        "rows_per_s": rows / took_s,
        "p50_ms": took.quantile(0.5) * 1e3,
        "p99_ms": took.quantile(0.99) * 1e3,
        "server_cores": used_s / took_s,
        "cpu_us_per_reading": used_s / rows * 1e6,
    }


def main(words: Sequence[str]) -> None:
    """Do `serve`: see above."""
    collect_rarely()
    uvloop.run(serve(words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
