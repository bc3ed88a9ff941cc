"""The quick part of the fault matrix, and tests of the matrix and its report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from loadgen.proof.conclude import Result
from loadgen.proof.readings import Plan
from loadgen.proof.reconcile import Fault as Reading
from tests.faults import report
from tests.faults.__main__ import main, parser
from tests.faults.all_faults import BROKER_MODULES, FAULTS, MODULES, YEARS_MODULES
from tests.faults.matrix import BROKER, SERVE, YEARS, of_table, place
from tests.faults.own import Own
from tests.faults.patched import PATCHES
from tests.faults.runner import Done
from tests.faults.selections import CI, SELECTIONS, names_of
from tests.faults.trial import Found
from tests.faults.world import World
from tests.support.documents import commands, fences
from tests.system.service import Reply, run_command

# The faults of the plan's table for one machine without workers or a broker. From 51 on: what
# attackers and operators found.
WANTED = [
    f"F{number}" for number in (*range(2, 23), *range(25, 33), *range(34, 40), 48, *range(50, 62))
]
LETTERS = {SERVE: "FP", BROKER: "B", YEARS: "Y"}
FIRST = {SERVE: "F2", BROKER: "B1", YEARS: "Y1"}  # of each table


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_quick_faults_are_green_and_the_control_loses() -> None:
    """One or two kills of each kind under load: only the control with memory loses readings."""
    done = await run_command("tests.faults", "--quick", "--seed", 1, within_s=170)
    assert done.code == 0, done.stdout + done.stderr
    for name in ("F2", "F4", "F10", "F11", "F27", "C1"):
        (line,) = [each for each in done.stdout.splitlines() if each.startswith(f"{name} ")]
        assert " ok " in line


def test_every_fault_of_the_plan_is_there() -> None:
    """No fault of the plan is missing, and controls and mutants name what they must break."""
    assert [name for name in sorted(FAULTS, key=place) if name.startswith("F")] == WANTED
    for each in FAULTS.values():
        assert (each.kind == "fault") == (not each.breaks)
        letters = {"fault": LETTERS[each.table], "loss": "L", "control": "C"}
        assert each.name[0] in letters.get(each.kind, "M")
        assert not each.mutant or each.mutant in PATCHES
    named = {
        each.__name__.rpartition(".")[2] for each in (*MODULES, *BROKER_MODULES, *YEARS_MODULES)
    }
    there = {path.stem for path in Path(__file__).parent.glob("*_faults.py")} - {"all_faults"}
    assert there - {"test_faults"} == named - {"controls"}
    assert sum(FAULTS[name].times for name in ("F2",)) >= 100
    assert FAULTS["F10"].times * 3 // 4 >= 30
    assert sum(FAULTS[name].times for name in ("Y1", "Y2", "Y3")) == 50


def test_selection_for_ci_is_of_every_family_and_can_fail() -> None:
    """`ci` has existing names only, one of each module, and all controls and mutants."""
    assert set(CI) <= set(FAULTS)
    ours = [name for name in CI if name in OF_SERVE]
    assert {FAULTS[name].harm.__module__ for name in ours} == {each.__name__ for each in MODULES}
    assert {name for name, each in OF_SERVE.items() if each.kind != "fault"} <= set(CI)
    assert len(ours) < len(OF_SERVE)
    assert all(CI.values())


@pytest.mark.parametrize(("table", "modules"), [(BROKER, BROKER_MODULES), (YEARS, YEARS_MODULES)])
def test_selection_with_a_record_is_its_whole_table(
    table: str, modules: tuple[ModuleType, ...]
) -> None:
    """It has each fault of its table, with a reason, and no other."""
    faults, chosen = of_table(table), SELECTIONS[table]
    assert set(chosen) == set(faults)
    assert all(chosen.values())
    assert {each.harm.__module__ for each in faults.values()} == {each.__name__ for each in modules}


def test_the_report_shows_all_that_the_code_has() -> None:
    """Each part of the page agrees with the code: a changed fault needs a new run."""
    page = report.PAGE.read_text()
    for table in FIRST:
        assert report.missing_from(report.part_of(page, table), of_table(table)) == []
    for part in (f"{SERVE}-tables", f"{BROKER}-tables"):
        assert "not yet" in report.part_of(report.put(page, part, "not yet"), part)
    with pytest.raises(ValueError, match="no part ci"):
        report.put(page, "ci", "")


def _done(name: str, **found: object) -> Done:
    return Done(FAULTS[name], 1, Found(**found), 1.0, None)  # type: ignore[arg-type]


OF_SERVE = of_table()
MOST = FAULTS["C1"].lost_each_max or 0


def _all_green(table: str = SERVE) -> list[Done]:
    return [
        _done(name, acknowledged=10, kinds=set(each.breaks), count=1)
        for name, each in of_table(table).items()
    ]


def test_the_report_is_red_where_a_run_is() -> None:
    """The report shows what was found, and its check sees each difference."""
    for table, first in FIRST.items():
        faults, text = of_table(table), report.table
        document = text(_all_green(table))
        assert "Red: none." in document
        assert report.missing_from(document, faults) == []
        for name in faults:
            row = next(line for line in document.splitlines() if line.startswith(f"| {name} |"))
            assert report.missing_from(document.replace(row + "\n", ""), faults) != []
            red_row = row.rsplit(" | ", 1)[0] + " | RED |"
            found = report.missing_from(document.replace(row, red_row), faults)
            assert found == [f"{name}: RED"]
        assert report.missing_from(f"{document}\n| {first[0]}99 | x | y | ok |", faults) == [
            f"{first[0]}99: the code has no such fault"
        ]
        others = [each for each in _all_green(table) if each.fault.name != first]
        red = [*others, _done(first, lost=3, broken=["lost x 3"])]
        assert report.missing_from(text(red), faults) == [f"{first}: **RED**: lost x 3"]
        assert f"Red: {first}." in report.totals(red)


@pytest.mark.parametrize(
    ("done", "green"),
    [
        (_done("F2"), True),
        (_done("F2", broken=["I7: not quiet"]), False),
        (_done("C1"), False),
        (_done("C1", kinds={"lost"}, lost=3 * MOST, count=3), True),
        (_done("C1", kinds={"lost"}, lost=3 * MOST + 1, count=3), False),
        (_done("C1", kinds={"lost"}, lost=2 * MOST, count=1), False),
        (_done("M4", kinds={"lost"}), False),
        (_done("M4", kinds={"twice"}), True),
        (_done("M4", kinds={"twice", "lost"}, broken=["lost x 3"]), False),
        (_done("M1", kinds={"wrong_answer"}), False),
        (_done("C2", kinds={"lost"}, broken=["I9: the balance"]), False),
        (_done("L1", kinds={"lost", "law_broken"}), True),
        (_done("L1", kinds={"lost"}, broken=["told after 12 s"]), False),
        (_done("L1"), False),
    ],
)
def test_a_fault_must_break_nothing_and_a_mutant_one_thing(done: Done, green: bool) -> None:
    """A control that loses nothing is red; so is one that loses more than it may, or breaks more.

    What is red says why.
    """
    assert done.green is green
    assert (done.broken == []) is green


def _noted(world: World, **faults: int) -> Found:
    one = Reading("x", None, "a reading", "kept", "nothing")
    result = Result(Plan("a", 1, 0), 1, counts=Counter(readings=10, acknowledged=10))
    for kind, count in faults.items():
        result.faults[kind] = count
        result.first[kind] = [one._replace(kind=kind)]
    world.take(result)
    return world.found


def test_a_control_is_let_break_only_what_it_is_to_break(tmp_path: Path) -> None:
    """C2 must lose readings; if it also doubles some, it is red and the report says so."""
    found = _noted(World(FAULTS["C2"], 1, tmp_path, tmp_path), lost=5, twice=2)
    assert (found.lost, found.doubled, found.kinds) == (5, 2, {"lost", "twice"})
    (said,) = found.broken
    assert said.startswith("twice x 2: ")
    assert not _noted(World(FAULTS["M1"], 1, tmp_path, tmp_path), lost=5, wrong_answer=1).broken
    (said,) = _noted(World(FAULTS["F2"], 1, tmp_path, tmp_path), lost=5).broken
    assert said.startswith("lost x 5: ")


@pytest.mark.parametrize("quiet", [True, False])
def test_what_is_on_its_way_is_not_called_lost(tmp_path: Path, quiet: bool) -> None:
    """Where the service is not quiet, that is the verdict; what is there twice is there twice."""
    world = World(FAULTS["F2"], 1, tmp_path, tmp_path)
    assert world.quiet_s_max > world.recovery_s_max
    world.expect_quiet(quiet, "I7: not quiet")
    found = _noted(world, lost=5, in_both=1, twice=2)
    if quiet:
        assert (found.lost, found.doubled, len(found.broken)) == (5, 3, 3)
    else:
        assert (found.lost, found.doubled, found.kinds) == (0, 2, {"twice"})
        assert [each.partition(":")[0] for each in found.broken] == ["I7", "twice x 2"]
        assert len(found.notes) == 2
    control = World(FAULTS["C2"], 1, tmp_path, tmp_path)  # it may never be quiet, and must lose
    control.expect_quiet(quiet, "I7: not quiet")
    assert _noted(control, lost=5).lost == 5
    assert control.quiet_s_max == control.recovery_s_max


class _Table:
    """A database that answers each query with these rows."""

    def __init__(self, *rows: tuple[int, str, str, float]) -> None:
        self._rows = rows

    async def ask(self, _: str) -> list[tuple[int, str, str, float]]:
        return list(self._rows)


class _Receiver:
    """A service that answers each post in the same way."""

    def __init__(self, status: int, *bad: int) -> None:
        self._reply = Reply(status, {}, "", {"errors": [{"index": at} for at in bad]})

    async def post(self, _: object) -> Reply:
        return self._reply


async def test_what_a_fault_posts_itself_is_accounted_for() -> None:
    """Accepted items must be in the table once; refused items and those of a 503 need not."""
    items = [{"device_id": "d", "metric": "m", "ts": ts, "value": 1} for ts in range(4)]
    own = Own()
    await own.post(_Receiver(503), [{**items[0], "ts": 77}])  # type: ignore[arg-type]
    await own.post(_Receiver(202, 1), items)  # type: ignore[arg-type]
    rows = [(ts, "d", "m", 1.0) for ts in (0, 2, 2)]
    missing, twice = await own.look(_Table(*rows))  # type: ignore[arg-type]
    assert (missing, twice) == ({(3, "d", "m", 1.0)}, {(2, "d", "m", 1.0)})


def test_what_a_machine_cannot_do_is_not_called_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """With INGEST_TEST_STRICT=1 a fault that could not be tested is red."""
    done = _done("F20")._replace(missing="needs root")
    monkeypatch.delenv("INGEST_TEST_STRICT", raising=False)
    assert done.green
    others = [each for each in _all_green() if each.fault.name != "F20"]
    shown = report.table([*others, done])
    assert report.missing_from(shown, OF_SERVE) == ["F20: not tested: needs root"]
    monkeypatch.setenv("INGEST_TEST_STRICT", "1")
    assert not done.green


def test_the_page_shows_commands_that_are_understood() -> None:
    """The command line takes each command of the page; the faults that it names exist."""
    (block,) = (each.text for each in fences(report.PAGE.read_text()) if each.not_run)
    for _, *words in commands(block):
        chosen = parser().parse_args(words)
        assert not chosen.only or set(names_of(chosen.only)) <= set(FAULTS)


def test_tables_are_not_for_the_archive(capsys: pytest.CaptureFixture[str]) -> None:
    """No service starts with both, so nothing is run."""
    for only in ("years", "F2,Y1"):
        assert main(["--only", only, "--tables"]) == 2
        assert "--tables is not for the faults of years" in capsys.readouterr().err
