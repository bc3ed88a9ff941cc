"""The options of `loadgen verify`, and what they mean: where to look, what to send."""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from loadgen import cli_values as values
from loadgen.conclude import Where
from loadgen.local_service import LocalService, state_folder
from loadgen.post import Target, target_of
from loadgen.proof import POST_READINGS_MAX, REFUSED_METRIC, Plan
from loadgen.verify import Job

DURATION_S = 10.0
LOOPBACK = ("127.0.0.1", "::1")


class WrongUse(Exception):
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
        "readings of each kind are listed); 2: wrong use, or no proof: none was "
        "possible, or of more than half of the readings the outcome is not known; "
        "130: interrupted, and as promised so far.",
    )
    verify.set_defaults(sends=())
    where = verify.add_argument_group("where")
    where.add_argument("--url", type=values.url, metavar="URL", help="of the service")
    where.add_argument("--admin-url", metavar="URL", help="of its admin port (/metrics)")
    where.add_argument(
        "--database-url",
        metavar="URL",
        help="PostgreSQL, the primary; also INGEST_DATABASE_URL",
    )
    where.add_argument("--dlq-dir", type=values.path, metavar="DIR", help="the dead-letter folder")
    where.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="of a service on this machine: says all of the above; default: the usual place",
    )
    traffic = verify.add_argument_group("what to send")
    _add_traffic(traffic)
    _add_patience(traffic)
    proof = verify.add_argument_group("the proof")
    proof.add_argument(
        "--ledger", type=values.path, metavar="FILE", help="write the ledger there, and keep it"
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


class _Sends(argparse.Action):
    """Stores an option of what is sent, and that it was given: its default does not tell."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.sends = (*namespace.sends, option_string)


def _add_traffic(traffic: argparse._ArgumentGroup) -> None:
    add = partial(traffic.add_argument, action=_Sends)
    add(
        "--duration-s",
        type=values.above_zero,
        metavar="S",
        help=f"send for so long ({DURATION_S:g}, unless --posts is given)",
    )
    add("--posts", type=values.count(), metavar="N", help="send so many posts")
    add(
        "--rate",
        type=values.rate,
        metavar="R",
        help="posts a second; without it each connection posts as soon as it has its answer",
    )
    add(
        "--connections",
        type=values.count(1, 10_000),
        default=16,
        metavar="N",
        help="posts at once (%(default)s)",
    )
    add(
        "--batch",
        type=values.mix,
        default="1x8,10,100",
        metavar="MIX",
        help="readings a post: 100, or a mix with weights (%(default)s)",
    )
    add("--ack", choices=("buffered", "durable", "committed"), help="default: the service's")
    add("--seed", type=values.count(0), default=1, metavar="N", help="of all choices (%(default)s)")
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
        add(
            f"--{name}",
            type=values.share,
            default=default.replace("%%", "%"),
            metavar="SHARE",
            help=f"{what} ({default})",
        )


def _add_patience(traffic: argparse._ArgumentGroup) -> None:
    add = partial(traffic.add_argument, action=_Sends)
    add(
        "--give-up-s",
        type=values.above_zero,
        default=300.0,
        metavar="S",
        help="keep trying one post for so long (%(default)g)",
    )
    add(
        "--answer-s",
        type=values.above_zero,
        default=30.0,
        metavar="S",
        help="an answer that takes longer counts as none (%(default)g)",
    )


def _is_meant(chosen: argparse.Namespace, local: LocalService | None) -> bool:
    """Whether the service of this machine is the one to look at."""
    if local is None:
        return False
    target: Target | None = chosen.url
    if target is None:
        return True
    own = target_of(local.url)
    near = {own.host, "localhost"} if own.host in LOOPBACK else {own.host}
    return target.port == own.port and target.host in near


def where_of(chosen: argparse.Namespace, local: LocalService | None) -> Where:
    """Return where the proof lies. Raises WrongUse."""
    if not _is_meant(chosen, local):
        local = None
    database_url = chosen.database_url or (local.database_url if local else "")
    database_url = database_url or os.environ.get("INGEST_DATABASE_URL", "")
    dlq_dir = chosen.dlq_dir or (local.dlq_dir if local else None)
    admin_url = chosen.admin_url or (local.admin_url if local else None)
    for value, option in ((database_url, "--database-url"), (dlq_dir, "--dlq-dir")):
        if not value:
            folder = state_folder(chosen.state_dir)
            why = f"no service runs on {folder}" if chosen.url is None else "another --url"
            raise WrongUse(f"{why}, so where its proof lies is not known: say {option}")
    assert dlq_dir is not None, "said above"
    if admin_url is not None and not admin_url.startswith(("http://", "https://")):
        raise WrongUse(f"--admin-url {admin_url}: does not begin with http://")
    return Where(database_url, dlq_dir, admin_url)


def check_reconcile_only(chosen: argparse.Namespace) -> None:
    """See whether there is a ledger, and nothing to send. Raises WrongUse."""
    if chosen.ledger is None:
        raise WrongUse("--reconcile-only needs --ledger FILE")
    for name, option in (("keep", "--keep"), ("ledger_fsync", "--ledger-fsync")):
        if getattr(chosen, name):
            raise WrongUse(f"--reconcile-only writes no ledger: leave out {option}")
    if chosen.sends:
        raise WrongUse(f"--reconcile-only sends nothing: leave out {chosen.sends[0]}")


def job_of(chosen: argparse.Namespace, local: LocalService | None, where: Where) -> Job:
    """Return what to send. Raises WrongUse."""
    target: Target | None = chosen.url
    if target is None:
        if local is None:
            raise WrongUse(
                f"no service runs on {state_folder(chosen.state_dir)}: start it, or --url"
            )
        target = values.url(local.url)
    if max(size for size, _ in chosen.batch) > POST_READINGS_MAX:
        raise WrongUse(f"--batch: at most {POST_READINGS_MAX:,} readings a post")
    if chosen.duplicates + chosen.invalid + chosen.refused_by_check > 0.9:
        raise WrongUse("--duplicates, --invalid and --refused-by-check: at most 90% in all")
    run = secrets.token_hex(4)
    ledger = chosen.ledger or Path(tempfile.gettempdir()) / f"loadgen-verify-{run}.ledger"
    if ledger.exists():
        raise WrongUse(f"--ledger {ledger} exists: choose another, or --reconcile-only")
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
        answer_s_max=chosen.answer_s,
        fsync=chosen.ledger_fsync,
        admin_url=where.admin_url,
    )
