"""`loadgen run`: send the load of a simulated fleet, measure, report.

Exit codes: 0 every post got the right answer, 1 some did not, 2 wrong use or no service there, 130
interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from loadgen.cli.run_options import add_parser, plan_of, settings_of
from loadgen.cli.run_watch import Watch
from loadgen.cli.service_options import local_of
from loadgen.driver.pool import unreachable
from loadgen.live import shown
from loadgen.measure.find_max import FindMax
from loadgen.measure.load import Load, LoadPlan
from loadgen.proof.local_service import NoHome
from loadgen.report import text as report_text
from loadgen.report.json import Document, document, write_whole

__all__ = ["add_parser", "main"]

# Open files that the process needs beside its connections.
FILES_BESIDE = 64
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(chosen: argparse.Namespace) -> int:
    """Run the load, or the search; return the exit code."""
    try:
        plan = plan_of(chosen, local_of(chosen))
        _raise_open_files(plan.connections)
    except (ValueError, NoHome) as error:
        print(f"loadgen run: {error}", file=sys.stderr)
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if why := runner.run(unreachable(plan.target, *plan.others)):
                print(f"loadgen run: {why}: does the service run there? --url", file=sys.stderr)
                return 2
            return runner.run(_find_max(plan, chosen) if chosen.find_max else _run(plan, chosen))
    except KeyboardInterrupt:
        return 130


def _raise_open_files(connections: int) -> None:
    """Allow the sockets of the connections. Raises ValueError if the system does not."""
    needed = connections + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(f"--connections {connections}: `ulimit -Hn` allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _run(plan: LoadPlan, chosen: argparse.Namespace) -> int:
    load = Load(plan)
    watch = Watch(load)
    with shown(watch.line):
        interrupted = await until_signals(load.run(), load.stop)
    report = document(load, settings_of(chosen, plan), interrupted=interrupted)
    print(report_text.text(report), flush=True)
    return _end(chosen.json, report, all_right=report["all_right"])


def _end(path: Path | None, report: Document, *, all_right: bool) -> int:
    """Write the report if it has a path; return the exit code."""
    try:
        if path:
            write_whole(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        print(f"loadgen run: cannot write {path}: {error.strerror}", file=sys.stderr)
        all_right = False
    return 130 if report["interrupted"] else 0 if all_right else 1


async def until_signals(work: Coroutine[Any, Any, None], stop: Callable[[], None]) -> bool:
    """Run `work`; at SIGINT or SIGTERM call `stop`, at the second one cancel it.

    Returns whether there was a signal.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            print("stopping; again: at once", file=sys.stderr)
            stop()
        else:
            task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        await asyncio.wait([task])
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    if not task.cancelled():
        task.result()
    return signals > 0


async def _find_max(plan: LoadPlan, chosen: argparse.Namespace) -> int:
    search = FindMax(plan, p99_ms=chosen.p99_ms, step_s=chosen.step_s, first_rate=chosen.rate)
    print(report_text.STEP_HEAD, flush=True)
    interrupted = await until_signals(
        search.run(lambda step: print(report_text.step(step), flush=True)), search.stop
    )
    report = search.document(settings_of(chosen, plan), interrupted=interrupted)
    print(report_text.found(report), flush=True)
    return _end(chosen.json, report, all_right=search.search.found is not None)
