"""The state folder: made, locked, and used to publish a service. Its errors name the cause."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import structlog.testing

from ingest.model.errors import StartError
from ingest.system import state_folder as statefolder
from ingest.system.files import other_writers
from ingest.system.state_folder import ServiceInfo, StateFolder, running_service

INFO = ServiceInfo(
    pid=os.getpid(),
    version="0.1.0",
    listen="127.0.0.1:8080",
    admin_listen="127.0.0.1:8081",
    database_url="postgresql://postgres@/postgres?host=/tmp/x",
    token="s3cret",
    started_us=1_700_000_000_000_000,
)

REPOSITORY = Path(__file__).parents[3]

HOLDER = """
import sys
from pathlib import Path
from ingest.system.state_folder import StateFolder
folder = StateFolder.open(Path(sys.argv[1]))
folder.lock()
print("locked", flush=True)
sys.stdin.read()
"""


STRANGER = """
import os, sys
from pathlib import Path
from ingest.model.errors import StartError
from ingest.system.state_folder import running_service
if os.geteuid() == 0:
    os.setuid(65534)
try:
    running_service(Path(sys.argv[1]))
except StartError as error:
    print(error)
"""


def mode(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def hold(path: Path) -> subprocess.Popen[str]:
    """Start another process that locks the folder until its stdin is closed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    return child


def test_open_missing_makes_all_of_the_path_passable(tmp_path: Path) -> None:
    """Under any umask the database's user can pass the folder, but not read the secrets."""
    before = os.umask(0o077)
    try:
        folder = StateFolder.open(tmp_path / "a b" / "ü")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a b") == 0o755
    assert mode(folder.path) == 0o755
    assert mode(folder.dead_letters) == 0o700
    assert folder.postgres.parent == folder.path


def test_open_missing_brings_every_name_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is synced into its parent, so it exists after a power cut, as its journal does."""
    synced: list[Path] = []
    monkeypatch.setattr(statefolder, "sync_folder", synced.append)
    StateFolder.open(tmp_path / "a" / "b" / "state")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


@pytest.mark.parametrize(
    ("uid", "gid", "permissions", "told"),
    [
        (os.geteuid(), 0, 0o755, ""),
        (0, os.getegid(), 0o775, ""),  # a pod: its volumes are of its group
        (os.geteuid(), os.getegid(), 0o757, "everybody"),
        (0, 65_533, 0o775, "a group"),
        (65_533, 0, 0o755, "another user"),
    ],
)
def test_others_who_may_write_are_told(
    tmp_path: Path, uid: int, gid: int, permissions: int, told: str
) -> None:
    """Root, the owner of the folder above and a group of ours are no others."""
    found = os.stat_result((permissions, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    assert other_writers(tmp_path, found)[: len(told)] == told
    assert bool(other_writers(tmp_path, found)) is bool(told)


def test_start_warns_if_everybody_may_write(tmp_path: Path) -> None:
    """They could make tokens, and delete the journal."""
    tmp_path.chmod(0o777)
    with structlog.testing.capture_logs() as lines:
        StateFolder.open(tmp_path).lock().close()
    assert [each["event"] for each in lines] == ["state_folder_shared"]


@pytest.mark.parametrize("name", ["file", "file/below", "y" * 300])
def test_open_impossible_names_the_path_and_the_flag(tmp_path: Path, name: str) -> None:
    """A path that cannot be a folder is an error that names it and the flag."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartError, match="--state-dir") as caught:
        StateFolder.open(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_lock_held_names_pid_and_folder(tmp_path: Path) -> None:
    """A second service on a folder fails with the pid of the first one and with advice."""
    child = hold(tmp_path)
    try:
        with pytest.raises(StartError, match="--state-dir") as caught:
            StateFolder.open(tmp_path).lock()
        assert str(child.pid) in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    finally:
        child.communicate()


def test_lock_whose_file_was_removed_still_keeps_others_out(tmp_path: Path) -> None:
    """A second service fails, and what the first one has published stays."""
    folder = StateFolder.open(tmp_path)
    with folder.lock():
        folder.publish(INFO)
        (tmp_path / "lock").unlink()
        with pytest.raises(StartError, match="already uses the state folder"):
            StateFolder.open(tmp_path).lock()
        assert (tmp_path / "service.json").exists()


def test_lock_that_is_a_link_is_a_clear_error(tmp_path: Path) -> None:
    """Neither a start nor a command follows it; both name the file."""
    folder = StateFolder.open(tmp_path)
    folder.publish(INFO)
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    for work in (folder.lock, lambda: running_service(tmp_path)):
        with pytest.raises(StartError, match=f"{tmp_path}/lock"):
            work()


def test_database_that_was_checked_is_remembered(tmp_path: Path) -> None:
    """The last name is found at the next start; a file that cannot be read is no name."""
    folder = StateFolder.open(tmp_path)
    assert folder.remembered_database() == ""
    for name in ("host:5432/a", "host:5432/b"):
        folder.remember_database(name)
        assert StateFolder.open(tmp_path).remembered_database() == name
    assert mode(tmp_path / "checked-database") == 0o600
    (tmp_path / "checked-database").write_bytes(b"\xff\n")
    assert folder.remembered_database() != "host:5432/b"


def test_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    """Kill -9 leaves no lock and no trace of a service."""
    child = hold(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (tmp_path / "service.json").write_bytes(msgspec.json.encode(INFO))
    assert running_service(tmp_path) is None
    folder = StateFolder.open(tmp_path)
    lock = folder.lock()
    assert running_service(tmp_path) is None, "the notes of the killed one are gone"
    lock.close()


def test_publish_then_running_service_returns_it(tmp_path: Path) -> None:
    """What is published is found while the folder is locked, is private, and is removed after."""
    folder = StateFolder.open(tmp_path)
    lock = folder.lock()
    folder.publish(INFO)
    assert running_service(tmp_path) == INFO
    assert mode(tmp_path / "service.json") == 0o600
    folder.publish(msgspec.structs.replace(INFO, listen="[::1]:9"))
    found = running_service(tmp_path)
    assert found is not None
    assert found.listen == "[::1]:9"
    folder.withdraw()
    folder.withdraw()
    assert running_service(tmp_path) is None
    lock.close()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"pid":1}', b'{"pid":' * 9])
def test_running_service_garbled_is_none(tmp_path: Path, text: bytes) -> None:
    """A file that cannot be decoded is no service."""
    folder = StateFolder.open(tmp_path)
    lock = folder.lock()
    (tmp_path / "service.json").write_bytes(text)
    assert running_service(tmp_path) is None
    lock.close()


@pytest.mark.parametrize("pid", [2**22 + 1, 2**70])
def test_running_service_of_a_dead_pid_is_none(tmp_path: Path, pid: int) -> None:
    """The file of a process that does not exist is no service."""
    folder = StateFolder.open(tmp_path)
    lock = folder.lock()
    dead = msgspec.json.encode(INFO).replace(b'"pid":%d' % INFO.pid, b'"pid":%d' % pid)
    (tmp_path / "service.json").write_bytes(dead)
    assert running_service(tmp_path) is None
    lock.close()


def test_running_service_of_another_user_is_a_clear_error(open_tmp_path: Path) -> None:
    """A user who may not read the file gets that as an error, and not "no service"."""
    folder = StateFolder.open(open_tmp_path)
    lock = folder.lock()
    folder.publish(INFO)
    (open_tmp_path / "service.json").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(open_tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert "may not read" in done.stdout
    assert "service.json" in done.stdout
    lock.close()


@pytest.mark.parametrize("part", ["journal", "dead-letters"])
def test_room_is_that_of_the_fullest_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Each part may be a mount of its own; the one with the least free space counts."""
    folder = StateFolder.open(tmp_path)
    folder.journal.mkdir()

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(
        "ingest.system.state_folder.shutil.disk_usage",
        lambda path: Usage(7 if path.name == part else 9),
    )
    words = f"{tmp_path / part}, on the disk that is mounted at {tmp_path}"
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    assert folder.room() == (7, words)
