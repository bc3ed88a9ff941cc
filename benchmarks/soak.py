"""Minutes of proof near the limit: `loadgen verify` at 80 % of what it reaches here, one restart.

`python -m benchmarks.soak`: first verify with as many posts as the answers allow, which is the peak
of this traffic on this machine; then for ten minutes at 80 % of that: duplicates, readings that are
none, readings that a CHECK of the table refuses, and half-way a kill -9 of the database. The
service is as delivered (journal, ack=durable). Exit code 1 if the verdict is red.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg

from benchmarks.processes import Broken, Child, descendants, raise_open_files_limit, scratch
from benchmarks.service import Service

AS_DELIVERED = ("--buffer", "journal", "--ack-default", "durable")
SHARES = ("--duplicates", "1%", "--invalid", "0.5%", "--refused-by-check", "0.1%")
CHECK = "alter table readings add constraint no_such check (metric <> 'refused')"
SAID_BYTES_MAX = 1 << 20
BACK_S_MAX = 60.0  # the database, after its kill
_RUN = re.compile(r"run \w+: ([\d,]+) posts, ([\d,]+) readings")


class Proven(NamedTuple):
    """One run of verify: what it sent, what it said, and its exit code.

    CPU in cores of service, database (0: not known, it was killed) and verify. Memory in MiB:
    `rss_mib` of the service after a tenth of the time and at the end, and the most that each had.
    """

    code: int
    said: str
    posts: int
    readings: int
    took_s: float
    cores: tuple[float, float, float]
    rss_mib: tuple[float, float]
    rss_peak_mib: tuple[float, float]
    back_s: float


def prove(
    service: Service, folder: Path, *words: str, seconds: float, kill_at_s: float | None = None
) -> Proven:
    """Run verify for so long; kill the database after `kill_at_s`. Raises Broken without a run."""
    began_s, before = time.monotonic(), service.cpu()
    kills = kill_at_s is not None
    verify = Child(
        "verify",
        [
            *(sys.executable, "-m", "loadgen", "verify", "--state-dir", service.folder),
            *("--duration-s", f"{seconds:g}", *SHARES, *words),
        ],
        folder,
    )
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
                rss_early = service.rss_mib()
            if kill_at_s is not None and passed_s > kill_at_s:
                kill_at_s = None
                back_s = _kill_database(service)
    finally:
        code = verify.stop()
    took_s, after = time.monotonic() - began_s, service.cpu()
    said = verify.said(SAID_BYTES_MAX)
    if (found := _RUN.search(said)) is None:
        raise Broken(f"verify did not run: {said}")
    if kills and not back_s:
        raise Broken(f"the database was not killed before the end: {said}")
    said = said[found.start() :]
    posts, readings = (int(each.replace(",", "")) for each in found.groups())
    return Proven(
        code,
        said,
        posts,
        readings,
        took_s,
        (
            (after.service_s - before.service_s) / took_s,
            0.0 if kills else (after.postgres_s - before.postgres_s) / took_s,
            verify_s / took_s,
        ),
        (rss_early, service.rss_mib()),
        (service.child.rss_peak_mib(), rss_verify),
        back_s,
    )


def _kill_database(service: Service) -> float:
    """Kill the database's first process; return after how many seconds a connection is made."""
    postmaster = descendants(service.child.pid)[0]
    began_s = time.monotonic()
    os.kill(postmaster, signal.SIGKILL)
    while not asyncio.run(_answers(service.database_url)):
        if time.monotonic() - began_s > BACK_S_MAX:
            raise Broken(f"the database did not come back within {BACK_S_MAX:g} s")
        time.sleep(0.05)
    return time.monotonic() - began_s


async def _answers(url: str) -> bool:
    try:
        line = await asyncpg.connect(url, timeout=1)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await line.close()
    return True


async def _run_sql(url: str, sql: str) -> None:
    line = await asyncpg.connect(url)
    await line.execute(sql)
    await line.close()


def soak(folder: Path, chosen: argparse.Namespace) -> int:
    """Find the peak, prove at a share of it, print both; return verify's exit code."""
    words = ("--batch", chosen.batch, "--connections", str(chosen.connections))
    seconds: float = chosen.seconds
    with Service(folder / "state", *AS_DELIVERED) as service:
        asyncio.run(_run_sql(service.database_url, CHECK))
        peak = prove(service, folder, *words, seconds=chosen.peak_seconds)
        if peak.code:
            print(peak.said)
            return peak.code
        peak_per_s = peak.posts / chosen.peak_seconds
        print(f"peak of this traffic: {peak_per_s:,.0f} posts/s, {_told(peak)}", flush=True)
        rate = f"{chosen.share * peak_per_s:.0f}"
        found = prove(
            service, folder, *words, "--rate", rate, seconds=seconds, kill_at_s=seconds / 2
        )
        print(f"\nat {rate} posts/s for {seconds:g} s: {_told(found)}")
        print(f"database killed once, back after {found.back_s:.1f} s\n\n{found.said}")
    return found.code


def _told(found: Proven) -> str:
    service, postgres, verify = found.cores
    database = f"PostgreSQL {postgres:.2f}, " if postgres else ""
    return (
        f"{found.readings:,} readings; cores: service {service:.2f}, {database}"
        f"verify {verify:.2f}; RSS of the service {found.rss_mib[0]:.0f} MiB after a tenth, "
        f"{found.rss_mib[1]:.0f} at the end, most {found.rss_peak_mib[0]:.0f}; "
        f"of verify, most {found.rss_peak_mib[1]:.0f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak; return verify's exit code, or 2 if something did not run."""
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
