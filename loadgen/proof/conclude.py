"""The end of a run of `loadgen verify`: waits until the service is quiet, then compares.

Promises: a green result means that each reading was compared; a reading counts as missing only
after two comparisons. Raises CannotCheck if no comparison was possible. Does not: print, or write
anything except a report.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.proof.balance import Balance, Settled, settle
from loadgen.proof.dead_letters import DeadLettersError, RunLetters
from loadgen.proof.ledger import Ledger, LedgerError
from loadgen.proof.letter_sources import LetterSource
from loadgen.proof.readings import Plan
from loadgen.proof.reconcile import FAULTS, Fault, Reconciliation
from loadgen.proof.table import TableError, check_table, stream_rows
from loadgen.proof.table_names import TableNames
from loadgen.words import counted

FIRST_FAULTS = 20
NO_ANSWER = frozenset({502, 503, 504})  # also of a proxy; another 5xx is a fault of the service
AGAIN_S = 1.0
LATE = frozenset({"lost", "in_both", "not_replayed"})  # faults that a later comparison may not find


class CannotCheck(Exception):
    """Nothing was proven; the text says why."""


class Evidence(NamedTuple):
    """The places of the proof. No `admin_urls`: the service cannot be asked if all is written."""

    database_url: str
    letters: LetterSource
    admin_urls: tuple[str, ...] = ()
    names: TableNames = TableNames()


@dataclass
class Result:
    """The result of a comparison. `counts` are of readings; `first` has the first faults."""

    plan: Plan
    posts: int
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    tries: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[Fault]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    balance: Balance | None = None
    quiet: bool = False
    took_s: float = 0.0

    @property
    def green(self) -> bool:
        """Whether no promise is broken. It proves nothing unless `is_proof`."""
        return not self.faults.total()

    @property
    def is_proof(self) -> bool:
        """Whether at least half of the readings had an answer, and one was acknowledged."""
        counts = self.counts
        maybe = counts["perhaps_never_sent"]  # these are not counted as unknown
        few = (counts["unknown"] - maybe) * 2 <= counts["readings"] - maybe
        return few and bool(counts["acknowledged"])

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object, without the faults themselves."""
        return {
            "green": self.green,
            "is_proof": self.is_proof,
            "plan": asdict(self.plan),
            "posts": self.posts,
            "readings": dict(self.counts),
            "dead_letters": dict(self.reasons),
            "tried_again": {str(status): count for status, count in self.tries.items()},
            "faults": {kind: self.faults[kind] for kind in FAULTS},
            "law": self.balance._asdict() if self.balance is not None else None,
            "quiet": self.quiet,
            "notes": self.notes,
            "took_s": round(self.took_s, 3),
        }


@contextmanager
def _fault_list(result: Result, report: Path | None) -> Iterator[Callable[[Fault], None]]:
    """Give a function that takes a fault: it counts all, keeps the first ones, writes a report.

    Raises CannotCheck if the report cannot be written: half a list would look like a whole one.
    """

    def note(fault: Fault) -> None:
        if report is not None:
            file.write(",\n" if result.faults.total() else "\n")
            file.write(json.dumps({**fault._asdict(), "check": FAULTS[fault.kind]}))
        result.faults[fault.kind] += 1
        first = result.first.setdefault(fault.kind, [])
        if len(first) < FIRST_FAULTS:
            first.append(fault)

    try:
        with open(report or os.devnull, "w") as file:
            file.write('{"list": [')
            try:
                yield note
            finally:
                file.write(f'\n],\n"summary": {json.dumps(result.to_json())}\n}}\n')
    except OSError as error:
        raise CannotCheck(f"--report {report}: {error.strerror}") from error


async def conclude(
    ledger_path: Path,
    where: Evidence,
    *,
    settle_s: float = 60.0,
    report: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Wait until the service is quiet, then compare ledger, table and dead letters.

    A comparison that is not green is made once more, when late readings have arrived.
    Raises CannotCheck, also for the report. Memory: a byte a post, 600 bytes a dead letter.
    """
    try:
        ledger = await asyncio.to_thread(Ledger.read, ledger_path)
        plan = Plan.from_json(ledger.header["plan"])
    except (LedgerError, OSError, KeyError, TypeError, ValueError) as error:
        raise CannotCheck(f"the ledger cannot be read: {error}") from error
    end_s = time.monotonic() + settle_s
    looks = 0
    while True:
        say("waiting until the service is quiet")
        try:
            left_s = max(0.0, end_s - time.monotonic())
            settled = await settle(where.admin_urls, where.letters, plan.prefix, left_s)
            say("comparing")
            result = await _compare(ledger, plan, where, settled, report)
        except (TableError, DeadLettersError) as error:
            if time.monotonic() >= end_s:
                raise CannotCheck(str(error)) from error
            await asyncio.sleep(AGAIN_S)
            continue
        looks += 1
        late = not set(result.faults).isdisjoint(LATE)
        if not late or (looks > 1 and (settled.quiet or time.monotonic() >= end_s)):
            return result
        await asyncio.sleep(AGAIN_S)


async def _compare(
    ledger: Ledger, plan: Plan, where: Evidence, settled: Settled, report: Path | None
) -> Result:
    began_s = time.monotonic()
    balance = settled.balance
    result = Result(plan, ledger.posts, tries=ledger.tries, balance=balance, quiet=settled.quiet)
    folder = await asyncio.to_thread(where.letters.read, plan.prefix)
    with _fault_list(result, report) as fault:
        work = Reconciliation(ledger, folder, fault, replays=balance is not None)
        result.reasons = Counter(work.reasons)
        result.counts = work.counts
        await stream_rows(where.database_url, where.names, plan.prefix, work.feed)
        work.finish()
        result.counts["perhaps_never_sent"] = _readings_after(ledger, plan)
        _check_balance(ledger, result, fault)
        _check_ends(ledger, result, fault)
        if not work.rows and result.counts["acknowledged"]:
            result.notes.append(
                f"the table has no row of {plan.prefix}%: is it the database of this service?"
            )
        _note(ledger, folder, result)
        result.took_s = time.monotonic() - began_s
    return result


def _readings_after(ledger: Ledger, plan: Plan) -> int:
    """Return the number of valid readings of posts that are on record, but have no known outcome.

    A run that was killed had not sent all of these.
    """
    if ledger.posts_known == ledger.posts:
        return 0
    posts = islice(plan.posts(), ledger.posts_known, ledger.posts)
    return sum(item.count for items in posts for item in items if item.kind < 0)


def _check_balance(ledger: Ledger, result: Result, fault: Callable[[Fault], None]) -> None:
    def broken(promised: str, found: str) -> None:
        fault(Fault("law_broken", None, "/metrics", promised, found))

    balance = result.balance
    if balance is None:
        result.notes.append("the balance was not looked at: no admin port answered")
        return
    if balance.is_done and not balance.is_zero:
        found = f"{balance.left_over:g} by our sum, {balance.claimed:g} by the service's own"
        broken("both sides are equal", found)
    elif not balance.is_zero:
        result.notes.append(f"the balance left {balance.left_over:g} over while readings were held")
    if balance.waiting is None:
        result.notes.append("a process, or the stream, did not say whether all is written")
    elif balance.waiting:
        result.notes.append(f"{counted(int(balance.waiting), 'message')} of the stream not done")
    if balance.dropped:
        broken("nothing dropped", f"{balance.dropped:g} dropped")
    before = ledger.header.get("law")
    if before is not None and before["life"] == balance.life:
        grew = balance.accepted - before["accepted"]
        answered = result.counts["answered_accepted"]
        if grew < answered:
            found = f"{grew:g} counted, {answered} answered as accepted"
            broken("counts what it accepts", found)
    elif before is not None:
        what = "the service" if balance.processes == 1 else "a process of the service"
        result.notes.append(f"{what} was started anew during the run")


def _check_ends(ledger: Ledger, result: Result, fault: Callable[[Fault], None]) -> None:
    """Note the posts that ended without a clear answer; a 5xx other than NO_ANSWER is a fault."""
    for status, count in sorted(ledger.statuses().items()):
        said = f"{counted(count, 'post')} ended with status {status}"
        if status >= 500 and status not in NO_ANSWER:
            fault(Fault("wrong_answer", None, "/v1/readings", "2xx, 4xx or 503", said))
        elif status in NO_ANSWER and count:
            result.notes.append(said)
        elif status == 0 and count:
            result.notes.append(f"{counted(count, 'post')} given up without an answer")


def _note(ledger: Ledger, folder: RunLetters, result: Result) -> None:
    """Add notes about facts that are no faults."""
    for count, what in (
        (not ledger.ended, "the ledger has no end: its generator was killed"),
        (ledger.torn_bytes, "the ledger's last record is torn: its answers count as not known"),
        (folder.torn, "the dead letters end in a torn line"),
        (folder.again, f"{counted(folder.again, 'dead letter')} there again, counted once"),
        (
            folder.altered,
            f"{counted(folder.altered, 'altered line')} among the dead letters of the run",
        ),
        (result.balance is not None and result.balance.held, "the service still holds readings"),
        (folder.coming_back, f"{counted(folder.coming_back, 'dead letter')} still to be replayed"),
    ):
        if count:
            result.notes.append(what)


async def check_ahead(where: Evidence, prefix: str) -> None:
    """Check that a comparison will be possible. Raises CannotCheck."""
    try:
        await asyncio.to_thread(where.letters.read, prefix)
        await check_table(where.database_url, where.names)
    except (TableError, DeadLettersError) as error:
        raise CannotCheck(str(error)) from error
