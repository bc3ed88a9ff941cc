"""The disks that forget: what was synced stays, and nothing else is sure to."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import forgetting
from tests.faults.lazy_disk import Lazy
from tests.system.service import REPOSITORY, environment

Written = list[tuple[Path, Path]]

# Our own files

WRITER = """
import os, sys
from pathlib import Path
from tests.faults.forgetting import record

def write(state, unsynced, named):
    (state / "journal").mkdir(parents=True)
    record(state, state.parent / "disk", unsynced=unsynced)
    from ingest.system.files import AppendFile, sync_folder
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
    sync_folder(folder) if named else None
    (folder / "removed").unlink()

for folder in sys.argv[3:]:
    if not os.fork():
        try:
            write(Path(folder) / "state", sys.argv[1], sys.argv[2])
            os._exit(0)
        finally:
            os._exit(1)
assert not any(os.wait()[1] for _ in sys.argv[3:])
"""


def _written(tmp_path: Path, count: int, *, unsynced: str = "", named: str = "") -> Written:
    """Write the same files so many times, each by a process of its own; return state and notes.

    The processes are forks: to start Python takes longer than all that they do.
    """
    folders = [tmp_path / str(number) for number in range(count)]
    subprocess.run(
        [sys.executable, "-c", WRITER, unsynced, named, *map(str, folders)],
        check=True,
        cwd=REPOSITORY,
        env=environment(measured=False),
    )
    return [(each / "state", each / "disk") for each in folders]


def test_forgetting_keeps_what_was_synced_and_nothing_else_for_sure(tmp_path: Path) -> None:
    """Synced bytes of named files stay; the rest may go, is torn by sectors, and never grows."""
    for seed, (state, notes) in enumerate(_written(tmp_path, 20)):
        forgetting.forget(state, notes, random.Random(seed))
        kept = (state / "journal" / "kept").read_bytes()
        assert kept[:10_000] == b"k" * 5000 + b"K" * 5000, seed
        assert set(kept[10_000:]) <= {0, ord("x")}, seed
        assert len(kept) <= 13_000, seed
        gone = (state / "journal" / "gone").read_bytes()
        assert len(gone) <= 3_000, seed
        assert set(gone) <= {0, ord("y")}, seed
        assert not (state / "journal" / "removed").exists(), "its name was never on the disk"


# The file system that forgets (the FUSE part of it is P1)


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
