"""`loadgen verify`: send readings, then prove that each is where the service said it would be.

Exit codes: 0 all as promised, 1 something is not, 2 wrong use or no proof (none was possible, or
most outcomes are not known),
130 interrupted (as promised until then, if the comparison was printed).
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from pathlib import Path

import uvloop

from loadgen.cli.run import until_signals
from loadgen.cli.service_options import local_of
from loadgen.cli.verify_options import (
    WrongUse,
    add_parser,
    check_reconcile_only,
    job_of,
    where_of,
)
from loadgen.driver.pool import unreachable
from loadgen.live import shown
from loadgen.proof.conclude import CannotCheck, Evidence, check_ahead, conclude
from loadgen.proof.discard import discard
from loadgen.proof.local_service import NoHome
from loadgen.proof.readings import REFUSED_METRIC
from loadgen.proof.run import Job, Run
from loadgen.proof.table import TableError, refuses
from loadgen.report.verdict import text
from loadgen.words import counted

__all__ = ["add_parser", "main"]

RATE_REACHED = 0.95


def main(chosen: argparse.Namespace) -> int:
    """Send, wait, compare; return the exit code."""
    try:
        local = local_of(chosen)
        where = where_of(chosen, local)
        job = None if chosen.reconcile_only else job_of(chosen, local, where)
        if job is None:
            check_reconcile_only(chosen)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_verify(chosen, job, where))
    except (WrongUse, NoHome, CannotCheck, OSError) as error:
        print(f"loadgen verify: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("loadgen verify: interrupted before the comparison was through", file=sys.stderr)
        return 130


async def _verify(chosen: argparse.Namespace, job: Job | None, where: Evidence) -> int:
    interrupted = False
    ledger: Path = chosen.ledger if job is None else job.ledger
    code = 2
    try:
        if job is not None:
            interrupted, ended = await _send(job, where)
            if interrupted and not ended:
                return 130
        code = await _judge(ledger, _where_now(chosen, where), chosen)
    finally:
        if code and job is not None and ledger.exists():
            print(
                f"to look again: loadgen verify --reconcile-only --ledger {ledger}",
                file=sys.stderr,
            )
    if not code and job is not None:
        keeps = chosen.ledger is not None or chosen.keep
        if not keeps:
            ledger.unlink(missing_ok=True)
        await _end_letters(chosen, job.plan.prefix, keeps=keeps)
    return code or (130 if interrupted else 0)


def _where_now(chosen: argparse.Namespace, before: Evidence) -> Evidence:
    """Return the places of the proof now: a service that was started anew has other addresses."""
    local = local_of(chosen)
    return before if local is None else where_of(chosen, local)


async def _end_letters(chosen: argparse.Namespace, prefix: str, *, keeps: bool) -> None:
    """Discard the dead letters that the run has made on purpose, or say how to do it.

    Without this `doctor` and an alert would soon report them as real ones. With the ledger they are
    kept: another comparison looks for them.
    """
    local = local_of(chosen)  # again: it may have been started anew, with another token
    done = None if keeps or local is None else await discard(local, prefix)
    if done is None:
        print(f"its dead letters stay: {_discards(chosen)} --where device_prefix={prefix} --yes")
    elif done:
        print(f"its {counted(done, 'dead letter')}: discarded")


def _discards(chosen: argparse.Namespace) -> str:
    """Return the command that discards: that of `--dlq-command`, which names a broker of theirs."""
    listed = chosen.dlq_command or ("ingest", "dlq", "list")
    words = ["discard" if each == "list" else each for each in listed if each != "--json"]
    return shlex.join(words)


async def _send(job: Job, where: Evidence) -> tuple[bool, bool]:
    """Send it all; return whether a signal came, and whether every post was ended."""
    await _look_ahead(job, where)
    print(f"run {job.plan.run}: ledger {job.ledger}", file=sys.stderr)
    run = Run(job)
    with shown(lambda: _progress(run)):
        interrupted = await until_signals(run.go(), run.stop)
    print(f"{_progress(run)}, in {run.took_s:.1f} s{_too_slow(run)}", file=sys.stderr)
    return interrupted, run.ended


async def _judge(ledger: Path, where: Evidence, chosen: argparse.Namespace) -> int:
    """Compare, and print the verdict; return the exit code."""
    stage = ["waiting"]
    with shown(lambda: stage[-1]):
        result = await conclude(
            ledger, where, settle_s=chosen.settle_s, report=chosen.report, say=stage.append
        )
    if not result.counts["acknowledged"] and set(result.faults) <= {"wrong_answer"}:
        refused = "".join(f": {each.found}" for each in result.first.get("wrong_answer", ())[:1])
        raise CannotCheck(f"no reading was acknowledged, so nothing is proven{refused}")
    print(text(result))
    if not result.green:
        return 1
    return 0 if result.is_proof else 2


async def _look_ahead(job: Job, where: Evidence) -> None:
    """See whether there will be a proof. Raises CannotCheck, WrongUse."""
    await check_ahead(where, job.plan.prefix)
    if why := await unreachable(job.target, *job.others):
        raise CannotCheck(why)
    if job.plan.refused:
        device = f"{job.plan.prefix}ahead"
        try:
            refused = await refuses(where.database_url, where.names, job.plan.first_us, device)
        except TableError as error:
            raise CannotCheck(str(error)) from error
        if refused is False:
            raise WrongUse(
                "--refused-by-check: the table refuses no such reading; let its owner say: "
                f"alter table {where.names.table} add constraint loadgen_verify check "
                f"({where.names.metric} <> '{REFUSED_METRIC}')"
            )


def _progress(run: Run) -> str:
    final = run.answers.total()
    said = (
        f"{counted(run.taken, 'post')}, {counted(run.readings, 'reading')}, {final:,} answered, "
        f"{run.retried:,} tried again"
    )
    if run.retried:
        said += f" (last: {run.trouble})"
    return said + (f", {run.skipped:,} left out: too many open" if run.skipped else "")


def _too_slow(run: Run) -> str:
    """Say that the rate was not reached: it would prove less than was asked for."""
    job = run.job
    if job.rate is None or job.duration_s is None or run.taken == job.posts:
        return ""
    due = job.rate * min(job.duration_s, run.took_s)
    if run.taken >= RATE_REACHED * due:
        return ""
    return (
        f"; only {run.taken / due:.0%} of --rate: the service is at its limit, or needs more "
        "--connections"
    )
