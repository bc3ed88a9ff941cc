"""`./run bench --roles`: `ingest up`, and roles with three brokers, beside `ingest serve`.

Both run at the same time with state folders of their own on a disk. One of them has load while the
other one is idle. A pair is one short run of wrk on each; the next pair has the other order. After
each run all that was answered must be in the table. The rate is readings in the table a second,
from the first post until the last one is stored. The median of the pairs' ratios decides, with its
90 % interval (ratios.py). CPU, memory and written bytes are told by role, from the kernel's
accounts. Also: how long the start takes, and the CPU of an idle `ingest up`.
A run is added to roles.ndjson, and docs/grow/scaling.md gets its figures (roles_document.py).
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine, roles_document, wrk
from benchmarks.arms import Arm, one_process, several_processes, start_up, three_brokers
from benchmarks.contenders import FIRST_US
from benchmarks.database import count_rows, execute
from benchmarks.options import count, seconds_within, some_of
from benchmarks.processes import Broken, Child, Missing, free_port, raise_open_files_limit, scratch
from benchmarks.ratios import PAIRS_FOR_INTERVAL, PAIRS_MIN, interval_of
from benchmarks.roles_record import FOLDER, LINES, Case, Line, Run

SECONDS, QUICK_SECONDS = 2.0, 1.0
WARM_S = 1.0
LOAD_US = 100_000_000  # between the first timestamps of two loads
IDLE_S, QUICK_IDLE_S = 10.0, 1.0
STARTS, QUICK_STARTS = 5, 1
START_S_MAX = 60.0
SERVE = "serve"


class Way(NamedTuple):
    """One case: what runs beside `serve`, the script of wrk, and the wanted ratio of the rates."""

    name: str
    script: str
    other: Callable[[Path], AbstractContextManager[Arm]]
    gateways: int = 1
    wanted: float | None = None


_two = partial(several_processes, gateways=2)
_one = partial(several_processes, gateways=1)
WAYS = (
    Way("up_singles", "singles", _one, wanted=0.55),
    Way("up_hundreds", "hundreds", _one, wanted=0.8),
    Way("up_2_singles", "singles", _two, 2),
    Way("up_2_hundreds", "hundreds", _two, 2),
    Way("three_singles", "singles", three_brokers, wanted=0.25),
    Way("three_hundreds", "hundreds", three_brokers, wanted=0.5),
)
BY_NAME = {way.name: way for way in WAYS}
EPILOG = f"""exit codes: 0 all ratios are as wanted, 1 one is not, or something broke, 2 wrong use

cases: {", ".join(BY_NAME)}"""


def main(arguments: Sequence[str]) -> int:
    """Compare, print, record; return the exit code."""
    chosen = _parser().parse_args(arguments)
    seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    pairs = PAIRS_FOR_INTERVAL if chosen.quick else chosen.pairs
    raise_open_files_limit()
    cases, starts_s, idle = [], {}, {}
    try:
        wrk.require_wrk()
        for way in chosen.only:
            cases.append(compare(way, seconds, pairs))
            print(told(way, cases[-1]), flush=True)
        if chosen.start:
            starts_s = {
                command: [start_s(command) for _ in range(QUICK_STARTS if chosen.quick else STARTS)]
                for command in (SERVE, "up")
            }
            idle = idle_share(QUICK_IDLE_S if chosen.quick else IDLE_S)
            print(told_start(starts_s, idle), flush=True)
    except (Broken, Missing) as why:
        print(f"broke: {why}", file=sys.stderr)
        return 1
    if chosen.quick:
        print("quick: this says that the command works, and nothing about speed")
        return 0
    line = Line(
        at=machine.now(),
        commit=machine.commit(),
        environment=machine.environment(),
        seconds=seconds,
        cases=[each._asdict() for each in cases],
        starts_s=starts_s,
        idle=idle,
    )
    with (chosen.results / LINES).open("a") as file:
        file.write(json.dumps(line._asdict()) + "\n")
    if chosen.results == FOLDER:
        roles_document.write()
    return 0 if all(map(is_as_wanted, chosen.only, cases)) else 1


def compare(way: Way, seconds: float, pairs: int) -> Case:
    """Run the pairs of one case."""
    runs: dict[str, list[Run]] = {SERVE: [], "other": []}
    with scratch() as folder, ExitStack() as running:
        arms = {
            SERVE: running.enter_context(one_process(folder)),
            "other": running.enter_context(way.other(folder)),
        }
        loads = Loads(way)
        for arm in arms.values():
            loads.run(arm, WARM_S)
        for number in range(pairs):
            for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
                runs[name].append(loads.run(arms[name], seconds))
                _say(f"{way.name} {number + 1} {name}: {brief(runs[name][-1])}")
        peaks = {name: arm.peaks_mib() for name, arm in arms.items()}
    found = {name: [run._asdict() for run in each] for name, each in runs.items()}
    return Case(way.name, way.script, way.gateways, way.wanted, found, peaks)


class Loads:
    """The loads of one case: each has timestamps of its own."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._first_us = FIRST_US

    def run(self, arm: Arm, seconds: float) -> Run:
        """Drive one arm until all is stored, check the table, and empty it. Raises Broken."""
        way, self._first_us = self._way, self._first_us + LOAD_US
        connections, rows = way.gateways * wrk.CONNECTIONS, wrk.ROWS[way.script]
        before, began_s = arm.used(), time.monotonic()
        peak = wrk.drive(way.script, arm.port, seconds, self._first_us, connections=connections)
        arm.wait_stored()
        took_s = time.monotonic() - began_s
        used = arm.used().since(before)
        stored = count_rows(arm.database_url)
        if peak.broken or peak.refused:
            raise Broken(f"{peak.broken} connections broke, {peak.refused} posts were refused")
        # A post without an answer may be stored: each connection has one at the end.
        if not 0 < peak.taken * rows <= stored <= (peak.taken + connections) * rows:
            raise Broken(f"{peak.taken * rows} readings were taken, {stored} are in the table")
        # The checkpoint is now, and not while the other arm is measured.
        execute(arm.database_url, "truncate readings", "checkpoint")
        return Run(
            stored_per_s=stored / took_s,
            p50_ms=peak.p50_ms,
            p99_ms=peak.p99_ms,
            cpu_us={role: each / stored * 1e6 for role, each in used.cpu_s.items()},
            disk_bytes={role: each / stored for role, each in used.disk_bytes.items()},
            rows_per_message=stored / used.messages if used.messages else 0.0,
            driver_cores=peak.cpu_cores,
        )


def is_as_wanted(way: Way, case: Case) -> bool:
    """Whether the median of the ratios is what the case wants."""
    return way.wanted is None or interval_of(case.ratios()).median >= way.wanted


def told(way: Way, case: Case) -> str:
    """Return the verdict and the figures of a case on one line."""
    found = interval_of(case.ratios())
    wanted = ""
    if way.wanted is not None:
        wanted = f" (wanted {way.wanted:g}: {'met' if is_as_wanted(way, case) else 'MISSED'})"
    ratio = f"{found.median:.3f} of serve, {found.low:.3f} to {found.high:.3f}{wanted}"
    cpus = "; ".join(f"{name}: {roles_document.cpu_words(case, name)}" for name in case.runs)
    return f"{way.name}: {ratio}; {len(case.ratios())} pairs; CPU us a reading, {cpus}"


def brief(run: Run) -> str:
    """Return one run on one line."""
    cpus = ", ".join(f"{role} {each:.2f}" for role, each in run.cpu_us.items())
    return f"{run.stored_per_s:,.0f} readings/s, p99 {run.p99_ms:.1f} ms, CPU us: {cpus}"


def told_start(starts_s: dict[str, list[float]], idle: dict[str, float]) -> str:
    """Return the start times and the idle CPU on one line."""
    times = "; ".join(
        f"{name} {', '.join(f'{each:.2f}' for each in some)} s" for name, some in starts_s.items()
    )
    shares = ", ".join(f"{role} {each:.2%}" for role, each in idle.items())
    return f"from nothing to the first 202: {times}; idle: {shares} of a core"


def start_s(command: str) -> float:
    """Return how long it takes from an empty state folder to the first 202."""
    with scratch() as folder:
        port = free_port()
        began_s = time.monotonic()
        child = _started(command, folder, port)
        try:
            while not _is_taken(port):
                if time.monotonic() - began_s > START_S_MAX or not child.running:
                    raise Broken(f"`ingest {command}` takes no post: {child.output()}")
                time.sleep(0.005)
            return time.monotonic() - began_s
        finally:
            child.stop()


def _started(command: str, folder: Path, port: int) -> Child:
    if command == "up":
        return start_up(folder / "state", port=port).child
    words = ("--listen", f"127.0.0.1:{port}", "--admin-listen", "127.0.0.1:0")
    program = (sys.executable, "-P", "-m", "ingest", SERVE, "--state-dir", folder / "state")
    return Child(SERVE, (*program, *words), folder, env={"PYTHONPATH": str(FOLDER.parent)})


def _is_taken(port: int) -> bool:
    device = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S_MAX)
    body = json.dumps({"device_id": "d", "metric": "m", "value": 1, "ts": FIRST_US})
    try:
        device.request("POST", wrk.READINGS, body, {"Content-Type": "application/json"})
        return device.getresponse().status == 202
    except OSError:
        return False
    finally:
        device.close()


def idle_share(seconds: float) -> dict[str, float]:
    """Return the share of a core that each role of an idle `ingest up` takes."""
    with scratch() as folder, several_processes(folder, 1) as arm:
        time.sleep(seconds / 2)  # the start is over
        before, began_s = arm.used(), time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        return {role: each / took_s for role, each in arm.used().since(before).cpu_s.items()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="Compare `ingest up`, and roles with three brokers, with `ingest serve`:\n"
        "readings in the table a second, by the ratios of pairs, and the CPU of every role.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # __main__ compares whole words
    )
    parser.add_argument("--roles", action="store_true", required=True, help="this comparison")
    parser.add_argument(
        "--only", type=some_of(BY_NAME), default=WAYS, metavar="CASE,..", help="these cases"
    )
    parser.add_argument("--pairs", type=count, default=PAIRS_MIN, help=f"of runs [{PAIRS_MIN}]")
    parser.add_argument(
        "--seconds", type=seconds_within(1, 60), help=f"that one load drives [{SECONDS:g}]"
    )
    parser.add_argument(
        "--no-start",
        dest="start",
        action="store_false",
        help="leave out the time of the start, and the idle CPU",
    )
    parser.add_argument(
        "--results", type=Path, default=FOLDER, metavar="FOLDER", help=f"of {LINES}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few short loads: see that it works, judge nothing"
    )
    return parser
