"""`loadgen verify`: send readings, then prove that each is where the service said it would be.

Exit codes: 0 all as promised, 1 something is not, 2 wrong use or no proof was possible,
130 interrupted (and what was sent until then is as promised).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from loadgen import cli_values as values
from loadgen.cli_run import until_signals
from loadgen.conclude import CannotCheck, Result, Where, check_ahead, conclude
from loadgen.local_service import LocalService, find, state_folder
from loadgen.post import Target
from loadgen.proof import POST_READINGS_MAX, REFUSED_METRIC, Plan
from loadgen.table import TableError, refuses
from loadgen.verdict_text import text
from loadgen.verify import Job, Run

DURATION_S = 10.0
PLAIN_LINE_S = 5.0
SHOW_S = 0.25


class _Wrong(Exception):
    """The options cannot be what was meant; the text names one."""


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word `verify` with its options."""
    verify = words.add_parser(
        "verify",
        help="prove that nothing is lost, doubled or altered",
        description="Sends readings and writes a ledger of each one before it is sent and of every "
        "answer. At the end it looks for each reading in the table and among the dead letters. "
        "With a service of this machine it finds database and dead letters by itself.",
        epilog="Exit code 0: everything is as it was promised; 1: something is not (the first "
        "readings of each kind are listed); 2: wrong use, or no proof was possible; "
        "130: interrupted, and as promised so far.",
    )
    where = verify.add_argument_group("where")
    where.add_argument("--url", type=values.url, metavar="URL", help="of the service")
    where.add_argument("--admin-url", metavar="URL", help="of its admin port (/metrics)")
    where.add_argument(
        "--database-url",
        metavar="URL",
        help="PostgreSQL, the primary; also INGEST_DATABASE_URL",
    )
    where.add_argument("--dlq-dir", type=Path, metavar="DIR", help="the dead-letter folder")
    where.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="of a service on this machine: says all of the above; default: the usual place",
    )
    _add_traffic(verify.add_argument_group("what to send"))
    proof = verify.add_argument_group("the proof")
    proof.add_argument(
        "--ledger", type=Path, metavar="FILE", help="write the ledger there, and keep it"
    )
    proof.add_argument("--keep", action="store_true", help="keep the ledger though all is well")
    proof.add_argument(
        "--ledger-fsync",
        action="store_true",
        help="the ledger survives a crash of this machine, not only of this program; slow",
    )
    proof.add_argument(
        "--reconcile-only", action="store_true", help="send nothing: compare --ledger once more"
    )
    proof.add_argument(
        "--settle-s",
        type=values.above_zero,
        default=60.0,
        metavar="S",
        help="wait so long for the service to become quiet (%(default)g)",
    )
    proof.add_argument(
        "--report",
        type=values.file_to_write,
        metavar="FILE",
        help="write all that is not as promised, as JSON",
    )


def _add_traffic(traffic: argparse._ArgumentGroup) -> None:
    traffic.add_argument(
        "--duration-s",
        type=values.above_zero,
        metavar="S",
        help=f"send for so long ({DURATION_S:g}, unless --posts is given)",
    )
    traffic.add_argument("--posts", type=values.count(), metavar="N", help="send so many posts")
    traffic.add_argument(
        "--rate",
        type=values.above_zero,
        metavar="R",
        help="posts a second; without it each connection posts as soon as it has its answer",
    )
    traffic.add_argument(
        "--connections",
        type=values.count(1, 10_000),
        default=16,
        metavar="N",
        help="posts at once (%(default)s)",
    )
    traffic.add_argument(
        "--batch",
        type=values.mix,
        default="1x8,10,100",
        metavar="MIX",
        help="readings a post: 100, or a mix with weights (%(default)s)",
    )
    traffic.add_argument(
        "--ack", choices=("buffered", "durable", "committed"), help="default: the service's"
    )
    traffic.add_argument(
        "--seed", type=values.count(0), default=1, metavar="N", help="of all choices (%(default)s)"
    )
    for name, default, what in (
        ("duplicates", "1%%", "of the readings are sent again in a later post"),
        ("invalid", "0.5%%", "of the readings are none, in various ways"),
        (
            "refused-by-check",
            "0",
            f"of the readings have the metric `{REFUSED_METRIC}`; needs a constraint in the "
            f"table: check (metric <> '{REFUSED_METRIC}')",
        ),
    ):
        traffic.add_argument(
            f"--{name}",
            type=values.share,
            default=default.replace("%%", "%"),
            metavar="SHARE",
            help=f"{what} ({default})",
        )
    traffic.add_argument(
        "--give-up-s",
        type=values.above_zero,
        default=300.0,
        metavar="S",
        help="keep trying one post for so long (%(default)g)",
    )


def main(chosen: argparse.Namespace) -> int:
    """Send, wait, compare; return the exit code."""
    try:
        local = find(state_folder(chosen.state_dir))
        where = _where(chosen, local)
        job = None if chosen.reconcile_only else _job(chosen, local, where)
        if job is None:
            _check_reconcile_only(chosen)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_verify(chosen, job, where))
    except (_Wrong, CannotCheck, OSError) as error:
        print(f"loadgen verify: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("loadgen verify: interrupted before the comparison was through", file=sys.stderr)
        return 130


def _is_meant(chosen: argparse.Namespace, local: LocalService | None) -> bool:
    """Whether the service of this machine is the one to look at."""
    if local is None:
        return False
    target: Target | None = chosen.url
    return target is None or f"http://{target.host}:{target.port}" == local.url


def _where(chosen: argparse.Namespace, local: LocalService | None) -> Where:
    if not _is_meant(chosen, local):
        local = None
    database_url = chosen.database_url or (local.database_url if local else "")
    database_url = database_url or os.environ.get("INGEST_DATABASE_URL", "")
    dlq_dir = chosen.dlq_dir or (local.dlq_dir if local else None)
    admin_url = chosen.admin_url or (local.admin_url if local else None)
    for value, option in ((database_url, "--database-url"), (dlq_dir, "--dlq-dir")):
        if not value:
            folder = state_folder(chosen.state_dir)
            raise _Wrong(
                f"no service found by the state folder {folder}: start it, or say {option}"
            )
    assert dlq_dir is not None, "said above"
    if admin_url is not None and not admin_url.startswith(("http://", "https://")):
        raise _Wrong(f"--admin-url {admin_url}: does not begin with http://")
    return Where(database_url, dlq_dir, admin_url)


def _check_reconcile_only(chosen: argparse.Namespace) -> None:
    if chosen.ledger is None:
        raise _Wrong("--reconcile-only needs --ledger FILE")
    for name in ("duration_s", "posts", "rate"):
        if getattr(chosen, name) is not None:
            raise _Wrong(f"--reconcile-only sends nothing: leave out --{name.replace('_', '-')}")


def _job(chosen: argparse.Namespace, local: LocalService | None, where: Where) -> Job:
    target: Target | None = chosen.url
    if target is None:
        if local is None:
            raise _Wrong(f"no service runs on {state_folder(chosen.state_dir)}: start it, or --url")
        target = values.url(local.url)
    if max(size for size, _ in chosen.batch) > POST_READINGS_MAX:
        raise _Wrong(f"--batch: at most {POST_READINGS_MAX:,} readings a post")
    if chosen.duplicates + chosen.invalid + chosen.refused_by_check > 0.9:
        raise _Wrong("--duplicates, --invalid and --refused-by-check: at most 90% in all")
    run = secrets.token_hex(4)
    ledger = chosen.ledger or Path(tempfile.gettempdir()) / f"loadgen-verify-{run}.ledger"
    if ledger.exists():
        raise _Wrong(f"--ledger {ledger} exists: choose another, or --reconcile-only")
    plan = Plan(
        run=run,
        seed=chosen.seed,
        first_us=int(time.time() * 1_000_000),
        sizes=chosen.batch,
        duplicates=chosen.duplicates,
        invalid=chosen.invalid,
        refused=chosen.refused_by_check,
    )
    duration_s = chosen.duration_s
    if duration_s is None and chosen.posts is None:
        duration_s = DURATION_S
    return Job(
        target=target,
        plan=plan,
        ledger=ledger,
        query=f"?ack={chosen.ack}" if chosen.ack else "",
        connections=chosen.connections,
        posts=chosen.posts,
        duration_s=duration_s,
        rate=chosen.rate,
        give_up_s=chosen.give_up_s,
        fsync=chosen.ledger_fsync,
        admin_url=where.admin_url,
    )


async def _verify(chosen: argparse.Namespace, job: Job | None, where: Where) -> int:
    interrupted = False
    ledger: Path = chosen.ledger if job is None else job.ledger
    if job is not None:
        await _look_ahead(job, where)
        print(f"run {job.plan.run}: ledger {ledger}", file=sys.stderr)
        run = Run(job)
        interrupted = await _shown(until_signals(run.go(), run.stop), lambda: _progress(run))
        if interrupted and not run.ended:
            _say_again(ledger)
            return 130
    stage = ["waiting"]
    keep = True
    try:
        work = conclude(
            ledger, where, settle_s=chosen.settle_s, report=chosen.report, say=stage.append
        )
        result: Result = await _shown(work, lambda: stage[-1])
        keep = not result.green
        print(text(result))
        if not result.green:
            return 1
        if not result.counts["acknowledged"]:
            keep = True
            raise CannotCheck("no reading was acknowledged: nothing was proven")
    finally:
        if keep and job is not None:
            _say_again(ledger)
    if job is not None and chosen.ledger is None and not chosen.keep:
        ledger.unlink(missing_ok=True)
    return 130 if interrupted else 0


async def _look_ahead(job: Job, where: Where) -> None:
    """See whether there will be a proof. Raises CannotCheck, _Wrong."""
    await check_ahead(where, job.plan.prefix)
    if job.plan.refused:
        device = f"{job.plan.prefix}ahead"
        try:
            refused = await refuses(where.database_url, job.plan.first_us, device)
        except TableError as error:
            raise CannotCheck(str(error)) from error
        if refused is False:
            raise _Wrong(
                "--refused-by-check: the table refuses no such reading; let its owner say: alter "
                f"table readings add constraint loadgen_verify check (metric <> '{REFUSED_METRIC}')"
            )


def _say_again(ledger: Path) -> None:
    print(
        f"to look again: loadgen verify --reconcile-only --ledger {ledger}",
        file=sys.stderr,
    )


def _progress(run: Run) -> str:
    final = run.answers.total()
    trouble = f"; trying again: {run.trouble}" if run.retried else ""
    return (
        f"{run.taken:,} posts, {run.readings:,} readings, {final:,} answered, "
        f"{run.retried:,} tried again{trouble}"
    )


async def _shown(work: Awaitable[Any], line: Callable[[], str]) -> Any:
    """Wait for some work and tell how far it is: in place on a terminal, else now and then."""
    console = Console(stderr=True)
    task = asyncio.ensure_future(work)
    try:
        if console.is_terminal:
            with console.status("") as status:
                while not task.done():
                    status.update(line())
                    await asyncio.wait([task], timeout=SHOW_S)
        while not task.done():
            await asyncio.wait([task], timeout=PLAIN_LINE_S)
            if not task.done():
                print(line(), file=sys.stderr)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
