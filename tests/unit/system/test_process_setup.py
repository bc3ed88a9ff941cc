"""What a process sets for itself: its memory, and how soon threads get the interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ingest.system import process_setup
from ingest.system.process_setup import SWITCH_S, sharing_soon


@pytest.mark.parametrize(
    ("own", "files", "expected_mib"),
    [
        (
            "0::/a/b\n",
            {"memory.max": "max", "a/memory.max": "700000000\n", "a/b/memory.max": "max"},
            667,
        ),
        ("0::/\n", {"memory.max": str(512 << 20)}, 512),
        (
            "5:cpu:/x\n4:memory:/docker/x\n0::/\n",
            {"memory/memory.limit_in_bytes": str(1 << 30)},
            1024,
        ),
        ("0::/\n", {"memory.max": str(1 << 60)}, None),
        ("0::/\n", {}, None),
        (None, {}, None),
    ],
    ids=["a folder above", "a container", "version 1", "more than there is", "none", "no cgroups"],
)
def test_memory_is_the_smallest_limit(
    own: str | None,
    files: dict[str, str],
    expected_mib: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a limit it is that of the machine."""
    monkeypatch.setattr(process_setup, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(process_setup, "CGROUPS", tmp_path / "cgroup")
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert process_setup.memory_bytes() >> 20 == (expected_mib or machine >> 20)


USUAL_S = 0.005


@pytest.fixture(autouse=True)
def _interval() -> Iterator[None]:
    """Begin with Python's own interval, and leave what was set."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(USUAL_S)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.parametrize("ends_first", [0, 1])
def test_interval_is_short_until_the_last_context_ends(ends_first: int) -> None:
    """Two large posts may end in any order."""
    stacks = [ExitStack(), ExitStack()]
    for each in stacks:
        each.enter_context(sharing_soon())
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    stacks[ends_first].close()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    stacks[1 - ends_first].close()
    assert sys.getswitchinterval() == pytest.approx(USUAL_S)
