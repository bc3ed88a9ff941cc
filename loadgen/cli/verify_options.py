"""The options of `loadgen verify`, and their meaning: the places of the proof, the traffic."""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from loadgen.cli import values
from loadgen.cli.options import ACKS, Option, add_all, picked
from loadgen.cli.parser import Parser
from loadgen.cli.service_options import (
    ADMIN_URL,
    CA,
    FORMAT,
    NEW_CONNECTIONS,
    STATE_DIR,
    TOKEN,
    URLS,
    given_urls,
    targets_for,
)
from loadgen.proof.conclude import Evidence
from loadgen.proof.letter_sources import Files, LetterSource, Program
from loadgen.proof.local_service import LocalService, state_folder
from loadgen.proof.readings import POST_READINGS_MAX, REFUSED_METRIC, Plan
from loadgen.proof.run import Job
from loadgen.proof.table_names import TableNames
from loadgen.traffic.encode import FORMATS

DURATION_S = 10.0
DEVICES_MAX = 1_000_000


class WrongUse(Exception):
    """The options do not fit together; the text names one."""


class _NoteGiven(argparse.Action):
    """Stores an option of the traffic, and notes that it was given, also with its default value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.sends = (*namespace.sends, option_string)


SENDS = "what to send"
OPTIONS = {
    "where": (
        URLS,
        CA,
        ADMIN_URL,
        TOKEN,
        Option(
            "--database-url",
            "PostgreSQL, the primary; also INGEST_DATABASE_URL",
            str,
            shows="URL",
        ),
        Option("--table", "the service's table, as SQL names it", values.table, shows="NAME"),
        Option(
            "--columns",
            "its columns for time, device, metric and value, as SQL names them",
            values.columns,
            shows="NAMES",
        ),
        Option("--dlq-dir", "the dead-letter folder", values.path, shows="DIR"),
        Option(
            "--dlq-command",
            "prints the dead letters, such as: ingest dlq list --json --broker-url URL",
            values.words,
            shows="COMMAND",
        ),
        STATE_DIR,
    ),
    SENDS: (
        Option(
            "--duration-s",
            f"send for so long ({DURATION_S:g}, unless --posts is given)",
            values.above_zero,
            shows="S",
        ),
        Option("--posts", "send so many posts", values.count(), shows="N"),
        Option(
            "--rate",
            "posts a second; without it each connection posts as soon as it has its answer",
            values.rate,
            shows="R",
        ),
        Option("--connections", "posts at once (%(default)s)", values.count(1, 10_000), 16, "N"),
        NEW_CONNECTIONS,
        Option(
            "--devices",
            "each has four metrics, in any order (%(default)s)",
            values.count(1, DEVICES_MAX),
            500,
            "N",
        ),
        Option("--days-old", "all readings are so old (%(default)s)", values.count(0), 0, "N"),
        Option(
            "--batch",
            "readings a post: 100, or a mix with weights (%(default)s)",
            values.mix,
            "1x8,10,100",
            "MIX",
            into="sizes",
        ),
        Option("--ack", "default: the service's", ACKS),
        FORMAT,
        Option("--seed", "of all choices (%(default)s)", values.count(0), 1, "N"),
        Option(
            "--duplicates",
            "of the readings are sent again in a later post (1%%)",
            values.share,
            "1%",
            "SHARE",
        ),
        Option(
            "--invalid",
            "of the readings are none, in various ways (0.5%%)",
            values.share,
            "0.5%",
            "SHARE",
        ),
        Option(
            "--refused-by-check",
            f"of the readings have the metric `{REFUSED_METRIC}`; needs a constraint in the "
            f"table: check (metric <> '{REFUSED_METRIC}') (0)",
            values.share,
            "0",
            "SHARE",
            into="refused",
        ),
        Option(
            "--give-up-s",
            "keep trying one post for so long (%(default)g)",
            values.above_zero,
            300.0,
            "S",
        ),
        Option(
            "--answer-s",
            "an answer that takes longer counts as none (%(default)g)",
            values.above_zero,
            30.0,
            "S",
            into="answer_s_max",
        ),
    ),
    "the proof": (
        Option("--ledger", "write the ledger there, and keep it", values.path, shows="FILE"),
        Option("--keep", "keep the ledger though all is well"),
        Option(
            "--ledger-fsync",
            "the ledger survives a crash of this machine, not only of this program; slow",
            into="fsync",
        ),
        Option("--reconcile-only", "send nothing: compare --ledger once more"),
        Option(
            "--settle-s",
            "wait so long for the service to become quiet (%(default)g)",
            values.above_zero,
            60.0,
            "S",
        ),
        Option(
            "--report",
            "write all that is not as promised, as JSON",
            values.file_to_write,
            shows="FILE",
        ),
    ),
}


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command `verify` with its options."""
    verify = commands.add_parser(
        "verify",
        help="prove that nothing is lost, doubled or altered",
        usage="loadgen verify [options]",
        description="Writes each reading to a record file (the ledger) before it is sent, and\n"
        "each answer when it comes. At the end it looks for each reading in the table and\n"
        "among the dead letters. With a service of this machine it finds database and\n"
        "dead letters by itself.",
        examples=(
            "loadgen verify",
            "loadgen verify --ack committed --rate 200 --duration-s 600",
        ),
        epilog="exit codes:\n"
        "  0    everything is as it was promised\n"
        "  1    something is not: the first readings of each kind are listed\n"
        "  2    wrong use, or no proof: none was possible, or of more than half of the\n"
        "       readings the outcome is not known\n"
        "  130  ended by Ctrl-C; as promised so far if the comparison was printed",
    )
    verify.set_defaults(sends=(), options=OPTIONS)
    add_all(verify, OPTIONS, {SENDS: _NoteGiven})


def where_of(chosen: argparse.Namespace, local: LocalService | None) -> Evidence:
    """Return the places of the proof. Raises WrongUse."""
    database_url = chosen.database_url or (local.database_url if local else "")
    database_url = database_url or os.environ.get("INGEST_DATABASE_URL", "")
    letters = _letters_of(chosen, local)
    admin_urls = tuple(chosen.admin_urls or ((local.admin_url,) if local else ()))
    for is_so, option in (
        (not database_url, "--database-url"),
        (letters is None, "--dlq-dir or --dlq-command"),
    ):
        if is_so:
            folder = state_folder(chosen.state_dir)
            why = "another --url" if given_urls(chosen) else f"no service runs on {folder}"
            raise WrongUse(f"{why}, so where its proof lies is not known: say {option}")
    assert letters is not None, "said above"
    names = local.names if local else TableNames()
    names = TableNames(chosen.table or names.table, *(chosen.columns or names[1:]))
    return Evidence(database_url, letters, tuple(dict.fromkeys(admin_urls)), names)


def _letters_of(chosen: argparse.Namespace, local: LocalService | None) -> LetterSource | None:
    if chosen.dlq_dir and chosen.dlq_command:
        raise WrongUse("--dlq-dir and --dlq-command: say one of them")
    if chosen.dlq_command:
        return Program(chosen.dlq_command)
    if chosen.dlq_dir:
        return Files(chosen.dlq_dir)
    return local.letters if local else None


def check_reconcile_only(chosen: argparse.Namespace) -> None:
    """Check that there is a ledger, and nothing to send. Raises WrongUse."""
    if chosen.ledger is None:
        raise WrongUse("--reconcile-only needs --ledger FILE")
    for name, option in (("keep", "--keep"), ("fsync", "--ledger-fsync")):
        if getattr(chosen, name):
            raise WrongUse(f"--reconcile-only writes no ledger: leave out {option}")
    if chosen.sends:
        raise WrongUse(f"--reconcile-only sends nothing: leave out {chosen.sends[0]}")


def job_of(chosen: argparse.Namespace, local: LocalService | None, where: Evidence) -> Job:
    """Return the traffic to send. Raises WrongUse."""
    run = secrets.token_hex(4)
    ledger = chosen.ledger or Path(tempfile.gettempdir()) / f"loadgen-verify-{run}.ledger"
    shares = chosen.duplicates + chosen.invalid + chosen.refused
    for is_so, why in (
        (
            not given_urls(chosen) and local is None,
            f"no service runs on {state_folder(chosen.state_dir)}: start it, or --url",
        ),
        (
            max(size for size, _ in chosen.sizes) > POST_READINGS_MAX,
            f"--batch: at most {POST_READINGS_MAX:,} readings a post",
        ),
        (
            not FORMATS[chosen.format].is_answered
            and (chosen.refused > 0 or (chosen.invalid > 0 and "--invalid" in chosen.sends)),
            f"--format {chosen.format} goes without --invalid and --refused-by-check: its answers "
            "do not say which readings are dead letters",
        ),
        (shares > 0.9, "--duplicates, --invalid and --refused-by-check: at most 90% in all"),
        (ledger.exists(), f"--ledger {ledger} exists: choose another, or --reconcile-only"),
    ):
        if is_so:
            raise WrongUse(why)
    if not FORMATS[chosen.format].is_answered:
        chosen.invalid = 0.0
    first_s = time.time() - chosen.days_old * 86_400
    plan = Plan(run=run, first_us=int(first_s * 1_000_000), **picked(chosen, Plan))
    try:
        targets = targets_for(chosen, local)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    more = {
        "target": targets[0],
        "others": tuple(targets[1:]),
        "plan": plan,
        "ledger": ledger,
        "query": f"?ack={chosen.ack}" if chosen.ack else "",
        "admin_urls": where.admin_urls,
    }
    if chosen.duration_s is None and chosen.posts is None:
        more["duration_s"] = DURATION_S
    return Job(**picked(chosen, Job) | more)
