"""The quick part of the fault matrix, and what keeps the whole of it honest."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import forgetting, report
from tests.faults.__main__ import parser
from tests.faults.all_faults import FAULTS, MODULES
from tests.faults.lazy_disk import Lazy
from tests.faults.matrix import place
from tests.faults.patched import PATCHES
from tests.faults.runner import Done
from tests.faults.world import Found
from tests.system.service import REPOSITORY, environment, run_command

# Of the plan's table: what concerns one machine without workers, partitions or a broker.
WANTED = [f"F{number}" for number in (*range(2, 23), *range(25, 33), *range(34, 40), 48, 50)]


@pytest.mark.timeout(180)
async def test_quick_faults_are_green_and_the_control_loses() -> None:
    """A kill or two of each kind under load: nothing acknowledged is lost, memory alone loses."""
    done = await run_command("tests.faults", "--quick", "--seed", 1, within_s=170)
    assert done.code == 0, done.stdout + done.stderr
    for name in ("F2", "F4", "F10", "F11", "F27", "C1"):
        (line,) = [each for each in done.stdout.splitlines() if each.startswith(f"{name} ")]
        assert " ok " in line


def test_every_fault_of_the_plan_is_there() -> None:
    """None is left out silently, and controls and mutants say what they must break."""
    assert [name for name in sorted(FAULTS, key=place) if name.startswith("F")] == WANTED
    for each in FAULTS.values():
        assert (each.kind == "fault") == (not each.breaks)
        assert each.name[0] in {"fault": "FP", "control": "C", "mutant": "M"}[each.kind]
        assert not each.mutant or each.mutant in PATCHES
    named = {each.__name__.rpartition(".")[2] for each in MODULES}
    there = {path.stem for path in Path(__file__).parent.glob("*_faults.py")} - {"all_faults"}
    assert there - {"test_faults"} == named - {"controls"}
    assert sum(FAULTS[name].times for name in ("F2",)) >= 100
    assert FAULTS["F10"].times * 3 // 4 >= 30


def test_the_report_shows_all_that_the_code_has() -> None:
    """FAULTS.md is of this code: a fault that is new, gone or done otherwise needs a new run."""
    assert report.missing_from((REPOSITORY / "FAULTS.md").read_text()) == []


def _done(name: str, **found: object) -> Done:
    return Done(FAULTS[name], 1, Found(**found), 1.0, None)  # type: ignore[arg-type]


def _all_green() -> list[Done]:
    return [_done(name, acknowledged=10, kinds=set(each.breaks)) for name, each in FAULTS.items()]


def test_the_report_is_red_where_a_run_is() -> None:
    """What it says is what was found, and the check of it sees each difference."""
    document = report.text(_all_green(), 1.0)
    assert report.missing_from(document) == []
    for name in FAULTS:
        row = next(line for line in document.splitlines() if line.startswith(f"| {name} |"))
        assert report.missing_from(document.replace(row + "\n", "")) != []
        red_row = row.rsplit(" | ", 1)[0] + " | RED |"
        assert report.missing_from(document.replace(row, red_row)) == [f"{name}: RED"]
    assert report.missing_from(document + "\n| F99 | x | y | ok |") == [
        "F99: the code has no such fault"
    ]
    others = [each for each in _all_green() if each.fault.name != "F2"]
    red = [*others, _done("F2", lost=3, broken=["lost x 3"])]
    assert report.missing_from(report.text(red, 1.0)) == ["F2: **RED**: lost x 3"]


@pytest.mark.parametrize(
    ("done", "green"),
    [
        (_done("F2"), True),
        (_done("F2", broken=["I7: not quiet"]), False),
        (_done("C1"), False),
        (_done("C1", kinds={"lost"}, lost=15_000), True),
        (_done("C1", kinds={"lost"}, lost=15_001), False),
        (_done("M4", kinds={"lost"}), False),
        (_done("M4", kinds={"twice"}, broken=["twice x 3"]), True),
    ],
)
def test_a_fault_must_break_nothing_and_a_mutant_something(done: Done, green: bool) -> None:
    """A control that loses nothing is red; so is one that loses more than it may."""
    assert done.green is green


def test_what_a_machine_cannot_do_is_not_called_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything must be there, a fault that could not be tested is red."""
    done = _done("F20")._replace(missing="needs root")
    monkeypatch.delenv("INGEST_TEST_STRICT", raising=False)
    assert done.green
    others = [each for each in _all_green() if each.fault.name != "F20"]
    shown = report.text([*others, done], 1.0)
    assert report.missing_from(shown) == ["F20: not tested: needs root"]
    monkeypatch.setenv("INGEST_TEST_STRICT", "1")
    assert not done.green


async def test_list_and_unknown_names() -> None:
    """`--list` names every fault and what is done; a name that is none is wrong use."""
    done = await run_command("tests.faults", "--list")
    assert done.code == 0
    for each in FAULTS.values():
        assert f"{each.name:<4} {each.title}: {report.does(each)}" in done.stdout
    done = await run_command("tests.faults", "--only", "F1")
    assert (done.code, done.stderr) == (2, "./run faults: there is no F1; see --list\n")


def test_the_word_of_the_run_script_leads_here(tmp_path: Path) -> None:
    """`./run faults --list`, from any folder, in an environment that is set up."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    sums = [
        subprocess.run(
            ["cksum"],
            input=(REPOSITORY / name).read_bytes(),
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .strip()
        for name in ("requirements.lock", "requirements-dev.lock")
    ]
    (tmp_path / "ok").write_text(f"{sums[0]} dev {sums[1]}\n{sys.executable}\n")
    done = subprocess.run(
        [REPOSITORY / "run", "faults", "--list"],
        env=environment({"RUN_VENV": str(tmp_path)}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"F2   {FAULTS['F2'].title}: ")


def test_the_page_shows_commands_that_are_understood() -> None:
    """Each line is one that the command line takes; all that it names is there."""
    section = (REPOSITORY / "docs/loadgen.md").read_text().split("## What it has been through")[1]
    commands = re.findall(r"^\./run faults(.*?)  ", section, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        chosen = parser().parse_args(command.split())
        assert set(filter(None, chosen.only.split(","))) <= set(FAULTS)


# The disk that forgets

WRITER = """
import os, sys
from pathlib import Path
from tests.faults.forgetting import record
state = Path(sys.argv[1])
(state / "journal").mkdir(parents=True)
record(state, state.parent / "disk", unsynced=sys.argv[2])
from ingest.files import AppendFile, sync_folder
folder = state / "journal"
kept = AppendFile.open(folder / "kept", create=True)
kept.append(b"k" * 5000)
gone = AppendFile.open(folder / "gone", create=True)
sync_folder(folder)
kept.append(b"K" * 5000)
os.write(kept._fd, b"x" * 3000)
os.write(gone._fd, b"y" * 3000)
nameless = AppendFile.open(folder / "nameless", create=True)
nameless.append(b"n" * 100)
removed = AppendFile.open(folder / "removed", create=True)
removed.append(b"r" * 700)
sync_folder(folder) if len(sys.argv) > 3 else None
(folder / "removed").unlink()
"""


def _written(tmp_path: Path, *words: str) -> tuple[Path, Path]:
    state = tmp_path / "state"
    subprocess.run(
        [sys.executable, "-c", WRITER, str(state), *words],
        check=True,
        cwd=REPOSITORY,
        env=environment(),
    )
    return state, tmp_path / "disk"


@pytest.mark.parametrize("seed", range(20))
def test_forgetting_keeps_what_was_synced_and_nothing_else_for_sure(
    tmp_path: Path, seed: int
) -> None:
    """Synced bytes of named files stay; the rest may go, is torn by sectors, and never grows."""
    state, notes = _written(tmp_path, "")
    forgetting.forget(state, notes, random.Random(seed))
    kept = (state / "journal" / "kept").read_bytes()
    assert kept[:10_000] == b"k" * 5000 + b"K" * 5000
    assert set(kept[10_000:]) <= {0, ord("x")}
    assert len(kept) <= 13_000
    gone = (state / "journal" / "gone").read_bytes()
    assert len(gone) <= 3_000
    assert set(gone) <= {0, ord("y")}
    assert not (state / "journal" / "removed").exists(), "its name was never on the disk"


def test_forgetting_takes_each_thing_that_it_may(tmp_path: Path) -> None:
    """Over some seeds: an unsynced name is there and is not, bytes go, a removed file is back."""
    seen = set()
    for seed in range(12):
        state, notes = _written(tmp_path / str(seed), "", "removed is named")
        forgetting.forget(state, notes, random.Random(seed))
        folder = state / "journal"
        seen.add(("removed", (folder / "removed").exists()))
        seen.add(("unsynced", (folder / "gone").stat().st_size > 0))
        if (folder / "removed").exists():
            assert (folder / "removed").read_bytes() == b"r" * 700
        assert (folder / "nameless").read_bytes() == b"n" * 100
        other, notes = _written(tmp_path / f"other {seed}", "")
        forgetting.forget(other, notes, random.Random(seed))
        seen.add(("nameless", (other / "journal" / "nameless").exists()))
    assert seen == {
        (name, there) for name in ("removed", "unsynced", "nameless") for there in (True, False)
    }


def test_forgetting_loses_what_was_never_synced(tmp_path: Path) -> None:
    """The mutant without fsync: of all that it wrote nothing is sure."""
    lost = 0
    for seed in range(8):
        state, notes = _written(tmp_path / str(seed), "/journal/")
        forgetting.forget(state, notes, random.Random(seed))
        kept = state / "journal" / "kept"
        lost += not kept.exists() or not kept.read_bytes().startswith(b"k" * 5000)
    assert lost == 8


# The file system that forgets (the FUSE part of it is P1)


def test_lazy_file_is_a_file_to_its_reader(tmp_path: Path) -> None:
    """Whatever is written, cut and synced: it reads as a real file does, and so does the disk."""
    rng = random.Random(5)
    path, twin = tmp_path / "lazy", tmp_path / "twin"
    path.touch()
    lazy = Lazy(str(path))
    with twin.open("w+b") as real:
        for _ in range(600):
            size = twin.stat().st_size
            match rng.randrange(8):
                case 0:
                    length = rng.randrange(size + 3_000)
                    lazy.truncate(length)
                    real.truncate(length)
                case 1:
                    lazy.sync()
                    assert path.read_bytes() == twin.read_bytes()
                case 2:
                    lazy.tear(rng)  # changes nothing for who reads
                case _:
                    offset = rng.randrange(size + 5_000)
                    data = rng.randbytes(rng.randrange(1, 9_000))
                    lazy.write(data, offset)
                    real.seek(offset)
                    real.write(data)
            real.flush()
            start, count = rng.randrange(size + 10), rng.randrange(1, 20_000)
            assert lazy.size == twin.stat().st_size
            assert lazy.read(count, start) == twin.read_bytes()[start : start + count]


@pytest.mark.parametrize("torn", [False, True])
def test_lazy_file_keeps_what_was_synced_and_not_the_rest(tmp_path: Path, torn: bool) -> None:
    """On the disk is what was synced; torn: and some whole pages of what was not."""
    path = tmp_path / "lazy"
    path.touch()
    lazy = Lazy(str(path))
    lazy.write(b"k" * 10_000, 0)
    lazy.sync()
    lazy.write(b"x" * 200_000, 10_000)
    assert path.read_bytes() == b"k" * 10_000
    if torn:
        lazy.tear(random.Random(1))
        found = path.read_bytes()
        assert found[:10_000] == b"k" * 10_000
        assert set(found[10_000:]) == {0, ord("x")}
