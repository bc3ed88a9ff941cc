"""`./run demo`: the service with a state folder of its own, and a simulated fleet that posts to it.

Promises: never touches the usual state folder or an INGEST_DATABASE_URL; Ctrl-C stops the fleet,
then the service in order. Exit code 0 after Ctrl-C, 1 if the service ends by itself.
Does not: measure; its figures are for watching.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadgen.client import Client, GaveUp
from loadgen.demo_service import Service, ServiceEnded
from loadgen.fleet import Device, make_fleet, report
from loadgen.local_service import NoHome, full_path

READINGS_A_REPORT = 2.0
MOMENTS_A_POST_MAX = 100  # what a device keeps while it is cut off
PLAIN_LINE_S = 5.0
LIVE_LINE_S = 0.5
WINDOW_POSTS = 2_000  # the p99 is over so many
LAST_POSTS_S_MAX = 5.0


class Fleet:
    """All devices, posting; and the figures of the last moments."""

    def __init__(self, client: Client, devices: Sequence[Device], period_s: float) -> None:
        self.accepted = 0
        self.refused = 0
        self.given_up = 0
        self.last_refusal = ""
        self._client = client
        self._devices = devices
        self._period_s = period_s
        self._took_s: deque[float] = deque(maxlen=WINDOW_POSTS)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Let every device report once a period, spread evenly, until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            for device in self._devices:
                tasks.create_task(self._report(device))

    def stop(self) -> None:
        """Begin nothing new; posts that are under way are finished."""
        self._stopping.set()

    async def _report(self, device: Device) -> None:
        next_s = time.time() + random.uniform(0, self._period_s)
        due: list[float] = []
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next_s - time.time()):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            while next_s <= time.time():  # more than one if the last post took long
                due.append(next_s)
                next_s += self._period_s
            body, readings = report(device, due[-MOMENTS_A_POST_MAX:])
            due.clear()
            try:
                answer = await self._client.post(body)
            except GaveUp:
                self.given_up += readings
                continue
            self._took_s.append(answer.took_s)
            self.accepted += answer.accepted
            if not answer.ok or answer.dead_lettered:
                self.refused += readings - answer.accepted
                self.last_refusal = f"{answer.status} {answer.code} {answer.detail}".strip()

    def p99_s(self) -> float:
        """Return how long the slowest of 100 answers took lately, in seconds."""
        took_s = sorted(self._took_s)
        return took_s[int(len(took_s) * 0.99)] if took_s else 0.0


class Status:
    """The line that says how it goes."""

    def __init__(self, client: Client, fleet: Fleet, service: Service) -> None:
        self._client = client
        self._fleet = fleet
        self._service = service
        self._before = (time.monotonic(), 0)

    async def line(self, session: aiohttp.ClientSession) -> str:
        """Return the line; the service's own counts are read from its metrics."""
        now_s, (before_s, before_posts) = time.monotonic(), self._before
        self._before = (now_s, self._client.posts)
        posts_per_s = (self._client.posts - before_posts) / max(now_s - before_s, 1e-9)
        theirs = await self._scrape(session)
        line = (
            f"{posts_per_s:4.0f} posts/s | {self._fleet.accepted:,} readings accepted | "
            f"{theirs.get('ingest_readings_committed_total', 0):,.0f} committed | "
            f"{theirs.get('ingest_readings_held', 0):,.0f} held | "
            f"answer p99 {self._fleet.p99_s() * 1000:.1f} ms"
        )
        if self._client.trouble:
            line += f" | trying again: {self._client.trouble[:80]}"
        if self._fleet.refused:
            line += f" | {self._fleet.refused} refused: {self._fleet.last_refusal[:80]}"
        if self._fleet.given_up:
            line += f" | {self._fleet.given_up} given up"
        return line

    async def _scrape(self, session: aiohttp.ClientSession) -> dict[str, float]:
        try:
            async with session.get(self._service.metrics_url) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return {}
        samples = (each.rpartition(" ") for each in text.splitlines() if each[:1] not in {"", "#"})
        return {name: float(value) for name, _, value in samples if "{" not in name}


async def _watch(status: Status) -> None:
    """Show the status until cancelled: one live line on a terminal, else a line now and then."""
    console = Console()
    timeout = aiohttp.ClientTimeout(total=2)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        if not console.is_terminal:
            while True:
                await asyncio.sleep(PLAIN_LINE_S)
                print(await status.line(session), flush=True)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(LIVE_LINE_S)
                text = Text(await status.line(session), no_wrap=True, overflow="ellipsis")
                live.update(text, refresh=True)


async def demo(chosen: argparse.Namespace, service_flags: Sequence[str]) -> int:
    """Run service and fleet until a signal, or until the service ends; return the exit code."""
    stopping = asyncio.Event()
    service = Service(chosen.state_dir, service_flags)

    def on_signal() -> None:
        if stopping.is_set():
            service.terminate()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        if await _unless(stopping, service.start()):
            _introduce(service, chosen)
            await _post(chosen, service, stopping)
    except ServiceEnded as end:
        print(end, file=sys.stderr)
        return 1
    code, last_line = await service.stop()
    print(last_line)
    return 0 if code == 0 else 1


async def _unless(stopping: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Run `work` to its end, or until `stopping`; return whether it came to its end."""
    running = asyncio.create_task(work)
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if running.done():
        await running
        return True
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return False


def _introduce(service: Service, chosen: argparse.Namespace) -> None:
    look = "select * from readings order by ts desc limit 10"
    print(
        f"{chosen.devices} devices post about {chosen.rate:g} readings/s to {service.url}\n"
        f"dashboard: {service.metrics_url.removesuffix('metrics')}\n"
        f"metrics: {service.metrics_url}\n"
        f"look at the data: ./run psql --state-dir {shlex.quote(str(chosen.state_dir))} "
        f"-c '{look}'\n"
        f"the service's log: {service.log_path}\n"
        "Ctrl-C stops the fleet, then the service",
        flush=True,
    )


async def _post(chosen: argparse.Namespace, service: Service, stopping: asyncio.Event) -> None:
    """Let the fleet post until `stopping`. Raises ServiceEnded."""
    devices = make_fleet(chosen.devices, chosen.seed)
    client = Client(service.url, connections_max=chosen.devices, give_up_s=60)
    async with client:
        fleet = Fleet(client, devices, chosen.devices * READINGS_A_REPORT / chosen.rate)
        posting = asyncio.create_task(fleet.run())

        async def until_one_ends() -> None:
            await asyncio.gather(service.ended(), asyncio.shield(posting))

        watching = asyncio.create_task(_watch(Status(client, fleet, service)))
        try:
            await _unless(stopping, until_one_ends())
            fleet.stop()
            await asyncio.wait({posting}, timeout=LAST_POSTS_S_MAX)
        finally:
            for task in (posting, watching):
                task.cancel()
            await asyncio.gather(posting, watching, return_exceptions=True)
    print(f"fleet stopped: {fleet.accepted:,} readings accepted", flush=True)


def usual_state_dir() -> Path:
    """Return the demo's own state folder, beside the usual one of the service. Raises NoHome."""
    if os.geteuid() == 0:
        return Path("/var/lib/iot-ingest-demo")
    base = os.environ.get("XDG_STATE_HOME") or full_path("~") / ".local/state"
    return Path(base) / "iot-ingest-demo"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run demo",
        description="The service, with a state folder of its own, and a simulated fleet.",
        epilog="Other flags go to `ingest serve`, such as --listen 127.0.0.1:9000.",
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, default=200, help="default: %(default)s")
    parser.add_argument(
        "--rate", type=float, default=300, help="readings a second (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the fleet (default: %(default)s)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        help="default: iot-ingest-demo, beside the usual one of the service",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = _parser()
    chosen, service_flags = parser.parse_known_args(arguments)
    if chosen.devices < 1 or chosen.devices > 10_000 or not 0 < chosen.rate < 1e6:
        parser.error("--devices is 1 to 10000, --rate more than 0")
    try:
        chosen.state_dir = full_path(chosen.state_dir or usual_state_dir())
        if not chosen.state_dir.exists():
            chosen.state_dir.mkdir(parents=True)
            chosen.state_dir.chmod(0o755)  # the database's user, if we are root, must pass
    except NoHome as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot make {chosen.state_dir}: {error.strerror}; choose --state-dir")
    return asyncio.run(demo(chosen, service_flags))


if __name__ == "__main__":
    sys.exit(main())
