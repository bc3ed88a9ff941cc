"""Commands see no variables of the machine, and use a state folder of the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the variables of the machine."""
    for name in list(os.environ):
        if name.startswith("INGEST_") or name == "STATE_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))
