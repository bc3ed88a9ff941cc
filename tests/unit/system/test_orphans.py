"""Children that a killed process has left: how the next one waits for them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ingest.model.errors import StartError
from ingest.roles.supervisor import child
from ingest.system.files import Lock


async def test_process_that_has_ended_since_it_was_found_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are killed all the same; here somebody else has the file."""
    gone = subprocess.Popen(["true"])  # noqa: ASYNC220
    gone.wait()
    path = tmp_path / "children.lock"
    lock = Lock.try_take(path, create=True)
    assert lock is not None
    monkeypatch.setattr(child, "PATIENCE_S", -1.0)
    monkeypatch.setattr(child, "KILL_S_MAX", 1.0)
    monkeypatch.setattr(child, "holders", lambda _: [gone.pid])
    with lock, pytest.raises(StartError, match=f"do not end \\(pid {gone.pid}\\)"):
        await child.family_lock(path)
    monkeypatch.undo()
    (await child.family_lock(path)).close()
