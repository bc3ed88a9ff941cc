"""Compares the promises of a run with the stored data: ledger with table and dead letters.

It reads all three together, in the order of the readings' times. Bounded memory: a byte a post, and
the dead letters of the run; the table is streamed.
Promises: each broken promise becomes a Fault. Does not: wait.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from loadgen.proof.dead_letters import COMES_BACK, Letter, Row, RunLetters
from loadgen.proof.ledger import Final, Ledger
from loadgen.proof.readings import INVALID, VALID, WINDOW, Item, Names, Plan

# The kinds of faults, and the check that each fails.
FAULTS = {
    "lost": "not lost",
    "twice": "once",
    "in_both": "once",
    "never_sent": "only sent",
    "altered": "unaltered",
    "kept_though_refused": "true answers",
    "wrong_answer": "true answers",
    "wrong_reason": "true answers",
    "not_replayed": "replayed",
    "law_broken": "balance",
}
REFUSED_CODE = "refused_by_database"
PROBLEM = 0xFFFF  # the index of a 4xx's code in a ledger

_ACK, _MAYBE, _REFUSED, _NAMED = 1, 2, 4, 8
_NEVER = 1 << 64  # later than PostgreSQL's infinity
_BAD_DEVICE = re.compile(r"bad-(\d+)")


class Fault(NamedTuple):
    """One reading that is not as promised; `number` is its number in the run, if it has one."""

    kind: str
    number: int | None
    reading: str
    promised: str
    found: str


class Reconciliation:
    """One comparison. Feed it the rows of the table in the order of `ts`, then `finish`.

    It calls `fault` for each reading that is not as promised; `counts` has the numbers of readings.
    `replays`: the service runs, so dead letters that it replays by itself must be gone.
    """

    def __init__(
        self, ledger: Ledger, folder: RunLetters, fault: Callable[[Fault], None], *, replays: bool
    ) -> None:
        self.plan = Plan.from_json(ledger.header["plan"])
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # live letters of the run, by reason
        self.rows = 0  # of the table, so far
        self._ledger = ledger
        self._names = Names(self.plan)
        self._fault = fault
        self._replays = replays
        self._letters = self._by_item(folder.letters)
        self._items = self._judged()
        self._item: Item | None = None
        self._at_us = -1  # time of the current item
        self._got: list[Row] = []
        self._next_item()

    # The promises

    def _judged(self) -> Iterator[Item]:
        """Yield all items in order, each with its outcome, when no later post can repeat it."""
        open_items: deque[Item] = deque()
        next_first = 0
        asked = self._ledger.asked
        for post, items in zip(range(self._ledger.posts), self.plan.posts(), strict=False):
            final = self._ledger.final(post)
            flags = self._flags(final)
            accepted = 0
            for item in items:
                item.flags |= flags
                if item.first >= next_first:
                    open_items.append(item)
                    next_first += item.count
                if flags == _ACK and item.note is None:
                    item.note = final
                accepted += item.count
            if flags == _ACK and final is not None and not final.details:
                self.counts["answered_accepted"] += accepted
            if final is None or final.details or final.odd or flags == _REFUSED:
                self._judge(post, items, final)
            if flags == _ACK and final is not None and not final.grants(asked):
                ack = f"ack {final.ack}, asked for {asked or 'any'}"
                self._wrong(post, items[0], f"answer {final.status} with {ack}")
            while len(open_items) > WINDOW:
                yield open_items.popleft()
        yield from open_items

    def _flags(self, final: Final | None) -> int:
        if final is None:
            return _MAYBE
        if 200 <= final.status < 300 and not final.odd:
            return _ACK
        if final.doubt or final.odd or final.status >= 500:
            return _MAYBE
        return _REFUSED if final.status else 0

    def _judge(self, post: int, items: list[Item], final: Final | None) -> None:
        """Note an answer that is not just "all accepted", or no answer."""
        if final is None:
            self.counts["posts_unanswered"] += 1
            return
        details = self._ledger.details(post) if final.details else None
        if final.odd:
            self._wrong(post, items[0], f"answer {final.status} that is not one of the service")
            return
        if details is None or not 200 <= final.status < 300:
            code = details.codes.get(PROBLEM, "") if details is not None else ""
            if any(item.kind < 0 for item in items) and code != "dead_letters_full":
                self._wrong(post, items[0], f"valid readings refused with {final.status} {code}")
            return
        self.counts["answered_accepted"] += details.accepted
        total = sum(item.count for item in items)
        named = [items[index].count for index in details.codes if index < len(items)]
        fits = details.truncated or len(named) <= details.dead_lettered <= sum(named)
        if details.accepted + details.dead_lettered != total or not fits:
            said = f"{details.accepted} accepted + {details.dead_lettered} dead-lettered"
            self._wrong(post, items[0], f"{said} of {total} readings, {len(named)} items named")
        for index, code in details.codes.items():
            if index >= len(items):
                self._wrong(post, items[0], f"item {index} named in a post of {len(items)}")
                continue
            item = items[index]
            if item.kind < 0 and code != REFUSED_CODE:
                self._wrong(post, item, f"a valid reading called {code}")
            item.flags |= _NAMED
            item.note = code
        if details.truncated:  # unnamed invalid items may be dead-lettered
            for item in items:
                if item.kind >= 0 and not item.flags & _NAMED:
                    item.flags |= _NAMED
                    item.note = INVALID[item.kind].code

    def _wrong(self, post: int, item: Item, found: str) -> None:
        self._say("wrong_answer", item, 0, f"post {post} gets an honest answer", found)

    # The stored data

    def _by_item(self, letters: Sequence[Letter]) -> dict[int, list[Letter]]:
        by_item: dict[int, list[Letter]] = {}
        for letter in letters:
            self.reasons[letter.reason] += 1
            if letter.row is not None:
                number = letter.row[0] - self.plan.first_us
            else:
                match = _BAD_DEVICE.search(letter.original or "")
                number = int(match[1]) if match else -1
            by_item.setdefault(number, []).append(letter)
        return by_item

    def feed(self, rows: Sequence[Any]) -> None:
        """Take the next rows (ts in Unix us, device_id, metric, value), in the order of ts."""
        self.rows += len(rows)
        for row in rows:
            ts_us = row[0]
            while self._at_us < ts_us:
                self._close_item()
            if ts_us == self._at_us:
                self._got.append(row)
            else:
                self._unexpected(row)

    def finish(self) -> None:
        """Compare the rest of the ledger and of the letters."""
        while self._item is not None:
            self._close_item()
        for letters in self._letters.values():
            for letter in letters:
                row = letter.row
                what = self._shown(row) if row is not None else f"{letter.original}"
                found = f"a dead letter ({letter.reason} {letter.code}) in {letter.place}"
                self._fault(Fault("never_sent", None, what, "was never sent", found))
        self._letters.clear()

    def _next_item(self) -> None:
        self._item = next(self._items, None)
        self._at_us = _NEVER if self._item is None else self.plan.first_us + self._item.first

    def _close_item(self) -> None:
        """Compare the current item with the rows of its time, then take the next item."""
        item, got = self._item, self._got
        if item is None:
            return
        letters = self._letters.pop(item.first, None) if self._letters else None
        counts = self.counts
        counts["readings"] += item.count
        if (
            item.flags == _ACK
            and item.count == len(got) == 1
            and letters is None
            and item.kind == VALID
            and got[0][3] == self._names.value(item.first)
            and got[0][1] == self._names.device(item)
            and got[0][2] == self._names.metrics(item)[0]
        ):  # nearly all items
            counts["acknowledged"] += 1
            counts["in_table"] += 1
        elif item.kind >= 0:
            self._close_invalid(item, got, letters or [])
        else:
            self._close_valid(item, got, letters or [])
        if got:
            self._got = []
        self._next_item()

    def _close_valid(self, item: Item, got: list[Row], letters: list[Letter]) -> None:
        device = self._names.device(item)
        names = [(device, metric) for metric in self._names.metrics(item)]
        for place, name in enumerate(names):
            rows = [row for row in got if (row[1], row[2]) == name]
            kept = [each for each in letters if each.row and each.row[1:3] == name]
            self._compare(item, place, self._names.value(item.first + place), rows, kept)
        for row in got:
            if (row[1], row[2]) not in names:
                self._unexpected(row)
        others = [each for each in letters if not each.row or each.row[1:3] not in names]
        if others:
            self._letters.setdefault(-1 - item.first, []).extend(others)  # reported at the end

    def _compare(
        self, item: Item, place: int, value: float, rows: list[Row], letters: list[Letter]
    ) -> None:
        """Judge one valid reading by the rows and letters of its ts, device and metric."""
        flags = item.flags
        promised = flags & (_ACK | _NAMED)
        self.counts["acknowledged"] += bool(promised)
        self.counts["unknown"] += not promised and bool(flags & _MAYBE)
        copies = sum(row[3] == value for row in rows)
        kept = [each for each in letters if each.row and each.row[3] == value]
        others = [row[3] for row in rows if row[3] != value]
        others += [each.row[3] for each in letters if each.row and each.row[3] != value]
        self.counts["in_table"] += bool(copies)
        self.counts["in_letters"] += bool(kept)
        say = self._say
        for other in others:
            kind = "never_sent" if copies or kept else "altered"
            say(kind, item, place, f"value {value!r}", f"value {other!r}")
        if copies > 1:
            say("twice", item, place, "is stored once", f"{copies} rows")
        if len(kept) > 1:
            say("twice", item, place, "has one live letter", f"{len(kept)} of them")
        if copies and kept:
            found = f"a row, and a live letter in {kept[0].place}"
            say("in_both", item, place, "is in the table or dead-lettered", found)
        if not copies and not kept:
            if promised and not others:
                say("lost", item, place, self._promise(item), "no row and no dead letter")
            return
        if not flags:
            say("never_sent", item, place, "was never sent", "it is there")
        elif not flags & (_ACK | _NAMED | _MAYBE):
            say("kept_though_refused", item, place, "refused: nothing kept", "it is there")
        elif flags & _NAMED and not flags & _MAYBE and item.count == 1 and copies and not kept:
            say("kept_though_refused", item, place, self._promise(item), "a row of the table")
        for each in kept:
            self._check_letter(item, place, each)

    def _check_letter(self, item: Item, place: int, letter: Letter) -> None:
        if letter.reason in COMES_BACK:
            committed = isinstance(item.note, Final) and item.note.ack == "committed"
            if self._replays or committed:
                promised = "is in the table" if committed else "comes back by itself"
                self._say("not_replayed", item, place, promised, f"still in {letter.place}")
        elif letter.reason != REFUSED_CODE:
            found = f"{letter.reason} {letter.code} in {letter.place}"
            self._say("wrong_reason", item, place, "a valid reading", found)

    def _close_invalid(self, item: Item, got: list[Row], letters: list[Letter]) -> None:
        flags = item.flags
        self.counts["invalid"] += 1
        self.counts["in_letters"] += bool(letters)
        for row in got:
            self._unexpected(row)
        if flags & _ACK and not flags & _NAMED:
            self._say("wrong_answer", item, 0, "is named as invalid", "accepted")
        if not letters:
            if flags & _NAMED:
                self._say("lost", item, 0, self._promise(item), "no dead letter")
            return
        if not flags:
            self._say("never_sent", item, 0, "was never sent", f"a letter in {letters[0].place}")
        elif flags == _REFUSED:
            found = f"a letter in {letters[0].place}"
            self._say("kept_though_refused", item, 0, "refused: nothing kept", found)
        code, text = INVALID[item.kind].code, self._names.invalid_original(item)
        for letter in letters:
            if letter.original != text:
                self._say("altered", item, 0, text, f"{letter.original} in {letter.place}")
            if (letter.reason, letter.code) != ("invalid", code):
                found = f"{letter.reason} {letter.code} in {letter.place}"
                self._say("wrong_reason", item, 0, f"invalid {code}", found)
        if flags & _NAMED and item.note != code:
            self._say("wrong_answer", item, 0, f"is called {code}", f"called {item.note}")

    def _unexpected(self, row: Row) -> None:
        """Judge an unexpected row: of a refused item, an altered or an unknown reading."""
        match = _BAD_DEVICE.search(row[1])
        what = self._shown(row)
        if match:
            found = "a row of the table"
            self._fault(
                Fault("kept_though_refused", int(match[1]), what, "is no valid reading", found)
            )
            return
        number = self._names.number(row[3]) if isinstance(row[3], float) else None
        whose = "" if number is None else f"; it has the value of reading {number}"
        self._fault(Fault("never_sent", number, what, "was never sent", f"a row{whose}"))

    # Texts

    def _promise(self, item: Item) -> str:
        note = item.note
        if isinstance(note, Final):
            return f"accepted: {note.status}, ack {note.ack or 'not said'}"
        return f"dead-lettered as {note}" if item.flags & _NAMED else "accepted"

    def _say(self, kind: str, item: Item, place: int, promised: str, found: str) -> None:
        number = item.first + place
        if item.kind >= 0:
            what = self._names.invalid_text(item)
        else:
            names, ts_us = self._names, self.plan.first_us + item.first
            metric, value = names.metrics(item)[place], names.value(number)
            what = self._shown((ts_us, names.device(item), metric, value))
        self._fault(Fault(kind, number, what, promised, found))

    def _shown(self, row: Row) -> str:
        return f"({row[0]} us, {row[1]}, {row[2]}, {row[3]!r})"
