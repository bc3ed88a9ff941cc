"""The state folder: its lock, the running service, and the mark of the stream."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import structlog.testing

from ingest.model.errors import StartError
from ingest.system import state_folder as statefolder
from ingest.system.files import unlink_aside
from ingest.system.state_folder import (
    MarkFile,
    ServiceInfo,
    StateFolder,
    StreamMark,
    running_service,
)

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


def test_start_warns_if_everybody_may_write(tmp_path: Path) -> None:
    """They could make tokens, and delete the journal."""
    tmp_path.chmod(0o777)
    with structlog.testing.capture_logs() as lines:
        StateFolder.open(tmp_path).lock().close()
    assert [each["event"] for each in lines] == ["state_folder_shared"]


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


def test_lock_unlocked_can_be_taken_again(tmp_path: Path) -> None:
    """After the lock was closed, the folder can be locked again."""
    folder = StateFolder.open(tmp_path)
    folder.lock().close()
    StateFolder.open(tmp_path).lock().close()


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


MARK = StreamMark("monday", purged_to=20, done_to=50, acknowledged_to=100)


async def test_numbers_of_one_stream_only_grow(tmp_path: Path) -> None:
    """Whatever the order. After a loss, and with another stream, they begin anew."""
    kept = MarkFile(tmp_path)
    assert kept.read() == StreamMark()
    await kept.note(MARK)
    await kept.note(StreamMark("monday", done_to=60, acknowledged_to=90))
    assert MarkFile(tmp_path).read() == StreamMark("monday", 20, 60, 100)
    await kept.note(StreamMark("monday", -1, 60, 70), anew=True)
    assert kept.read() == StreamMark("monday", -1, 60, 70)
    assert MarkFile(tmp_path, "nats://other:4222").read() == StreamMark(), "of another broker"
    await kept.note(StreamMark("tuesday", acknowledged_to=3))
    assert kept.read() == StreamMark("tuesday", acknowledged_to=3)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        bytes(512),
        b"[" * 100_000,
        b'["tuesday",1,"2",3]',
        b"[1,2,3,4]",
        b"\xff" * 512,
        b"[]",
        b'["x",1,2,3,4,5,6]',
    ],
)
async def test_damaged_mark_says_nothing(damaged: bytes, tmp_path: Path) -> None:
    """It is written anew."""
    kept = MarkFile(tmp_path)
    await kept.note(MARK)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damaged)
    assert kept.read() == StreamMark()
    await kept.note(MARK)
    assert kept.read() == MARK


async def test_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A gateway in a container may have none. One that is only missing is made."""
    (tmp_path / "file").touch()
    kept = MarkFile(tmp_path / "file" / "missing")
    await kept.note(MARK)
    assert kept.read() == StreamMark()
    kept = MarkFile(tmp_path / "missing")
    await kept.note(MARK)
    assert kept.read() == MARK


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
