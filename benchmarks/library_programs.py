"""Programs that use the library: an app of aiohttp with the pages, and one that only puts.

`python -m benchmarks.library_programs serve FLAGS` takes those of `ingest serve`, but needs a
database, and tells its addresses in the same file. Its app has all pages of the data port, and a
second one /readyz and /metrics. SIGTERM closes the pipeline first: until then posts are refused.
`.. put TASKS SECONDS URL FOLDER` puts 100 readings at a time, and prints its figures as JSON.
The event loop is uvloop, and the garbage collector is set, as `ingest serve` does it.
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

import orjson
import uvloop
from aiohttp import web

import ingest
import ingest.web
from ingest.cli.serve import collect_rarely
from loadgen.measure.histogram import Histogram

ROWS = 100  # of a put
FIRST_US = 1_700_000_000_000_000  # of the readings that are put
ALL = ("/{path:.*}",)
OF_PROCESS = ("log_level", "admin_token")  # settings that a pipeline does not have


async def serve(words: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    given = {words[at][2:].replace("-", "_"): words[at + 1] for at in range(0, len(words), 2)}
    listen, admin_listen = given.pop("listen"), given.pop("admin_listen")
    settings = {name: value for name, value in given.items() if name not in OF_PROCESS}
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    pipeline = ingest.Pipeline(**settings)

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(pipeline.state()), content_type="application/json")

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=pipeline.metrics())

    app, admin = web.Application(), web.Application()
    app.add_routes(ingest.web.routes(pipeline, access="open", only=ALL))
    admin.add_routes([web.get("/readyz", readyz), web.get("/metrics", metrics)])
    async with pipeline:
        runners = []
        for each, address in ((app, listen), (admin, admin_listen)):
            runner = web.AppRunner(each, access_log=None, auto_decompress=False)
            runners.append(runner)
            await runner.setup()
            host, _, port = address.rpartition(":")
            await web.TCPSite(runner, host, int(port), backlog=1_024).start()
        info = {
            "pid": os.getpid(),
            "listen": "{}:{}".format(*runners[0].addresses[0]),
            "admin_listen": "{}:{}".format(*runners[1].addresses[0]),
            "database_url": settings["database_url"],
        }
        told = Path(settings["state_dir"], "service.json")
        told.with_suffix(".new").write_text(json.dumps(info))
        told.with_suffix(".new").rename(told)
        await stopping.wait()
        drained = await pipeline.close()
        for runner in runners:
            await runner.cleanup()
    print("drained:", *(f"{name}={value}" for name, value in drained._asdict().items()))


async def put(tasks: int, seconds: float, url: str, folder: str) -> None:
    """Put from so many tasks for so long, until all is in the table; print the figures."""
    next_us = count(FIRST_US)

    async def work(until_s: float, took: Histogram) -> None:
        reading = {"metric": "temperature", "ts": 0, "value": 20.5}
        items = [{"device_id": f"device-{at * 7 % 200:03d}", **reading} for at in range(ROWS)]
        while (began_s := time.monotonic()) < until_s:
            for item in items:
                item["ts"] = next(next_us)
            await pipeline.put(items, ack="durable")
            took.add(time.monotonic() - began_s)

    async def drive(for_s: float) -> dict[str, float]:
        took = Histogram()
        began_s, used_s = time.monotonic(), time.process_time()
        await asyncio.gather(*(work(began_s + for_s, took) for _ in range(tasks)))
        while pipeline.core.ledger.held:  # noqa: ASYNC110  nothing tells it
            await asyncio.sleep(0.005)
        took_s, used_s = time.monotonic() - began_s, time.process_time() - used_s
        rows = took.count * ROWS
        return {
            "posts_per_s": took.count / for_s,
            "rows_per_s": rows / took_s,
            "p50_ms": took.quantile(0.5) * 1e3,
            "p99_ms": took.quantile(0.99) * 1e3,
            "server_cores": used_s / took_s,
            "cpu_us_per_reading": used_s / rows * 1e6,
        }

    async with ingest.Pipeline(url, state_dir=folder, partition_span="none") as pipeline:
        await drive(1.0)  # it warms up
        print(json.dumps(await drive(seconds)))


def main(words: Sequence[str]) -> None:
    """Do what the words say: see above."""
    collect_rarely()
    if words[0] == "serve":
        uvloop.run(serve(words[1:]))
    else:
        _, tasks, seconds, url, folder = words
        uvloop.run(put(int(tasks), float(seconds), url, folder))


if __name__ == "__main__":
    main(sys.argv[1:])
