"""The service with a state folder of its own, and a simulated fleet that posts to it: `./run demo`.

Promises: never touches the usual state folder or an INGEST_DATABASE_URL; Ctrl-C stops the fleet,
then the service in order, and removes the demo's folder, unless it was there before. Exit code 0
after Ctrl-C, 1 if the service ends by itself (then the folder stays: its log may say why).
Does not: measure; its figures are only for people to watch.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from pathlib import Path

from loadgen.demo.folder import DemoFolder, usual_folder
from loadgen.demo.service import Service, ServiceEnded
from loadgen.driver.retry import Retry
from loadgen.live import shown
from loadgen.measure.load import Load, LoadPlan
from loadgen.measure.pace import Pace
from loadgen.proof.local_service import NoHome, find, full_path
from loadgen.traffic.post import target_of
from loadgen.traffic.schedule import constant
from loadgen.traffic.traffic import Recipe

READINGS_A_POST = 2  # those of one device
GIVE_UP_S = 60.0
LAST_POSTS_S_MAX = 5.0
RUN = os.environ.get("INGEST_COMMAND", "ingest")  # says who starts it: ./run, or nobody
PROGRAM = f"{RUN} demo" if RUN == "./run" else "python -m loadgen.demo"


async def demo(chosen: argparse.Namespace, service_flags: Sequence[str]) -> int:
    """Run service and fleet until a signal, or until the service ends; return the exit code."""
    stopping = asyncio.Event()
    folder: DemoFolder = chosen.folder
    service = Service(folder.path, service_flags)

    def on_signal() -> None:
        if stopping.is_set():
            service.terminate()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        if await _unless(stopping, service.start()):
            _introduce(service, chosen, folder)
            await _post(chosen, service, stopping)
    except ServiceEnded as end:
        print(end, file=sys.stderr)
        if service.url or not folder.remove():
            print(f"kept: {folder.path}", file=sys.stderr)
        return 1
    code, last_line = await service.stop()
    print(last_line)
    if code == 0:
        print("removed: " if folder.remove() else "kept: ", folder.path, sep="")
    return 0 if code == 0 else 1


async def _unless(stopping: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Run `work` to its end, or until `stopping`; return whether it has ended."""
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


def _introduce(service: Service, chosen: argparse.Namespace, folder: DemoFolder) -> None:
    look = "select * from readings order by ts desc limit 10"
    end = "removed at the end; --keep keeps it" if folder.is_temporary else folder.why_kept
    print(
        f"{chosen.devices} devices post about {chosen.rate:g} readings/s to {service.url}\n"
        f"dashboard: {_page(service, folder)}\n"
        f"metrics: {service.metrics_url}\n"
        f"look at the data: {RUN} psql --state-dir {shlex.quote(str(folder.path))} "
        f"-c '{look}'\n"
        f"the service's log: {service.log_path}\n"
        f"its folder: {folder.path} ({end})\n"
        "Ctrl-C stops the fleet, then the service",
        flush=True,
    )


def _page(service: Service, folder: DemoFolder) -> str:
    """Return the address of the dashboard; on a terminal with the key, as the service prints it."""
    found = find(folder.path) if sys.stdout.isatty() else None
    if found is None or "key=" not in found.page:
        return service.metrics_url.removesuffix("metrics")
    return f"{found.page}  (the first browser that opens it may act)"


async def _post(chosen: argparse.Namespace, service: Service, stopping: asyncio.Event) -> None:
    """Post with the fleet until `stopping`. Raises ServiceEnded."""
    load = Load(
        LoadPlan(
            target=target_of(service.url),
            recipe=Recipe(devices=chosen.devices, seed=chosen.seed, mix=((READINGS_A_POST, 1.0),)),
            shape=constant(chosen.rate / READINGS_A_POST),
            retry=Retry(GIVE_UP_S),
            metrics_urls=(service.metrics_url,),
        )
    )
    posting = asyncio.create_task(load.run(settle_s_max=0.0))

    async def until_one_ends() -> None:
        await asyncio.gather(service.ended(), asyncio.shield(posting))

    try:
        with shown(_line_of(load), on_stdout=True, stays=True):
            await _unless(stopping, until_one_ends())
            load.stop()
            await asyncio.wait({posting}, timeout=LAST_POSTS_S_MAX)
    finally:
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
    print(f"fleet stopped: {load.tally.accepted_readings:,} readings accepted", flush=True)


def _line_of(load: Load) -> Callable[[], str]:
    """Return a function that gives the progress in one line, with counts from /metrics."""
    tally, pace = load.tally, Pace(load)

    def line() -> str:
        scraper, driver = load.scraper, load.driver
        assert scraper is not None, "the plan has the URL of /metrics"
        lately = tally.timeline.at(load.elapsed_s - tally.timeline.width_s).quantile_s(0.99)
        why = next(chain(reversed(tally.codes), reversed(tally.whys)), "no answer")
        return (
            f"{pace.since_last().through:4.0f} posts/s | "
            f"{tally.accepted_readings:,} readings accepted | "
            f"{scraper.committed:,.0f} committed | {scraper.held:,.0f} held | "
            f"answer p99 {(lately or 0.0) * 1e3:.1f} ms"
            + (f" | {driver.waiting} trying again: {why}" if driver.waiting else "")
            + (f" | {tally.refused + tally.not_whole} refused: {why}" if tally.refused else "")
            + (f" | {tally.given_up} given up" if tally.given_up else "")
        )

    return line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="The service, with a state folder of its own, and a simulated fleet.",
        usage=f"{PROGRAM} [options] [flags of the service]",
        epilog="examples:\n"
        f"  {PROGRAM} --devices 1000 --rate 2000\n"
        f"  {PROGRAM} --keep --listen 127.0.0.1:9000 --admin-listen 127.0.0.1:9001\n\n"
        "Other flags go to `ingest serve`. Exit code 0 after Ctrl-C, 1 if the service ended by\n"
        "itself, 2 wrong use.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=200, help="default: %(default)s")
    parser.add_argument(
        "--rate", type=float, default=300, help="readings a second (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the fleet (default: %(default)s)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="its folder; default: that of the service, with -demo at the end",
    )
    parser.add_argument("--keep", action="store_true", help="keep its folder at the end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = _parser()
    chosen, service_flags = parser.parse_known_args(arguments)
    if chosen.devices < 1 or chosen.devices > 10_000 or not 0 < chosen.rate < 1e6:
        parser.error("--devices is 1 to 10000, --rate more than 0")
    try:
        path = full_path(chosen.state_dir) if chosen.state_dir else usual_folder()
        chosen.folder = DemoFolder(path, keep=chosen.keep)
        chosen.folder.make()
    except NoHome as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot make {chosen.folder.path}: {error.strerror}; choose --state-dir")
    return asyncio.run(demo(chosen, service_flags))


if __name__ == "__main__":
    sys.exit(main())
