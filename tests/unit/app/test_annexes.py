"""An annex that is there in part, and settings and dead letters of one that is not.

tests/system/test_without_annexes.py starts the main house alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingest.app.annexes import annexes, check_settings
from ingest.cli.commands import main
from ingest.cli.doctor.checks import FAIL
from ingest.cli.doctor.command import machine_checks
from ingest.config.settings import Settings
from ingest.model.errors import StartError

find = annexes.__wrapped__  # without its memory


def test_file_that_an_annex_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an annex that is lost would else be missed by nobody."""
    monkeypatch.delitem(sys.modules, "ingest.roles.annex", raising=False)
    monkeypatch.delattr("ingest.roles.nats.audit", raising=False)
    monkeypatch.setitem(sys.modules, "ingest.roles.nats.audit", None)
    with pytest.raises(ModuleNotFoundError, match=r"ingest\.roles\.nats\.audit"):
        find()


def test_setting_of_an_annex_that_is_not_there_is_told_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ingest doctor` says the sentence of the refused start, as a failure."""
    monkeypatch.setattr("ingest.app.annexes.annexes", tuple)
    check_settings(Settings())
    with pytest.raises(StartError, match="keep_hot needs the extra `archive`") as refused:
        check_settings(Settings(keep_hot="30d"))
    found = [each for each in machine_checks(Settings(keep_hot="30d")) if each.state == FAIL]
    assert [(each.name, each.detail) for each in found] == [("libraries", str(refused.value))]


def test_archive_without_its_library_is_told_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a partition would leave the table, and its readings be in no file."""
    check_settings(Settings(archive_dir="/archive"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StartError, match="archive_dir needs the extra `archive`"):
        check_settings(Settings(archive_dir="/archive"))
    check_settings(Settings(keep_hot="30d"))
    check_settings(Settings(archive_dir="/archive", housekeeping=False))  # another process does it


@pytest.mark.parametrize("name", ["archive_dir", "rollups"])
def test_old_rows_of_declared_tables_never_leave_past_an_archive_or_rollups(name: str) -> None:
    """Both have readings of the table of readings only: together with `keep_hot` it is refused."""
    both: dict[str, Any] = {"tables_file": "tables.toml", name: "/cold"}
    check_settings(Settings(**both))
    with pytest.raises(StartError, match=f"although {name} is set"):
        check_settings(Settings(keep_hot="30d", **both))
    check_settings(Settings(keep_hot="30d", tables_file="tables.toml"))


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


def test_code_for_late_readings_is_loaded_with_the_sink() -> None:
    """At its first write there may be no file descriptor for it, and a load takes too long."""
    program = (
        "import sys; from ingest.app.database import late_of_tables; "
        "from ingest.config.settings import Settings; "
        "late_of_tables(Settings(), lambda: ''); "
        "sys.exit('ingest.years.late_partitions' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
