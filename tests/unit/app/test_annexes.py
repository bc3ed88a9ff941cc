"""An annex that is there in part, and dead letters of one that is not.

tests/system/test_without_annexes.py starts the main house alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ingest.app.annexes import annexes
from ingest.cli.main import main

find = annexes.__wrapped__  # without its memory


def test_file_that_an_annex_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an annex that is lost would else be missed by nobody."""
    monkeypatch.delitem(sys.modules, "ingest.roles.annex", raising=False)
    monkeypatch.delattr("ingest.roles.nats.audit", raising=False)
    monkeypatch.setitem(sys.modules, "ingest.roles.nats.audit", None)
    with pytest.raises(ModuleNotFoundError, match=r"ingest\.roles\.nats\.audit"):
        find()


def test_dead_letters_of_a_broker_need_the_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without them a command says what to install; those in the files are listed as ever."""
    monkeypatch.setattr("ingest.cli.context.annexes", tuple)
    (tmp_path / "dead-letters").mkdir()
    words = ["dlq", "list", "--state-dir", str(tmp_path)]
    assert main(words) == 0
    (tmp_path / "broker").mkdir()
    assert main(words) == 2
    assert "install iot-ingest[roles]; or choose the files" in capsys.readouterr().err
    assert main([*words, "--store", "files"]) == 0
