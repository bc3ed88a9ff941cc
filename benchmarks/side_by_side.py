"""The whole service beside its floors, alternating in one run: `./run bench`.

Door: single readings by wrk, 64 connections, against a bare aiohttp handler that decodes the same
body. Database: posts of 100 by wrk, rows committed a second, against asyncpg COPY of ready bytes on
2 connections in batches of 5,000. Every timestamp is new, tables are fresh, the embedded
PostgreSQL has its durable defaults. Prints medians and spreads; needs wrk on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop
from aiohttp import web

from ingest.block import HEADER, TRAILER, encode_reading
from ingest.reading import Reading
from ingest.schema import apply

HERE = Path(__file__).parent
CONNECTIONS = 64
COPY_ROWS, COPY_CONNECTIONS, COPY_BATCH_ROWS = 1_000_000, 2, 5_000


class Plain(msgspec.Struct):
    """What the bare handler decodes."""

    device_id: str
    metric: str
    value: float
    ts: int


def bare_handler(port: int) -> None:
    """Serve the floor of the door: decode, answer, keep nothing."""
    decoder = msgspec.json.Decoder(Plain)

    async def handle(request: web.Request) -> web.Response:
        decoder.decode(await request.read())
        return web.Response(body=b'{"accepted":1}', status=202, content_type="application/json")

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/readings", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    uvloop.run(main())


def wrk(script: str, port: int, seconds: float, first_us: int) -> dict[str, float]:
    """Drive one port; return requests a second, refused answers, and wrk's own CPU share."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(
        [
            *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency"),
            *("-s", str(HERE / script), f"http://127.0.0.1:{port}/v1/readings"),
            *("--", str(first_us)),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    total = re.search(r"(\d+) requests in", out)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    assert rate is not None, out
    assert total is not None, out
    assert p99 is not None, out
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rate": float(rate[1]),
        "requests": float(total[1]),
        "refused": float(refused[1]) if refused else 0.0,
        "p99_ms": float(p99[1]) * scale,
        "driver_cpu": cpu_s / seconds,
    }


class Service:
    """The real command line on free ports, with a state folder of its own."""

    def __init__(self, *flags: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ingest-bench-"))
        self.folder.chmod(0o755)
        command = [sys.executable, "-m", "ingest", "serve", "--state-dir", str(self.folder)]
        command += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        info = self.folder / "service.json"
        while not info.exists():
            assert self.process.poll() is None, "the service did not start"
            time.sleep(0.02)
        self.info = json.loads(info.read_text())
        while self.state() == "starting":
            time.sleep(0.02)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.info['admin_listen']}{path}") as answer:
            return str(answer.read().decode())

    def state(self) -> str:
        """Return the state of /readyz."""
        try:
            return str(json.loads(self._get("/readyz"))["state"])
        except OSError:
            return "starting"

    def samples(self) -> dict[str, float]:
        """Return all samples of /metrics by their text."""
        lines = (line for line in self._get("/metrics").splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def rss_mib(self) -> float:
        """Return the peak memory of the service's own process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        assert found
        return int(found[1]) / 1024

    def cpu_s(self) -> float:
        """Return the CPU seconds of the service's own process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def port(self) -> int:
        """Return the data port."""
        return int(self.info["listen"].rpartition(":")[2])

    def stop(self) -> str:
        """Drain; return what it said at the end."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)
        return out.strip().splitlines()[-1] if out.strip() else ""


def measure_service(script: str, seconds: float, rows_a_post: int) -> dict[str, float]:
    """Measure a fresh service under wrk: answers and rows a second, until all is committed."""
    service = Service()
    try:
        wrk(script, service.port(), 1, 1_600_000_000_000_000)  # warm up
        before = service.samples()["ingest_readings_committed_total"]
        began_s, cpu_s = time.monotonic(), service.cpu_s()
        result = wrk(script, service.port(), seconds, 1_700_000_000_000_000)
        result["service_cpu"] = (service.cpu_s() - cpu_s) / seconds
        while service.samples()["ingest_readings_held"] > 0:
            time.sleep(0.01)
        took_s = time.monotonic() - began_s
        samples = service.samples()
        result["rows_per_s"] = (samples["ingest_readings_committed_total"] - before) / took_s
        result["imbalance"] = samples["ingest_ledger_imbalance_rows"]
        result["rss_mib"] = service.rss_mib()
        result["rows_a_post"] = rows_a_post
    finally:
        service.stop()
    return result


def measure_bare(seconds: float) -> dict[str, float]:
    """Measure the bare handler in a process of its own."""
    import socket  # noqa: PLC0415  only here

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=bare_handler, args=(port,))
    process.start()
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        wrk("singles.lua", port, 1, 1_600_000_000_000_000)
        return wrk("singles.lua", port, seconds, 1_700_000_000_000_000)
    finally:
        process.terminate()
        process.join()


def ready_batches() -> list[bytes]:
    """Encode COPY_ROWS fresh rows ahead, like those of the posts."""
    first_us = 1_700_000_000_000_000
    rows = (
        encode_reading(
            Reading(first_us + n, f"device-{n * 7 % 200:03d}", "temperature", 20.0 + n % 500 / 100)
        )
        for n in range(COPY_ROWS)
    )
    flat = list(rows)
    return [
        HEADER + b"".join(flat[at : at + COPY_BATCH_ROWS]) + TRAILER
        for at in range(0, COPY_ROWS, COPY_BATCH_ROWS)
    ]


def measure_copy(batches: list[bytes]) -> dict[str, float]:
    """Measure asyncpg COPY of ready bytes into a fresh keyed table of the embedded server."""
    service = Service()  # for its database; the service itself idles
    try:
        return asyncio.run(_copy(service.info["database_url"], batches))
    finally:
        service.stop()


async def _copy(url: str, batches: list[bytes]) -> dict[str, float]:
    lines = [await asyncpg.connect(url) for _ in range(COPY_CONNECTIONS)]
    await lines[0].execute("drop table if exists readings")
    await apply(lines[0])
    todo = iter(batches)

    async def work(line: Any) -> None:
        for batch in todo:

            async def source(ready: bytes = batch) -> Any:
                yield ready

            await line.copy_to_table("readings", source=source(), format="binary")

    began_s = time.monotonic()
    await asyncio.gather(*(work(line) for line in lines))
    took_s = time.monotonic() - began_s
    for line in lines:
        await line.close()
    return {"rows_per_s": len(batches) * COPY_BATCH_ROWS / took_s}


def spread(name: str, results: list[dict[str, float]], key: str) -> float:
    """Print and return the median of one figure."""
    values = sorted(result[key] for result in results)
    median = statistics.median(values)
    print(f"  {name:34} {median:12,.1f}   ({values[0]:,.1f} to {values[-1]:,.1f})")
    return median


def main() -> None:
    """Run everything, alternating, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--json", help="append one line of all figures to this file")
    options = parser.parse_args()
    batches = ready_batches()
    cases: dict[str, Callable[[], dict[str, float]]] = {
        "bare": lambda: measure_bare(options.seconds),
        "singles": lambda: measure_service("singles.lua", options.seconds, 1),
        "copy": lambda: measure_copy(batches),
        "hundreds": lambda: measure_service("hundreds.lua", options.seconds, 100),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for run in range(options.runs):
        for name, case in cases.items():
            results[name].append(case())
            print(f"run {run + 1} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    print(
        f"medians of {options.runs} alternating runs, {options.seconds:g} s, {os.cpu_count()} cores"
    )
    bare = spread("bare aiohttp, posts/s", results["bare"], "rate")
    singles = spread("service, single readings, posts/s", results["singles"], "rate")
    spread("  refused", results["singles"], "refused")
    spread("  p99, ms", results["singles"], "p99_ms")
    spread("  peak RSS, MiB", results["singles"], "rss_mib")
    spread("  driver's CPU, cores", results["singles"], "driver_cpu")
    copy = spread("COPY of ready bytes, rows/s", results["copy"], "rows_per_s")
    hundreds = spread("service, posts of 100, rows/s", results["hundreds"], "rows_per_s")
    spread("  refused", results["hundreds"], "refused")
    spread("  p99, ms", results["hundreds"], "p99_ms")
    spread("  peak RSS, MiB", results["hundreds"], "rss_mib")
    spread("  driver's CPU, cores", results["hundreds"], "driver_cpu")
    print(f"ratios: singles {singles / bare:.2f} of the door's floor")
    print(f"        posts of 100 {hundreds / copy:.2f} of the database's floor")
    if options.json:
        with Path(options.json).open("a") as file:
            file.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
