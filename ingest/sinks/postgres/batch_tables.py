"""The rows of a batch by their tables: `readings`, and declared tables, of which each has its form.

Promises: the tables of a batch are always in the same order, `readings` last. So two writers never
wait for each other because they take tables in different orders.
Does not: know statements, or connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ingest.model.block import Refusal
from ingest.model.moments import RowRun, TableForm, has_sections, runs

SECTIONS_AT_ONCE = 1_000  # some 1 ms


class New(NamedTuple):
    """How many readings of a write are new: in their table, and in `readings` in place of it."""

    in_table: int
    in_readings: int = 0


class TableRows(NamedTuple):
    """The rows of a batch for one table. `form` is None for `readings`."""

    form: TableForm | None
    tuples: Sequence[bytes]
    rows: int
    readings: int

    def new_of(self, copied: int) -> New:
        """Return how many readings are new if a COPY has stored so many rows.

        A trigger may have left out some of them. Then it is not known how many readings these had.
        """
        return New(self.readings * copied // self.rows)

    def times_us(self) -> list[int]:
        """Return the time of each row in Unix microseconds."""
        return RowRun(self.form, b"".join(self.tuples), self.rows, self.readings).times_us()


async def by_table(tuples: Sequence[bytes], readings: int) -> list[TableRows]:
    """Return the rows of blocks, which have so many readings, by their tables.

    Others have their turn after each SECTIONS_AT_ONCE: a post of one moment has one.
    """
    data = b"".join(tuples)  # to search in many small blocks would take ten times as long
    if not has_sections(data):
        return [TableRows(None, [data], readings, readings)]
    found: dict[TableForm | None, list[RowRun]] = {}
    for number, run in enumerate(runs(data), start=1):
        found.setdefault(run.form, []).append(run)
        if number % SECTIONS_AT_ONCE == 0:
            await asyncio.sleep(0)
    batch = list[TableRows]()
    for form in _in_order(found):
        of_form = found[form]
        parts = [run.tuples for run in of_form]
        if form is None:
            rows = count = readings - sum(each.readings for each in batch)
        else:
            rows, count = sum(run.rows for run in of_form), sum(run.readings for run in of_form)
        batch.append(TableRows(form, parts, rows, count))
    return batch


class NumberedRows(NamedTuple):
    """As TableRows, with the offsets of the rows, and the numbers of the readings of each row.

    There is one offset more than rows: the end.
    """

    form: TableForm | None
    data: bytes
    offsets: Sequence[int]
    numbers: Sequence[range]

    def part(self, start: int, end: int) -> TableRows:
        """Return the rows from `start` to before `end`."""
        data = self.data[self.offsets[start] : self.offsets[end]]
        return TableRows(self.form, [data], end - start, sum(map(len, self.numbers[start:end])))

    def times_us(self) -> list[int]:
        """Return the time of each row in Unix microseconds."""
        return self.part(0, len(self.numbers)).times_us()

    def only(self, kept: Sequence[int]) -> NumberedRows:
        """Return the rows of these indexes."""
        at = self.offsets
        data = b"".join([self.data[at[row] : at[row + 1]] for row in kept])
        return _numbered(self.form, data, [self.numbers[row] for row in kept])

    def refusals(self, row: int, like: Refusal) -> list[Refusal]:
        """Return a refusal like this one for each reading of a row."""
        return [like._replace(row=number) for number in self.numbers[row]]


def numbered(tuples: Sequence[bytes]) -> list[NumberedRows]:
    """Return the rows of blocks by their tables, with the numbers of their readings. Slow."""
    found: dict[TableForm | None, tuple[list[bytes], list[range]]] = {}
    first = 0
    for run in runs(b"".join(tuples)):
        data, numbers = found.setdefault(run.form, ([], []))
        data.append(run.tuples)
        for count in run.counts():
            numbers.append(range(first, first + count))
            first += count
    return [_numbered(form, b"".join(found[form][0]), found[form][1]) for form in _in_order(found)]


def _numbered(form: TableForm | None, data: bytes, numbers: Sequence[range]) -> NumberedRows:
    return NumberedRows(form, data, RowRun(form, data, -1, -1).offsets(), numbers)


def _in_order(forms: Collection[TableForm | None]) -> list[TableForm | None]:
    declared = sorted(form for form in forms if form is not None)
    return [*declared, None] if None in forms else [*declared]
