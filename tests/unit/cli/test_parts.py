"""Parts of the commands that need no database: psql's command line, file systems, answers."""

from __future__ import annotations

import argparse
import asyncio
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.app import buffer as app_buffer
from ingest.cli.context import ask
from ingest.cli.doctor import command as cli_doctor
from ingest.cli.doctor.checks import Check
from ingest.cli.doctor.command import machine_checks, port_checks
from ingest.cli.psql import command, find_psql
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.system.files import filesystem_of, is_remote, is_volatile
from ingest.system.state_folder import ServiceInfo, StateFolder, running_service
from tests.support.commands import Here, Step


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("postgresql://me:p%40w@db/x", "postgresql://me@db/x", "p@w"),
        (
            "postgresql://me:pw@a:1,b:2/x?sslmode=require",
            "postgresql://me@a:1,b:2/x?sslmode=require",
            "pw",
        ),
        ("postgresql://me@db/x", "postgresql://me@db/x", None),
        (
            "postgresql://postgres@/postgres?host=/run/x",
            "postgresql://postgres@/postgres?host=/run/x",
            None,
        ),
    ],
)
def test_psql_gets_the_password_by_the_environment_only(
    url: str, shown: str, password: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is not in psql's arguments, which every user can read."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    words, environment = command("/bin/psql", url, ["-c", "select 1"])
    assert words == ["/bin/psql", "-d", shown, "-c", "select 1"]
    assert environment.get("PGPASSWORD") == password


def test_psql_is_found_beside_the_database_first_then_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psql comes from the embedded programs, else from PATH; a missing psql is an error."""
    bundled, system = tmp_path / "bundled", tmp_path / "system"
    for folder, names in ((bundled, ("postgres", "initdb", "psql")), (system, ("psql",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(system))
    monkeypatch.setenv("INGEST_PG_BIN", str(bundled))
    assert find_psql() == str(bundled / "psql")
    (bundled / "psql").unlink()
    assert find_psql() == str(system / "psql")
    monkeypatch.setenv("INGEST_PG_BIN", str(tmp_path))
    assert find_psql() == str(system / "psql")
    (system / "psql").unlink()
    with pytest.raises(StartError, match="psql was not found"):
        find_psql()


def test_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    """The longest mount point above the folder counts, of two equal ones the later one."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\n"
        "none /run tmpfs rw 0 0\n"
        "srv:/x /mnt/my\\040disk nfs4 rw 0 0\n"
        "none /var ramfs rw 0 0\n"
        "/dev/b /var xfs rw 0 0\n"
        "broken\n"
    )
    assert filesystem_of(Path("/home/x"), mounts) == "ext4"
    assert filesystem_of(Path("/runner"), mounts) == "ext4"
    assert filesystem_of(Path("/mnt/my disk/state"), mounts) == "nfs4"
    assert filesystem_of(Path("/var"), mounts) == "xfs"
    assert filesystem_of(Path("/var"), tmp_path / "none") == ""


def test_overlay_is_what_its_upper_folder_is_on(tmp_path: Path) -> None:
    """An overlay is what its upper folder is on."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nnone /fast tmpfs rw 0 0\n"
        "overlay /one overlay rw,lowerdir=/l,upperdir=/up/1,workdir=/w 0 0\n"
        "overlay /two overlay rw,lowerdir=/l,upperdir=/fast/2,workdir=/w 0 0\n"
        "overlay /three overlay ro,lowerdir=/l 0 0\n"
        "overlay /loop overlay rw,upperdir=/loop/x 0 0\n"
    )
    kinds = [filesystem_of(Path("/") / each, mounts) for each in ("one", "two", "three", "loop")]
    assert kinds == ["overlay on ext4", "overlay on tmpfs", "overlay", "overlay"]
    assert [is_volatile(each) for each in kinds] == [False, True, False, False]
    assert is_remote("overlay on nfs4")
    assert not is_remote("ext4")


@pytest.mark.parametrize(
    ("kind", "changed", "state"),
    [
        ("tmpfs", {}, "FAIL"),
        ("overlay on ramfs", {}, "FAIL"),
        ("tmpfs", {"buffer": "memory"}, "warn"),
        ("tmpfs", {"journal_unsafe": True}, "warn"),
        ("nfs4", {}, "warn"),
        ("ext4", {}, "ok"),
        ("overlay on xfs", {}, "ok"),
    ],
)
def test_state_folder_on_a_forgetful_or_remote_disk_is_told(
    kind: str,
    changed: dict[str, Any],
    state: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """File systems in memory are volatile; those over a network are remote."""
    monkeypatch.setattr(cli_doctor, "filesystem_of", lambda _: kind)
    checked = cli_doctor.folder_checks(Settings(state_dir=str(tmp_path), **changed))
    assert {each.name: each for each in checked}["file system"].state == state


@pytest.mark.parametrize("kind", ["tmpfs", "overlay on tmpfs"])
def test_journal_on_a_forgetful_disk_does_not_start(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the reason and three ways out."""
    monkeypatch.setattr(app_buffer, "filesystem_of", lambda _: kind)
    with pytest.raises(StartError, match="--journal-unsafe true") as refused:
        app_buffer.check_promise([tmp_path], unsafe=False, unless=app_buffer.UNLESS)
    assert kind in str(refused.value)
    assert "--buffer memory" in str(refused.value)
    app_buffer.check_promise([tmp_path], unsafe=True, unless=app_buffer.UNLESS)


@pytest.mark.parametrize("part", ["journal", "dead-letters", "postgres"])
def test_part_that_is_a_mount_of_its_own_is_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Journal, dead letters and embedded database are all checked: each may have the reading."""

    def kind_of(path: Path) -> str:
        return "tmpfs" if path.name == part else "ext4"

    monkeypatch.setattr(app_buffer, "filesystem_of", kind_of)
    monkeypatch.setattr(cli_doctor, "filesystem_of", kind_of)
    settings = Settings(state_dir=str(tmp_path))
    folder, ledger = StateFolder.open(tmp_path), Ledger()
    buffer = app_buffer.make_buffer(settings, folder, ledger)
    with pytest.raises(StartError, match=f"{part} would be on tmpfs.*would not be durable"):
        app_buffer.open_buffer(buffer, settings, folder, lambda _: None)
    assert not folder.journal.exists()

    def state(**changed: Any) -> str:
        settings = Settings(state_dir=str(tmp_path), **changed)
        return {each.name: each for each in cli_doctor.folder_checks(settings)}["file system"].state

    assert state() == "FAIL"
    assert state(buffer="memory") == ("ok" if part == "journal" else "warn")
    assert state(database_url="postgresql://there/db") == ("ok" if part == "postgres" else "FAIL")


def test_doctor_makes_no_folder_and_tells_what_cannot_be_written(tmp_path: Path) -> None:
    """As root it would make folders that the service's user may not write to."""

    def found(state: Path) -> Check:
        checks = [*cli_doctor.folder_checks(Settings(state_dir=str(state)))]
        return {each.name: each for each in checks}["state folder"]

    told = found(tmp_path / "a" / "b")
    assert told == Check(
        "state folder", "ok", f"{tmp_path}/a/b is missing: the first start makes it"
    )
    assert cli_doctor.dead_letters_check(Settings(state_dir=f"{tmp_path}/a")).state == "ok"
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    told = found(tmp_path / "file" / "b")
    assert told.state == "FAIL"
    assert f"cannot write to {tmp_path}/file; choose" in told.detail


def test_doctor_tells_of_damaged_segments_and_of_a_journal_left_behind(tmp_path: Path) -> None:
    """Files of the journal that are not read are reported with advice."""
    journal = tmp_path / "journal"
    journal.mkdir()

    def found(**changed: Any) -> Check:
        settings = Settings(state_dir=str(tmp_path), **changed)
        return {each.name: each for each in cli_doctor.folder_checks(settings)}["journal"]

    assert found().state == "ok"
    assert found(buffer="memory").detail == "none: buffer=memory"
    (journal / "journal-00000000000000000007-0000000a.log").write_bytes(bytes(2**20))
    assert found() == Check("journal", "ok", "1 file, 1.0 MiB")
    assert found(buffer="memory").state == "warn"
    (journal / "journal-00000000000000000001-0000000b.damaged").write_bytes(b"x")
    assert found().state == "warn"
    assert "journal-00000000000000000001-0000000b.damaged" in found().detail


def test_machine_lacking_parts_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library fails; missing compiled parts or too few open files are a warning."""
    monkeypatch.setattr(cli_doctor, "LIBRARIES", ("asyncpg", "not-there"))
    monkeypatch.setattr(cli_doctor, "COMPILED", ("msgspec._core", "aiohttp._not_there"))
    found = {each.name: each for each in machine_checks(Settings(connections_max=2**40))}
    assert found["libraries"].state == "FAIL"
    assert "missing: not-there" in found["libraries"].detail
    assert found["fast parts"].state == "warn"
    assert "aiohttp._not_there" in found["fast parts"].detail
    assert found["open files"].state in {"ok", "warn"}  # ok where there is no limit at all


def test_address_that_cannot_be_bound_is_told() -> None:
    """An address of another machine fails as a port in use does."""
    settings = Settings(
        listen="192.0.2.1:80", admin_listen="no-such-host.invalid:1", broker_url="nats://n"
    )
    assert [each.state for each in port_checks(settings, None)] == ["FAIL", "FAIL"]


class _Admin(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b"{}")
    asked: list[tuple[str, str | None, bytes]] = []  # noqa: RUF012  shared with the test

    by_path: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012  else `answer`

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        token = self.headers.get("Authorization")
        self.asked.append((f"{self.command} {self.path}", token, self.rfile.read(size)))
        status, body = self.by_path.get(self.path, self.answer)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[type[_Admin]]:
    """Run an admin port with answers of the test, published as bound to all interfaces."""
    handler = type("Admin", (_Admin,), {"asked": [], "by_path": {}})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    folder = StateFolder.open(tmp_path)
    lock = folder.lock()
    folder.publish(
        ServiceInfo(
            pid=os.getpid(),
            version="0",
            listen="0.0.0.0:1",
            admin_listen=f"0.0.0.0:{server.server_port}",
            database_url="postgresql://x/y",
            token="secret",
            started_us=0,
        )
    )
    yield handler
    lock.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_request_to_the_service_carries_its_token_past_any_proxy(
    admin: type[_Admin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port on all interfaces is asked on the loopback, without the environment's proxy."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    admin.answer = (200, b'{"ok": true}')
    found = ask(Settings(state_dir=str(tmp_path)), "POST", "/hold/release", {"dead_letter": True})
    assert (found, admin.asked) == (
        {"ok": True},
        [("POST /hold/release", "Bearer secret", b'{"dead_letter": true}')],
    )


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, json.dumps({"detail": "wrong token"}).encode(), "refused: 401 wrong token"),
        (500, b"", "refused: 500"),
        (200, b"<html>", "200, and the answer is not JSON"),
        (200, b"[1]", "200, and the answer is not JSON"),
    ],
)
def test_answer_that_is_none_is_a_sentence(
    admin: type[_Admin], tmp_path: Path, status: int, body: bytes, told: str
) -> None:
    """An answer that is not JSON and a refused token are errors."""
    admin.answer = (status, body)
    with pytest.raises(StartError, match=told):
        ask(Settings(state_dir=str(tmp_path)), "GET", "/readyz")


def test_readiness_that_says_no_is_an_answer(admin: type[_Admin], tmp_path: Path) -> None:
    """A 503 with a state is an answer, not an error."""
    admin.answer = (503, b'{"state": "draining"}')
    assert ask(Settings(state_dir=str(tmp_path)), "GET", "/readyz") == {"state": "draining"}


@pytest.mark.parametrize(
    ("answer", "level", "told"),
    [
        ((200, b'{"state":"accepting","reason":""}'), "ok", "accepting"),
        ((200, b'{"state":"accepting","reason":"away"}'), "warn", "accepting: away"),
        ((200, b'{"state":"on_hold","reason":"no","next":"Fix it."}'), "FAIL", "on_hold: no. Fix"),
        ((200, b'{"state":"accepting","reason":"no","cause":"invalid_full"}'), "FAIL", "no"),
        (
            (200, b'{"state":"accepting","reason":"one","cause":"sender_share_used"}'),
            "FAIL",
            "one",
        ),
        ((200, b'{"state":"accepting","reason":"no","cause":"writes_fail"}'), "FAIL", "no"),
        ((200, b'{"state":"accepting","refused_60s":{"empty":3}}'), "warn", "minute: empty 3"),
        (
            (200, b'{"state":"slowed","reason":"no","next":"Fix it.","refused_60s":{"empty":3}}'),
            "warn",
            "slowed: no. Fix it. Refused in the last minute: empty 3",
        ),
        ((503, b'{"state":"disk_low","reason":"less"}'), "FAIL", "no posts: disk_low: less"),
        ((404, b'{"detail":"nothing here"}'), "FAIL", "refused: 404 nothing here"),
    ],
)
def test_doctor_tells_how_the_running_service_is(
    admin: type[_Admin], tmp_path: Path, answer: tuple[int, bytes], level: str, told: str
) -> None:
    """doctor warns if the service is not accepting, and fails if it refuses posts."""
    admin.answer = answer
    (check,) = port_checks(Settings(), running_service(tmp_path))
    assert (check.name, check.state) == ("service", level)
    assert told in check.detail
    assert admin.asked[0][0] == "GET /readyz"


def test_doctor_says_how_to_correct_the_url_of_the_running_service(
    admin: type[_Admin], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no URL of its own, so it must not speak of an embedded database."""
    admin.answer = (200, b'{"state": "on_hold", "reason": "no"}')
    service = running_service(tmp_path)
    assert service is not None
    StateFolder.open(tmp_path).publish(
        msgspec.structs.replace(
            service,
            database_url="postgresql://u@127.0.0.1:1/x",
            fix_url="Correct --database-url.",
        )
    )
    assert (
        Here(capsys).faults(
            [Step("doctor", 1, out=["Is the address wrong? Correct --database-url."])],
            *("--state-dir", tmp_path),
        )
        == []
    )


def test_doctor_tells_of_a_service_that_does_not_answer(
    admin: type[_Admin], tmp_path: Path, free_port: int
) -> None:
    """A service whose port does not answer fails the check."""
    service = running_service(tmp_path)
    assert service is not None
    deaf = msgspec.structs.replace(service, admin_listen=f"127.0.0.1:{free_port}")
    (check,) = port_checks(Settings(), deaf)
    assert check.state == "FAIL"
    assert f"does not answer at 127.0.0.1:{free_port}" in check.detail


READY = {
    "state": "accepting",
    "reason": "the database is away; readings are kept",
    "since": "an hour ago",
    "cause_since": "now",
    "next": "Start it.",
    "runbook": "ingestdatabasedown",
    "full_in_s": {"journal": 39_900, "dead_letters": None, "disk": 100},
    "refused_60s": {"all_invalid": 3},
    "closed_60s": {},
}
FULL = b'{"state": "on_hold", "cause": "dead_letters_full", "next": "Replay."}'
HOLDS: list[tuple[dict[str, bytes], Step]] = [  # pages of the service, and what a command tells
    (
        {
            "/readyz": b'{"state": "on_hold", "reason": "refuses", "since": "now"}',
            "/hold": b'{"said": "no column \\u001b[2J here"}',
        },
        Step(
            "hold show",
            out=[
                "state:   on_hold\nreason:  refuses\nsince:   now\nsaid:    no column  [2J here\n"
            ],
        ),
    ),
    (
        {"/readyz": json.dumps(READY).encode(), "/hold": b"{}"},
        Step(
            "hold show",
            out=[
                "since:   now\nnext:    Start it.\n"
                "runbook: deploy/RUNBOOK.md#ingestdatabasedown\n"
                "full in: journal 11 h 5 min, disk 2 min\n"
                "refused: all_invalid 3 in the last minute\n"
            ],
        ),
    ),
    (
        {
            "/readyz": b'{"state": "accepting", "reason": "", "since": "now"}',
            "": b'{"columns": {"posts": [9], "received": [60, 40], "dead_invalid": [null, 31]}}',
        },
        Step(
            "hold show", out=["letters: about 31% of the readings of the last minute became dead"]
        ),
    ),
    (
        {"/readyz": json.dumps(READY).encode(), "/hold/release": b'{"released": true}'},
        Step("hold release", out=["released: "]),
    ),
    (
        {"/readyz": json.dumps(READY).encode(), "/hold/release": b'{"released": false}'},
        Step("hold release", out=["nothing is on hold"]),
    ),
    (
        {"/readyz": FULL, "/hold/release": b'{"released": true}'},
        Step(
            "hold release",
            out=["\nBut the dead letters are full: first make space. Replay.\n"],
            lines=2,
        ),
    ),
]


@pytest.mark.parametrize(("pages", "step"), HOLDS)
def test_hold_quotes_the_database_and_says_if_it_was_released(
    admin: type[_Admin],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pages: dict[str, bytes],
    step: Step,
) -> None:
    """`hold show` prints no control characters; `hold release` says if it cannot help."""
    admin.by_path = {path: (200, body) for path, body in pages.items()}
    admin.answer = (200, pages.get("", b"{}"))
    assert Here(capsys).faults([step], "--state-dir", tmp_path) == []


def test_service_runs_on_uvloop_and_its_exit_code_is_the_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ingest serve` passes settings and exit code on, and runs uvloop."""
    from ingest.app import service as app  # noqa: PLC0415
    from ingest.cli.serve import COMMAND  # noqa: PLC0415
    from ingest.config.loading import load  # noqa: PLC0415

    async def serve(_settings: Settings, **_: object) -> int:
        return 3 if "uvloop" in type(asyncio.get_running_loop()).__module__ else 1

    monkeypatch.setattr(app, "serve", serve)
    run = COMMAND.run
    assert run is not None
    assert run(argparse.Namespace(), load(environ={})) == 3
