"""What becomes of rows that are not stored: whose fault it is, and their dead letters.

A row's policy (row-level security) and a trigger that finds no table for a row fail with the same
SQLSTATEs as a missing privilege or a broken trigger (class 42). If the table takes other rows at
the same time, it is the fault of the rows that it refuses. So some are tried, and a row like one
that the table has: all rows of a batch may come from one sender. Only a few are tried, so a broken
table costs little.
Does not: try them, decide when letters are made (the writer does, and the end of a drain), or judge
how many rows may be refused (the circuit breaker does).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar

from ingest.model.block import Block, Outcome, Refusal
from ingest.model.causes import LETTERS_FULL, Verdict, WriteFailed
from ingest.model.codes import NO_PARTITION, TS_TOO_OLD
from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.ledger import Ledger
from ingest.model.moments import RowRun, decode_readings, runs
from ingest.model.ports import DeadLetters
from ingest.model.reading import DRAINED, EXHAUSTED, REFUSED, Letter
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger
from ingest.writer.database_state import Refused

FAILURE_S_MAX = 1.0  # of an append at the end of a drain: then no further one is tried
REST_ROWS = 1_000  # in one append at the end of a drain: if one append fails, others may not

SAMPLES_MAX = 16  # rows of different posts, and as many of the largest post
_T = TypeVar("_T")


async def append_or_hold(dead_letters: DeadLetters, letters: Sequence[Letter]) -> None:
    """Append dead letters. If that fails raise WriteFailed(HOLD): the rows have no other place."""
    try:
        await dead_letters.append(letters)
    except DeadLettersFull as error:
        raise WriteFailed(Verdict.HOLD, str(error), reason=LETTERS_FULL) from error
    except DeadLettersBroken as error:
        raise WriteFailed(Verdict.HOLD, str(error), reason="dead_letters_broken") from error


class Rest(Protocol):
    """What is left in a buffer at the end of a drain."""

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""

    def settle(self, blocks: Sequence[Block]) -> None:
        """Remove blocks that were taken; they are kept elsewhere now, or lost."""


async def set_aside_rest(rest: Rest, dead_letters: DeadLetters, ledger: Ledger) -> None:
    """Dead-letter all blocks that wait, as `drained`. Rows that cannot be appended are dropped.

    After a failure that took long, as of a broker that is away, nothing more is tried: a stop is
    bounded.
    """
    gives_up = ""
    while blocks := rest.take(REST_ROWS):
        letters = block_letters(blocks, DRAINED, "", "the service stopped before it")
        began_s = monotonic_s()
        try:
            if gives_up:
                raise DeadLettersBroken(gives_up)
            await dead_letters.append(letters)
        except (DeadLettersFull, DeadLettersBroken) as error:
            if monotonic_s() - began_s > FAILURE_S_MAX:
                gives_up = str(error)
            ledger.dropped += len(letters)
            get_logger("drain").critical("readings_lost", rows=len(letters), why=str(error))
        else:
            ledger.dead_lettered[DRAINED] += len(letters)
        rest.settle(blocks)
        for block in blocks:
            if block.ack is not None and not block.ack.resolved:
                block.ack.resolve(Outcome(set_aside=True))


def refusals_by_block(piece: list[Block], bad: Sequence[Refusal]) -> dict[int, list[Refusal]]:
    """Return the refusals of each block that has some, by the block's index in `piece`."""
    ends = list(accumulate(block.rows for block in piece))
    found: dict[int, list[Refusal]] = {}
    for each in bad:
        index = bisect_right(ends, each.row)
        row = each.row - (ends[index - 1] if index else 0)
        found.setdefault(index, []).append(each._replace(row=row))
    return found


def refusal_letters(piece: list[Block], refused: dict[int, list[Refusal]]) -> list[Letter]:
    """Return one dead letter for each row that the database refused, by the block's index."""
    letters: list[Letter] = []
    for index, refusals in refused.items():
        block = piece[index]
        readings = list(decode_readings(block.tuples))
        origins = block.origins([refusal.row for refusal in refusals])
        letters += [
            Letter(
                _reason_of(refusal),
                _code_of(refusal),
                refusal.message,
                received_us,
                readings[refusal.row],
                item=item,
                attempts=block.attempts + 1,
            )
            for refusal, (received_us, item) in zip(refusals, origins, strict=True)
        ]
    return letters


def votes_of(refused: Refused) -> dict[int, list[Refusal]]:
    """Return those that count for the circuit breaker."""
    votes = {
        index: [each for each in refusals if each.votes] for index, refusals in refused.items()
    }
    return {index: refusals for index, refusals in votes.items() if refusals}


def counted(refused: Refused) -> Counter[str]:
    """Count refused rows by the reason of their letters."""
    return Counter(_reason_of(each) for refusals in refused.values() for each in refusals)


def _reason_of(refusal: Refusal) -> str:
    """Return the reason of a refused row's letter. With EXHAUSTED it is replayed by itself."""
    return EXHAUSTED if refusal.comes_back else REFUSED


def _code_of(refusal: Refusal) -> str:
    if refusal.too_old:
        return TS_TOO_OLD
    return NO_PARTITION if refusal.no_partition else refusal.sqlstate


def block_letters(blocks: list[Block], reason: str, code: str, message: str) -> list[Letter]:
    """Return one dead letter for each reading of blocks that are set aside as a whole."""
    return [
        Letter(
            reason,
            code,
            message,
            received_us,
            reading,
            item=item,
            attempts=block.attempts,
        )
        for block in blocks
        for reading, (received_us, item) in zip(
            decode_readings(block.tuples), block.origins(range(block.rows)), strict=True
        )
    ]


def sample_rows(blocks: Sequence[Block]) -> list[bytes]:
    """Return a few encoded rows: of posts spread over all of them, and of the largest post.

    Of each table there is one at least.
    """
    largest = max(blocks, key=lambda block: block.rows)
    firsts = [_rows_of(block)[0] for block in _spread(blocks)]
    sampled = firsts + _spread(_rows_of(largest)[1:])
    forms = {run.form for run, _, _ in sampled}
    for block in blocks:
        for run in runs(block.tuples):
            if run.form not in forms:
                forms.add(run.form)
                sampled.append((run, 0, run.offsets()[1]))
    return [run.part(start, end) for run, start, end in sampled]


def _rows_of(block: Block) -> list[tuple[RowRun, int, int]]:
    """Return each row of a block: its run, and where it begins and ends in that."""
    found = list[tuple[RowRun, int, int]]()
    for run in runs(block.tuples):
        found += [(run, start, end) for start, end in pairwise(run.offsets())]
    return found


def _spread(items: Sequence[_T]) -> list[_T]:
    """Return at most SAMPLES_MAX of the items, the first and the last among them."""
    last = len(items) - 1
    if last < SAMPLES_MAX:
        return list(items)
    return [items[last * step // (SAMPLES_MAX - 1)] for step in range(SAMPLES_MAX)]
