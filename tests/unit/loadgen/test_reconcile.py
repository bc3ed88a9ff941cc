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


def _drop(world: World) -> None:
    _, item = world.find(VALID)
    world.rows.remove(world.rows_of(item)[0])


def _drop_one_of_several(world: World) -> None:
    _, item = world.find(VALID, several=True)
    world.rows.remove(world.rows_of(item)[1])


def _drop_last(world: World) -> None:
    world.rows.remove(max(world.rows))


def _double(world: World) -> None:
    _, item = world.find(VALID)
    world.rows += world.rows_of(item)


def _change_last_bit(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    world.rows[world.rows.index(row)] = (*row[:3], math.nextafter(row[3], math.inf))


def _change_sign(world: World) -> None:
    _, item = world.find(VALID, several=True)
    row = world.rows_of(item)[1]
    world.rows[world.rows.index(row)] = (*row[:3], -row[3])


def _not_a_number(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    world.rows[world.rows.index(row)] = (*row[:3], math.nan)


def _add_another_value(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    world.rows.append((*row[:3], row[3] * 2))


def _shift_time(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    world.rows[world.rows.index(row)] = (row[0] - 3_600_000_000, *row[1:])


def _change_device(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    world.rows[world.rows.index(row)] = (row[0], row[1] + "x", *row[2:])


def _change_metric(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    world.rows[world.rows.index(row)] = (*row[:2], "another", row[3])


def _invent_before(world: World) -> None:
    world.rows.append((PLAN.first_us - 1, f"{PLAN.prefix}0001", "power", 1.0))


def _invent_after(world: World) -> None:
    world.rows.append((2**61, f"{PLAN.prefix}0001", "power", 1.0))


def _move_to_infinity(world: World) -> None:
    _, item = world.find(VALID)
    (row,) = world.rows_of(item)
    infinite_us = 2**63 - 1 + 946_684_800_000_000
    world.rows[world.rows.index(row)] = (infinite_us, *row[1:])


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


def _store_what_was_refused(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(422), Details(0, 0, False, {0xFFFF: "dead_letters_full"}))
    assert world.rows_of(item)[0] in world.rows


def _store_invalid(world: World) -> None:
    _, item = world.find(0)
    ts_us = PLAN.first_us + item.first
    world.rows.append((ts_us, world.names.invalid_device(item), "power", 1.0))


def _store_invalid_at_another_time(world: World) -> None:
    _, item = world.find(0, alone=True)
    world.rows.append((2**60, world.names.invalid_device(item), "power", 1.0))


def _keep_letter_of_refused_post(world: World) -> None:
    _, item = world.find(0, alone=True)
    world.letters.append(world.letter(item))


def _lose_letter_of_refused_row(world: World) -> None:
    _, item = world.find(REFUSED)
    world.letters.remove(world.letter(item))


def _lose_letter_of_invalid(world: World) -> None:
    _, item = world.find(0)
    world.letters.remove(world.letter(item))


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


def _count_wrong(world: World) -> None:
    post, _ = world.find(0)
    final, details = world.finals[post]
    assert details is not None
    world.finals[post] = (final, details._replace(accepted=details.accepted + 1))


def _name_an_item_that_is_not_there(world: World) -> None:
    post, _ = world.find(0)
    final, details = world.finals[post]
    assert details is not None
    world.finals[post] = (final, details._replace(codes={**details.codes, 77: "empty"}))


def _name_nothing(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (ACKED, Details(item.count - 1, 1, False, {}))


def _name_more_than_counted(world: World) -> None:
    post, _ = world.find(0)
    final, details = world.finals[post]
    assert details is not None
    count = sum(each.count for each in world.posts[post])
    world.finals[post] = (final, details._replace(accepted=count, dead_lettered=0))


def _say_committed_with_the_status_of_less(world: World) -> None:
    post, _ = world.find(VALID, alone=True)
    world.finals[post] = (Final(202, "committed"), None)


def _say_buffered_with_the_status_of_more(world: World) -> None:
    post, _ = world.find(VALID, alone=True)
    world.finals[post] = (Final(200, "buffered"), None)


def _refuse_valid(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(413), Details(0, 0, False, {0xFFFF: "body_too_large"}))
    world.rows.remove(world.rows_of(item)[0])


def _answer_something_else(world: World) -> None:
    post, _ = world.find(VALID, alone=True)
    world.finals[post] = (Final(200, odd=True), None)


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


def _store_what_never_reached_it(world: World) -> None:
    post, _ = world.find(VALID, alone=True)
    world.finals[post] = (Final(0), None)


def _leave_drained(world: World) -> None:
    _, item = world.find(VALID)
    world.rows.remove(world.rows_of(item)[0])
    world.letters.append(world.letter(item, "drained"))


CHEATS: list[tuple[Callable[[World], None], dict[str, int]]] = [
    (_drop, {"lost": 1}),
    (_drop_one_of_several, {"lost": 1}),
    (_drop_last, {"lost": 1}),
    (_double, {"twice": 1}),
    (_change_last_bit, {"altered": 1}),
    (_change_sign, {"altered": 1}),
    (_not_a_number, {"altered": 1}),
    (_add_another_value, {"never_sent": 1}),
    (_shift_time, {"never_sent": 1, "lost": 1}),
    (_change_device, {"never_sent": 1, "lost": 1}),
    (_change_metric, {"never_sent": 1, "lost": 1}),
    (_invent_before, {"never_sent": 1}),
    (_invent_after, {"never_sent": 1}),
    (_move_to_infinity, {"never_sent": 1, "lost": 1}),
    (_invent_letter, {"never_sent": 1}),
    (_dead_letter_twice, {"twice": 1}),
    (_store_and_dead_letter, {"in_both": 1}),
    (_store_what_was_refused, {"kept_though_refused": 1}),
    (_store_invalid, {"kept_though_refused": 1}),
    (_store_invalid_at_another_time, {"kept_though_refused": 1}),
    (_keep_letter_of_refused_post, {"kept_though_refused": 1}),
    (_lose_letter_of_refused_row, {"lost": 1}),
    (_lose_letter_of_invalid, {"lost": 1}),
    (_change_value_of_letter, {"altered": 1}),
    (_change_original, {"altered": 1}),
    (_give_another_code, {"wrong_reason": 1}),
    (_call_valid_reading_invalid, {"wrong_answer": 1, "wrong_reason": 1}),
    (_accept_invalid, {"wrong_answer": 1}),
    (_name_with_wrong_code, {"wrong_answer": 1}),
    (_count_wrong, {"wrong_answer": 1}),
    (_name_an_item_that_is_not_there, {"wrong_answer": 1}),
    (_name_nothing, {"wrong_answer": 1}),
    (_name_more_than_counted, {"wrong_answer": 1}),
    (_say_committed_with_the_status_of_less, {"wrong_answer": 1}),
    (_say_buffered_with_the_status_of_more, {"wrong_answer": 1}),
    (_refuse_valid, {"wrong_answer": 1}),
    (_answer_something_else, {"wrong_answer": 1}),
    (_say_dead_lettered_but_store, {"kept_though_refused": 1}),
    (_store_unknown_twice, {"twice": 1}),
    (_store_what_never_reached_it, {"never_sent": 1}),
    (_leave_drained, {"not_replayed": 1}),
]


@pytest.mark.parametrize(("cheat", "expected"), CHEATS, ids=[each.__name__ for each, _ in CHEATS])
def test_cheat_is_found_and_nothing_else(
    tmp_path: Path, cheat: Callable[[World], None], expected: dict[str, int]
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
    assert {kind for _, expected in CHEATS for kind in expected} == set(FAULTS) - {"law_broken"}


# Differences that no promise forbids.


def _unknown_and_stored(world: World) -> None:
    post, _ = world.find(VALID, alone=True)
    world.finals[post] = (Final(503, doubt=True), None)


def _unknown_and_not_there(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(0, doubt=True), None)
    world.rows.remove(world.rows_of(item)[0])


def _unknown_and_dead_lettered(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    world.finals[post] = (Final(0, doubt=True), None)
    world.rows.remove(world.rows_of(item)[0])
    world.letters.append(world.letter(item))


def _refused_after_a_lost_try_and_stored(world: World) -> None:
    post, _ = world.find(REFUSED, alone=True)
    world.finals[post] = (
        Final(422, doubt=True),
        Details(0, 0, False, {0xFFFF: "dead_letters_full"}),
    )


def _named_beyond_the_hundred(world: World) -> None:
    post, _ = world.find(0)
    final, details = world.finals[post]
    assert details is not None
    world.finals[post] = (final, details._replace(truncated=True, codes={}))


def _no_answer_on_record(world: World) -> None:
    post, item = world.find(VALID, alone=True)
    del world.finals[post]
    world.rows.remove(world.rows_of(item)[0])


ALLOWED: list[Callable[[World], None]] = [
    _unknown_and_stored,
    _unknown_and_not_there,
    _unknown_and_dead_lettered,
    _refused_after_a_lost_try_and_stored,
    _named_beyond_the_hundred,
    _no_answer_on_record,
]


@pytest.mark.parametrize("change", ALLOWED, ids=lambda each: str(each.__name__))
def test_unpromised_difference_is_no_fault(tmp_path: Path, change: Callable[[World], None]) -> None:
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
