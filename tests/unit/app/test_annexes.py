"""The annexes that are there, and what a command says without one of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ingest.app.annexes import FOLDERS, annexes
from ingest.cli.main import main

find = annexes.__wrapped__  # without its memory


def test_annex_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its folder is gone, or only its list."""
    assert len(find()) == len(FOLDERS)
    monkeypatch.setitem(sys.modules, "ingest.roles.annex", None)
    monkeypatch.setitem(sys.modules, "ingest.years.annex", None)
    monkeypatch.setitem(sys.modules, "ingest.years", None)
    assert len(find()) == len(FOLDERS) - 2


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
