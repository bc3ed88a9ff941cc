"""The comparison: an honest run is green, and each kind of cheat is found and named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.proof.ledger import Details, Final
from loadgen.proof.readings import REFUSED, VALID
from loadgen.proof.reconcile import FAULTS
from tests.support.proofs import ACKED, PLAN, World

Row = tuple[int, str, str, float]


def test_honest_world_is_green_and_counted(tmp_path: Path) -> None:
    """Repeats, invalid items and refused rows are no faults."""
    world = World()
    assert world.judge(tmp_path) == []
    counts = world.counts
    assert counts["in_table"] == len(world.rows) > 1_000
    assert counts["in_letters"] == len(world.letters) > 50
    assert counts["acknowledged"] == len(world.rows) + sum(
        letter.row is not None for letter in world.letters
    )
    assert counts["invalid"] > 30
    assert counts["unknown"] == 0


# Each of these falsifies the honest run in one way.

Cheat = Callable[[World], None]
INFINITE_US = 2**63 - 1 + 946_684_800_000_000
FULL = Details(0, 0, False, {0xFFFF: "dead_letters_full"})


def _alter(change: Callable[[Row], Row | None], *, several: bool = False) -> Cheat:
    """Replace a row by what `change` makes of it; None: it is lost."""

    def cheat(world: World) -> None:
        _, item = world.find(VALID, several=several)
        row = world.rows_of(item)[-1]
        world.rows.remove(row)
        world.rows += [new for new in (change(row),) if new is not None]

    return cheat


def _invent(ts_us: int) -> Cheat:
    row = (ts_us, f"{PLAN.prefix}0001", "power", 1.0)
    return lambda world: world.rows.append(row)


def _answer(final: Final, details: Details | None = None, kind: int = VALID) -> Cheat:
    """Answer a post of one reading otherwise."""

    def cheat(world: World) -> None:
        world.finals[world.find(kind, alone=True)[0]] = (final, details)

    return cheat


def _name(change: Callable[[Details], Details]) -> Cheat:
    """Change what an answer says of its invalid items."""

    def cheat(world: World) -> None:
        post, _ = world.find(0)
        final, details = world.finals[post]
        assert details is not None
        world.finals[post] = (final, change(details))

    return cheat


def _lose_letter(kind: int) -> Cheat:
    return lambda world: world.letters.remove(world.letter(world.find(kind)[1]))


def _double(world: World) -> None:
    _, item = world.find(VALID)
    world.rows += world.rows_of(item)


def _dead_letter_twice(world: World) -> None:
    _, item = world.find(REFUSED)
    world.letters.append(world.letter(item)._replace(id="another"))


def _invent_letter(world: World) -> None:
    _, item = world.find(VALID)
    letter = world.letter(item)
    assert letter.row is not None
    row = (letter.row[0], letter.row[1], "unheard", 1.0)
    world.letters.append(letter._replace(id="new", row=row))


def _store_and_dead_letter(world: World) -> None:
    _, item = world.find(VALID)
    world.letters.append(world.letter(item))


def _store_invalid(world: World) -> None:
    _, item = world.find(0)
    ts_us = PLAN.first_us + item.first
    world.rows.append((ts_us, world.names.invalid_device(item), "power", 1.0))


def _change_value_of_letter(world: World) -> None:
    _, item = world.find(REFUSED)
    letter = world.letter(item)
    assert letter.row is not None
    changed = letter._replace(row=(*letter.row[:3], math.nextafter(letter.row[3], 0)))
    world.letters[world.letters.index(letter)] = changed


def _change_original(world: World) -> None:
    _, item = world.find(0)
    letter = world.letter(item)
    changed = letter._replace(original=f"{letter.original} ")
    world.letters[world.letters.index(letter)] = changed


def _give_another_code(world: World) -> None:
    _, item = world.find(0)
    world.letters[world.letters.index(world.letter(item))] = world.letter(item, code="empty")


def _call_valid_reading_invalid(world: World) -> None:
    post, item = world.find(VALID)
    items = world.posts[post]
    count = sum(each.count for each in items)
    details = world.finals[post][1]
    codes = {**(details.codes if details else {}), items.index(item): "wrong_type"}
    world.finals[post] = (ACKED, Details(count - len(codes), len(codes), False, codes))
    world.rows.remove(world.rows_of(item)[0])
    world.letters.append(world.letter(item, "invalid", "wrong_type"))


def _accept_invalid(world: World) -> None:
    post, _ = world.find(0)
    world.finals[post] = (ACKED, None)


def _name_with_wrong_code(world: World) -> None:
    post, item = world.find(0)
    final, details = world.finals[post]
    assert details is not None
    codes = {**details.codes, world.posts[post].index(item): "empty"}
    world.finals[post] = (final, details._replace(codes=codes))


def _name_nothing(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (ACKED, Details(item.count - 1, 1, False, {}))


def _name_more_than_counted(world: World) -> None:
    post, _ = world.find(0)
    final, details = world.finals[post]
    assert details is not None
    count = sum(each.count for each in world.posts[post])
    world.finals[post] = (final, details._replace(accepted=count, dead_lettered=0))


def _refuse_valid(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(413), Details(0, 0, False, {0xFFFF: "body_too_large"}))
    world.rows.remove(world.rows_of(item)[0])


def _say_dead_lettered_but_store(world: World) -> None:
    post, item = world.find(REFUSED)
    items = world.posts[post]
    count = sum(each.count for each in items)
    final, details = world.finals[post]
    codes = {**(details.codes if details else {}), items.index(item): "refused_by_database"}
    world.finals[post] = (final, Details(count - len(codes), len(codes), False, codes))
    world.letters.remove(world.letter(item))
    world.rows += world.rows_of(item)


def _store_unknown_twice(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(0, doubt=True), None)
    world.rows += world.rows_of(item)


def _leave_drained(world: World) -> None:
    _, item = world.find(VALID)
    world.rows.remove(world.rows_of(item)[0])
    world.letters.append(world.letter(item, "drained"))


CHEATS: dict[str, tuple[Cheat, dict[str, int]]] = {
    "drop": (_alter(lambda _: None), {"lost": 1}),
    "drop one of several": (_alter(lambda _: None, several=True), {"lost": 1}),
    "double": (_double, {"twice": 1}),
    "last bit": (
        _alter(lambda row: (*row[:3], math.nextafter(row[3], math.inf))),
        {"altered": 1},
    ),
    "sign": (_alter(lambda row: (*row[:3], -row[3]), several=True), {"altered": 1}),
    "not a number": (_alter(lambda row: (*row[:3], math.nan)), {"altered": 1}),
    "time": (
        _alter(lambda row: (row[0] - 3_600_000_000, *row[1:])),
        {"never_sent": 1, "lost": 1},
    ),
    "device": (
        _alter(lambda row: (row[0], row[1] + "x", *row[2:])),
        {"never_sent": 1, "lost": 1},
    ),
    "metric": (
        _alter(lambda row: (*row[:2], "another", row[3])),
        {"never_sent": 1, "lost": 1},
    ),
    "infinity": (_alter(lambda row: (INFINITE_US, *row[1:])), {"never_sent": 1, "lost": 1}),
    "invented before": (_invent(PLAN.first_us - 1), {"never_sent": 1}),
    "invented after": (_invent(2**61), {"never_sent": 1}),
    "invented letter": (_invent_letter, {"never_sent": 1}),
    "letter twice": (_dead_letter_twice, {"twice": 1}),
    "stored and dead-lettered": (_store_and_dead_letter, {"in_both": 1}),
    "refused and stored": (_answer(Final(422), FULL), {"kept_though_refused": 1}),
    "invalid and stored": (_store_invalid, {"kept_though_refused": 1}),
    "letter of a refused row lost": (_lose_letter(REFUSED), {"lost": 1}),
    "letter of an invalid item lost": (_lose_letter(0), {"lost": 1}),
    "value of a letter": (_change_value_of_letter, {"altered": 1}),
    "original of a letter": (_change_original, {"altered": 1}),
    "code of a letter": (_give_another_code, {"wrong_reason": 1}),
    "valid called invalid": (_call_valid_reading_invalid, {"wrong_answer": 1, "wrong_reason": 1}),
    "invalid accepted": (_accept_invalid, {"wrong_answer": 1}),
    "wrong code": (_name_with_wrong_code, {"wrong_answer": 1}),
    "wrong count": (
        _name(lambda details: details._replace(accepted=details.accepted + 1)),
        {"wrong_answer": 1},
    ),
    "item that is not there": (
        _name(lambda details: details._replace(codes={**details.codes, 77: "empty"})),
        {"wrong_answer": 1},
    ),
    "nothing named": (_name_nothing, {"wrong_answer": 1}),
    "more named than counted": (_name_more_than_counted, {"wrong_answer": 1}),
    "committed with 202": (_answer(Final(202, "committed")), {"wrong_answer": 1}),
    "buffered with 200": (_answer(Final(200, "buffered")), {"wrong_answer": 1}),
    "valid refused": (_refuse_valid, {"wrong_answer": 1}),
    "no answer of ours": (_answer(Final(200, odd=True)), {"wrong_answer": 1}),
    "dead-lettered but stored": (_say_dead_lettered_but_store, {"kept_though_refused": 1}),
    "unknown, stored twice": (_store_unknown_twice, {"twice": 1}),
    "stored but never sent": (_answer(Final(0)), {"never_sent": 1}),
    "drained and left": (_leave_drained, {"not_replayed": 1}),
}


@pytest.mark.parametrize(("cheat", "expected"), CHEATS.values(), ids=CHEATS)
def test_cheat_is_found_and_nothing_else(
    tmp_path: Path, cheat: Cheat, expected: dict[str, int]
) -> None:
    """One wrong reading in thousands is found, with the right kind of fault and no other."""
    world = World()
    cheat(world)
    faults = world.judge(tmp_path)
    found = {kind: sum(each.kind == kind for each in faults) for kind in FAULTS}
    assert {kind: count for kind, count in found.items() if count} == expected, faults
    for each in faults:
        assert each.promised
        assert each.found
        assert each.reading


def test_every_kind_of_fault_but_the_balance_has_a_cheat() -> None:
    """Each kind of fault has a test (those of the balance are in test_balance.py)."""
    assert {kind for _, expected in CHEATS.values() for kind in expected} == set(FAULTS) - {
        "law_broken"
    }


# Differences that no promise forbids.


def _unknown_and_not_there(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(0, doubt=True), None)
    world.rows.remove(world.rows_of(item)[0])


def _unknown_and_dead_lettered(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(0, doubt=True), None)
    world.rows.remove(world.rows_of(item)[0])
    world.letters.append(world.letter(item))


def _no_answer_on_record(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    del world.finals[post]
    world.rows.remove(world.rows_of(item)[0])


ALLOWED: dict[str, Cheat] = {
    "unknown and stored": _answer(Final(503, doubt=True)),
    "unknown and not there": _unknown_and_not_there,
    "unknown and dead-lettered": _unknown_and_dead_lettered,
    "refused after a lost try, and stored": _answer(Final(422, doubt=True), FULL, REFUSED),
    "named beyond the hundred": _name(lambda of: of._replace(truncated=True, codes={})),
    "no answer on record": _no_answer_on_record,
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_unpromised_difference_is_no_fault(tmp_path: Path, change: Cheat) -> None:
    """A reading with an unknown outcome may be there once or not at all."""
    world = World()
    change(world)
    assert world.judge(tmp_path) == []


def test_repeat_that_was_acknowledged_binds_though_the_first_was_not(tmp_path: Path) -> None:
    """A reading is promised if one of its posts was acknowledged."""
    world = World()
    seen: dict[int, int] = {}
    for post, items in enumerate(world.posts):
        if len(items) == 1 and items[0].kind == VALID and items[0].count == 1:
            first = seen.setdefault(items[0].first, post)
            if first != post and len(world.posts[first]) == 1:
                break
    else:
        raise AssertionError("the plan has none")
    world.finals[first] = (Final(0, doubt=True), None)
    world.rows.remove(world.rows_of(items[0])[0])
    (fault,) = world.judge(tmp_path)
    assert (fault.kind, fault.number) == ("lost", items[0].first)
    assert fault.promised == "accepted: 202, ack buffered"


@pytest.mark.parametrize(
    ("asked", "given", "is_enough"),
    [
        ("committed", Final(202, "buffered"), False),
        ("durable", Final(202, "buffered"), False),
        ("committed", Final(200, "committed"), True),
        ("buffered", Final(200, "committed"), True),
        ("", Final(202, "buffered"), True),
    ],
)
def test_answer_with_a_weaker_ack_than_asked_for_is_a_fault(
    tmp_path: Path, asked: str, given: Final, is_enough: bool
) -> None:
    """A 2xx with a weaker ack than the one asked for is a fault."""
    world = World()
    world.query = f"?ack={asked}" if asked else ""
    for post, (final, details) in world.finals.items():
        if final == ACKED:
            world.finals[post] = (given, details)
    faults = world.judge(tmp_path)
    accepted = sum(final == given for final, _ in world.finals.values())
    assert len(faults) == (0 if is_enough else accepted)
    assert {each.kind for each in faults} <= {"wrong_answer"}
