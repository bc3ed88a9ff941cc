"""A proof of ten minutes near the limit: `loadgen verify` at 80 % of its peak, one database kill.

`python -m benchmarks.soak`: first verify in closed loop, which gives the peak of this traffic on
this machine. Then verify for ten minutes at 80 % of that: with duplicates, invalid readings,
readings that a CHECK of the table refuses, and a kill -9 of the database after half of the time.
The service is as delivered (journal, ack=durable). Exit code 1 if the verdict is red.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg

from benchmarks.database import execute
from benchmarks.processes import Broken, Child, descendants, raise_open_files_limit, scratch
from benchmarks.service import Service

AS_DELIVERED = ("--buffer", "journal", "--ack-default", "durable")
SHARES = ("--duplicates", "1%", "--invalid", "0.5%", "--refused-by-check", "0.1%")
CHECK = "alter table readings add constraint no_such check (metric <> 'refused')"
OUTPUT_BYTES_MAX = 1 << 20
BACK_S_MAX = 60.0  # the database, after its kill
_RUN = re.compile(r"run \w+: ([\d,]+) posts, ([\d,]+) readings")


class Proven(NamedTuple):
    """One run of verify: its exit code, its output, the posts that it sent, and the costs in words.

    `back_s` is the time from the kill of the database to the next connection; 0 without a kill.
    """

    code: int
    output: str
    posts: int
    costs: str
    back_s: float


def prove(
    service: Service, folder: Path, *words: str, seconds: float, kill_at_s: float | None = None
) -> Proven:
    """Run verify for so long; kill the database after `kill_at_s`. Raises Broken without a run."""
    began_s, before = time.monotonic(), service.cpu()
    command: list[str | Path] = [
        *(sys.executable, "-m", "loadgen", "verify", "--state-dir", service.folder),
        *("--duration-s", f"{seconds:g}", *SHARES, *words),
    ]
    verify = Child("verify", command, folder)
    rss_early = rss_verify = back_s = verify_s = 0.0
    try:
        while verify.running:
            time.sleep(0.2)
            passed_s = time.monotonic() - began_s
            try:
                rss_verify, verify_s = verify.rss_peak_mib(), verify.cpu_s() or verify_s
            except (Broken, OSError):
                break  # it has just ended
            if not rss_early and passed_s > seconds / 10:
                rss_early = service.child.rss_mib()
            if kill_at_s is not None and passed_s > kill_at_s and not back_s:
                back_s = _kill_database(service)
    finally:
        code = verify.stop()
    took_s, after = time.monotonic() - began_s, service.cpu()
    output = verify.output(OUTPUT_BYTES_MAX)
    if (found := _RUN.search(output)) is None:
        raise Broken(f"verify did not run: {output}")
    database = f"PostgreSQL {(after.postgres_s - before.postgres_s) / took_s:.2f}, "
    if kill_at_s is not None:
        database = ""  # the CPU of killed processes is not known
        if not back_s:
            raise Broken(f"the database was not killed before the end: {output}")
    costs = (
        f"{found[2]} readings; cores: service "
        f"{(after.service_s - before.service_s) / took_s:.2f}, {database}"
        f"verify {verify_s / took_s:.2f}; RSS of the service {rss_early:.0f} MiB after a tenth, "
        f"{service.child.rss_mib():.0f} at the end, most {service.child.rss_peak_mib():.0f}; "
        f"of verify, most {rss_verify:.0f}"
    )
    posts = int(found[1].replace(",", ""))
    return Proven(code, output[found.start() :], posts, costs, back_s)


def _kill_database(service: Service) -> float:
    """Kill the database's first process; return after how many seconds a connection is made."""
    postmaster = descendants(service.child.pid)[0]
    began_s = time.monotonic()
    os.kill(postmaster, signal.SIGKILL)
    while not _answers(service.database_url):
        if time.monotonic() - began_s > BACK_S_MAX:
            raise Broken(f"the database did not come back within {BACK_S_MAX:g} s")
        time.sleep(0.05)
    return time.monotonic() - began_s


def _answers(url: str) -> bool:
    try:
        execute(url)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    return True


def soak(folder: Path, chosen: argparse.Namespace) -> int:
    """Measure the peak, prove at a share of it, print both; return verify's exit code."""
    words = ("--batch", chosen.batch, "--connections", str(chosen.connections))
    seconds: float = chosen.seconds
    with Service(folder / "state", *AS_DELIVERED) as service:
        execute(service.database_url, CHECK)
        peak = prove(service, folder, *words, seconds=chosen.peak_seconds)
        if peak.code:
            print(peak.output)
            return peak.code
        peak_per_s = peak.posts / chosen.peak_seconds
        print(f"peak of this traffic: {peak_per_s:,.0f} posts/s, {peak.costs}", flush=True)
        rate = f"{chosen.share * peak_per_s:.0f}"
        found = prove(
            service, folder, *words, "--rate", rate, seconds=seconds, kill_at_s=seconds / 2
        )
        print(f"\nat {rate} posts/s for {seconds:g} s: {found.costs}")
        print(f"database killed once, back after {found.back_s:.1f} s\n\n{found.output}")
    return found.code


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove; return verify's exit code, or 2 if something did not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the proof (600)")
    parser.add_argument("--peak-seconds", type=float, default=20.0, help="of the search (20)")
    parser.add_argument("--share", type=float, default=0.8, help="of the peak (0.8)")
    parser.add_argument("--batch", default="1x8,10,100", help="readings a post (1x8,10,100)")
    parser.add_argument("--connections", type=int, default=64, help="posts at once (64)")
    chosen = parser.parse_args(arguments)
    raise_open_files_limit()
    try:
        with scratch() as folder:
            return soak(folder, chosen)
    except Broken as error:
        print(f"it broke: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
