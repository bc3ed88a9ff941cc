"""Removing a file: its name is gone at once, and a thread frees its blocks."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from ingest.system.files import unlink_aside


def _await_closed(path: Path) -> None:
    """Wait until this process has closed the file, whether it still has a name or not."""
    end_s = time.monotonic() + 5
    while any(each.startswith(str(path)) for each in _open_files()):
        assert time.monotonic() < end_s, "it stays open, so its blocks never come free"
        time.sleep(0.01)


def _open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # that of the list itself
            continue
    return found


def test_unlink_aside_takes_the_name_and_leaves_nothing_open(tmp_path: Path) -> None:
    """The name is removed before the blocks are freed, which may take long."""
    path = tmp_path / "segment"
    path.write_bytes(bytes(1 << 20))
    unlink_aside(path)
    assert not path.exists()
    _await_closed(path)


def test_unlink_aside_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    """A name that does not exist raises FileNotFoundError, as unlink does."""
    with pytest.raises(FileNotFoundError):
        unlink_aside(tmp_path / "segment")


def test_unlink_aside_refused_leaves_the_file_and_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing removal closes its descriptor, because callers repeat it without end."""
    path = tmp_path / "segment"
    path.write_bytes(b"x")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        unlink_aside(path)
    assert path.exists()
    _await_closed(path)
