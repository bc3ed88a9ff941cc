"""The result of an honest service for the posts of `loadgen verify`; tests falsify it.

`World` has all three parts as plain data: the answers, the rows, the dead letters.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from loadgen.proof.dead_letters import Letter, Row, RunLetters
from loadgen.proof.ledger import Details, Final, Ledger, LedgerWriter
from loadgen.proof.readings import INVALID, REFUSED, VALID, Item, Names, Plan
from loadgen.proof.reconcile import PROBLEM, Fault, Reconciliation

FIRST_US = 1_764_000_000_000_000
PLAN = Plan(
    run="1a2b3c4d",
    seed=5,
    first_us=FIRST_US,
    sizes=((1, 4.0), (10, 1.0)),
    duplicates=0.05,
    invalid=0.05,
    refused=0.02,
)
ACKED = Final(202, "buffered")


class World:
    """An honest run of some posts: its answers, rows and dead letters."""

    def __init__(self, posts: int = 600, plan: Plan = PLAN) -> None:
        self.plan = plan
        self.query = ""
        self.names = Names(plan)
        self.posts: list[list[Item]] = []
        self.finals: dict[int, tuple[Final, Details | None]] = {}
        self.rows: list[Row] = []
        self.letters: list[Letter] = []
        next_first = 0
        for post, items in zip(range(posts), plan.posts(), strict=False):
            self.posts.append(items)
            self.finals[post] = self._answer(items)
            for item in items:
                if item.first >= next_first:
                    next_first = item.first + item.count
                    self._keep(item, alone=len(items) == 1)

    def rows_of(self, item: Item) -> list[Row]:
        """Return the rows that the readings of a valid item make."""
        device, ts_us = self.names.device(item), self.plan.first_us + item.first
        return [
            (ts_us, device, metric, self.names.value(number))
            for number, metric in enumerate(self.names.metrics(item), item.first)
        ]

    def letter(self, item: Item, reason: str = "", code: str = "") -> Letter:
        """Return the dead letter of an item's (first) reading."""
        if item.kind >= 0:
            text = self.names.invalid_text(item)
            known = INVALID[item.kind].code
            return Letter(
                f"i{item.first}", reason or "invalid", code or known, None, text, "a file"
            )
        row = self.rows_of(item)[0]
        reason = reason or "refused_by_database"
        return Letter(f"r{item.first}", reason, code or "23514", row, None, "a file")

    def find(self, kind: int, *, several: bool = False, alone: bool = False) -> tuple[int, Item]:
        """Return the first post with an item of `kind` that is sent once, and the item.

        `kind` 0 stands for any invalid kind. `alone`: the post has one item; else more than one.
        """
        sent = [item for items in self.posts for item in items]
        for post, items in enumerate(self.posts):
            for item in items:
                alike = item.kind == kind or (kind == 0 <= item.kind)
                if (
                    post > 20
                    and alike
                    and (item.count > 1) == several
                    and (len(items) == 1) == alone
                    and sum(each is item for each in sent) == 1
                ):
                    return post, item
        raise AssertionError("the plan has none")

    def judge(self, folder: Path, *, replays: bool = True, posts: int | None = None) -> list[Fault]:
        """Write the ledger, compare, and return the result."""
        path = folder / "ledger"
        path.unlink(missing_ok=True)
        asyncio.run(self.write(path, posts))
        faults: list[Fault] = []
        ledger = Ledger.read(path)
        work = Reconciliation(
            ledger, RunLetters(list(self.letters)), faults.append, replays=replays
        )
        rows = sorted(self.rows, key=lambda row: row[0])
        for start in range(0, len(rows), 100):
            work.feed(rows[start : start + 100])
        work.finish()
        self.counts = work.counts
        return faults

    async def write(self, path: Path, posts: int | None = None) -> None:
        """Write the ledger of the run; posts from number `posts` on were not sent."""
        writer = LedgerWriter(path, {"plan": self.plan.to_json(), "url": f"http://x/{self.query}"})
        for post in range(len(self.posts)):
            writer.take(post)
        for post, (final, details) in self.finals.items():
            writer.final(post, final, 1, details)
        await asyncio.sleep(0)
        writer.end(len(self.posts) if posts is None else posts)
        writer.close()

    def _answer(self, items: list[Item]) -> tuple[Final, Details | None]:
        codes = {
            index: INVALID[item.kind].code for index, item in enumerate(items) if item.kind >= 0
        }
        if len(codes) == len(items):
            return Final(422), Details(0, 0, False, {PROBLEM: "all_invalid"})
        if not codes:
            return ACKED, None
        accepted = sum(item.count for item in items) - len(codes)
        return ACKED, Details(accepted, len(codes), False, codes)

    def _keep(self, item: Item, *, alone: bool) -> None:
        if item.kind == VALID:
            self.rows += self.rows_of(item)
        elif item.kind == REFUSED or not alone:
            self.letters.append(self.letter(item))
