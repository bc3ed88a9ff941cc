"""The memory that a process may use: that of the machine, or less in a cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingest.system import process_setup


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
