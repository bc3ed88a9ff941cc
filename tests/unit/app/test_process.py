"""A process: its stop, what it finds in the state folder at its start, and its first lines."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.app.buffer import make_buffer
from ingest.app.database import make_target
from ingest.app.post_rules import shown_sources
from ingest.app.process import (
    EXIT_BROKEN,
    EXIT_LOST,
    EXIT_OK,
    LeftInBroker,
    Process,
    greeting_lines,
    note_left,
    refuse_left_files,
    refuse_left_stream,
    refuse_other_database,
)
from ingest.app.service import serve
from ingest.config.settings import Settings
from ingest.dead_letters.folder.segments import live_letters, mark_done
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.supervisor.up import Servers, up
from ingest.system.files import Lock
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import EMBEDDED, StateFolder
from tests.support.documents import REPOSITORY
from tests.support.journals import make_block
from tests.support.letters import LetterFiles, drained, keep


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Undo what a process does to the signals of this one."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


async def fail() -> None:
    """Have a bug."""
    raise ZeroDivisionError


async def nothing() -> None:
    """Do nothing."""


async def ran(process: Process, *, lost: int = 0, close_fails: bool = False) -> int:
    """Run it until it stops; return the exit code."""

    async def stop() -> Mapping[str, int]:
        return {"lost": lost}

    return await process.run(nothing, stop, fail if close_fails else nothing, in_words=lambda: "")


@pytest.mark.parametrize(
    ("lost", "close_fails", "code"),
    [(0, False, EXIT_OK), (0, True, EXIT_BROKEN), (3, True, EXIT_LOST), (3, False, EXIT_LOST)],
)
async def test_error_in_the_close_does_not_replace_the_exit_code(
    lost: int, close_fails: bool, code: int
) -> None:
    """It is in the log; a loss is still told as one."""
    lines: list[str] = []
    process = Process("up", lines.append, Notifier())
    process.stopping.set()
    with capture_logs() as logs:
        assert await ran(process, lost=lost, close_fails=close_fails) == code
    assert lines == [f"drained: lost={lost}"]
    assert [each["event"] for each in logs] == (["task_died"] if close_fails else [])


async def test_task_of_others_that_dies_ends_the_process() -> None:
    """Its owner sees no error when it waits for the task, and can end the rest."""
    process = Process("up", lambda _: None, Notifier())
    with capture_logs() as logs:
        task = process.guard(fail())
        async with asyncio.timeout(5):
            assert await ran(process) == EXIT_BROKEN
        await task
    assert [each["event"] for each in logs] == ["task_died"]


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    """Return a state folder in which nothing has run."""
    return StateFolder.open(tmp_path)


async def keep_block(folder: StateFolder, *, stored: bool) -> None:
    """Keep a block in the journal as `serve` does, and end."""
    journal = make_buffer(Settings(), folder, Ledger())
    journal.open()
    block = make_block(3)
    await (await journal.reserve(block.rows, len(block.tuples))).put(block)
    if stored:
        await journal.wait_rows(1)
        journal.settle(journal.take(100))
    await journal.close()


def leave_stream(folder: StateFolder) -> None:
    """Make what is there after an `up` that was killed."""
    (folder.broker / "store" / "jetstream" / "$G" / "streams" / "INGEST").mkdir(parents=True)


@pytest.mark.parametrize("stored", [False, True])
async def test_up_starts_only_if_the_journal_is_empty(folder: StateFolder, stored: bool) -> None:
    """A journal whose blocks are all in the table is empty."""
    refuse_left_files(folder)
    await keep_block(folder, stored=stored)
    if stored:
        refuse_left_files(folder)
    else:
        with pytest.raises(StartError, match=r"left readings in its journal.*`ingest serve` again"):
            refuse_left_files(folder)


@pytest.mark.parametrize("start", [serve, up])
async def test_what_waits_for_another_database_does_not_go_to_the_embedded_one(
    folder: StateFolder, start: Callable[..., Awaitable[int]]
) -> None:
    """Whoever forgets the URL at a start gets a sentence, unless there is nothing to lose."""
    if start is up:
        leave_stream(folder)
    else:
        await keep_block(folder, stored=False)
    refuse_other_database(folder, Settings())  # no other database was ever used
    folder.remember_database(EMBEDDED)
    refuse_other_database(folder, Settings())
    folder.remember_database("db.example:5432/metrics")
    with pytest.raises(
        StartError, match=r"the database db\.example:5432/metrics.*the same.*the file .*checked-"
    ):
        await start(Settings(state_dir=str(folder.path)), announce=print)
    refuse_other_database(folder, Settings(database_url="postgresql://moved/metrics"))
    if start is up:
        note_left(folder, LeftInBroker(0, 0))
    refuse_other_database(folder, Settings(buffer="memory"))  # does not read the journal


@pytest.mark.parametrize("damaged_byte", [8, -1])
async def test_journal_that_cannot_be_read_is_not_empty(
    folder: StateFolder, damaged_byte: int
) -> None:
    """It may have readings; `serve` says what is wrong with it, and sets it aside."""
    await keep_block(folder, stored=False)
    (segment,) = folder.journal.glob("*.log")
    data = bytearray(segment.read_bytes())
    data[damaged_byte] ^= 0xFF
    segment.write_bytes(data)
    with pytest.raises(StartError, match="journal"):
        refuse_left_files(folder)


def test_up_starts_only_without_dead_letters_in_files(folder: StateFolder) -> None:
    """Those that are done do not count."""
    store = LetterFiles(folder.dead_letters)
    keep(store, drained(2))
    store.close()
    with pytest.raises(StartError, match=r"has left dead letters \("):
        refuse_left_files(folder)
    mark_done(live_letters(folder.dead_letters), "replayed")
    refuse_left_files(folder)


def test_serve_starts_only_with_a_note_that_the_broker_is_empty(folder: StateFolder) -> None:
    """A missing note is one of a killed `up`, or of an older version."""
    folder.broker.mkdir()
    refuse_left_stream(folder)  # no server has ever run
    leave_stream(folder)
    with pytest.raises(StartError, match=r"may have left readings.*start `ingest up` again"):
        refuse_left_stream(folder)
    note_left(folder, LeftInBroker(0, 0))
    refuse_left_stream(folder)
    for left, words in (
        (LeftInBroker(1_234, 0), "1,234 messages"),
        (LeftInBroker(0, 5), "5 dead letters"),
    ):
        note_left(folder, left)
        with pytest.raises(StartError, match=words):
            refuse_left_stream(folder)
    for damaged in (b"", b"[]", b'{"messages":0}'):
        folder.broker_left.write_bytes(damaged)
        with pytest.raises(StartError, match="may have left readings"):
            refuse_left_stream(folder)


async def test_note_is_gone_before_the_broker_starts(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before it has the lock: a command that still runs writes its note at its end."""
    monkeypatch.setattr("ingest.roles.embedded_broker.LOCK_S_MAX", 0.0)
    folder.broker.mkdir()
    server = EmbeddedBroker(folder.broker, Path("/bin/false"))
    command = Lock.try_take(folder.broker / "lock", create=True)
    assert command is not None
    with command, pytest.raises(StartError, match="runs the broker"):
        await server.start()
    note_left(folder, LeftInBroker(0, 0))
    with pytest.raises(StartError, match="did not start"):
        await server.start()
    assert not folder.broker_left.exists()


async def test_database_is_stopped_also_if_the_broker_fails_to(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would outlive us."""
    stopped = []

    async def fail(_: object) -> None:
        raise StartError("no")

    async def stop(_: object) -> None:
        stopped.append(True)

    monkeypatch.setattr(EmbeddedBroker, "stop", fail)
    monkeypatch.setattr(EmbeddedPostgres, "stop", stop)
    with pytest.raises(StartError):
        await Servers(Settings(broker_unsafe=True), folder, asyncio.create_task).stop()
    assert stopped == [True]


EVERYWHERE = {
    "listen": "0.0.0.0:8080",
    "admin_listen": "[::]:8081",
    "needs_token": True,
    "page": "http://[::]:8081/login/x",
}
PUBLISHED = {"INGEST_PUBLISHED_AT": "localhost"}
PSQL = "to look into it: ingest psql"
DECLARED = Settings(tables_file=str(REPOSITORY / "tests/faults/tables.toml"))
# Variables, arguments, and what the greeting says.
GREETINGS: list[tuple[dict[str, str], dict[str, Any], tuple[str, ...]]] = [
    # Nobody can open 0.0.0.0 of a container, and few its private address.
    (
        PUBLISHED,
        EVERYWHERE,
        (
            " http://localhost:8080/v1/readings",
            "dashboard:     http://localhost:8081/login/x",
            "metrics:       http://localhost:8081/metrics",
        ),
    ),
    ({}, EVERYWHERE, (" http://0.0.0.0:8080/v1/readings",)),
    (PUBLISHED, {}, (" http://127.0.0.1:1/v1/readings\n",)),
    ({}, {}, (" http://127.0.0.1:1/v1/readings\n",)),
    # The state folder is quoted for the shell, and the usual one is left out.
    ({}, {"settings": Settings()}, (f"{PSQL} -c 'table readings'",)),
    ({}, {}, (f"{PSQL} --state-dir '/my s' -c 'table readings'",)),
    ({}, {"settings": DECLARED}, (f"{PSQL} -c 'table all_readings'",)),
    (
        {},
        {"settings": Settings(database_url="postgresql://x/y", database_url_file="/u")},
        (" as set by the file /u\n",),
    ),
    (
        {},
        {"settings": Settings(tls_cert_file="/my c.pem")},
        (
            "\npost readings: curl --cacert '/my c.pem' -H ",
            " https://127.0.0.1:1/v1/readings\n",
        ),
    ),
]


@pytest.mark.parametrize(("variables", "given", "told"), GREETINGS)
def test_greeting_names_what_can_be_typed_here(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    given: dict[str, Any],
    told: tuple[str, ...],
) -> None:
    """The host of the ports, the state folder, and the certificate."""
    monkeypatch.delenv("INGEST_PUBLISHED_AT", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = greeting(**given)
    assert [each for each in told if each not in text] == []
    assert ("devices:" in text) <= ("INGEST_PUBLISHED_AT" not in variables)


def test_greeting_names_the_first_sources(tmp_path: Path) -> None:
    """Where their devices post."""
    file, presets = tmp_path / "sources.toml", ("ttn", "ecowitt", "ruuvi", "vector")
    file.write_text("".join(f'[[source]]\npreset = "{each}"\n' for each in presets))
    text = greeting(sources=shown_sources(Settings(sources_file=str(file))))
    assert "\nsource:        http://127.0.0.1:1/v1/in/ttn\n" in text
    assert "/v1/in/ruuvi\ndashboard: " in text


def greeting(**given: Any) -> str:
    """Return all lines, each with a line feed before and behind it."""
    usual: dict[str, Any] = {
        "settings": Settings(state_dir="/my s"),
        "folder": Path("/my s"),
        "listen": "127.0.0.1:1",
        "needs_token": False,
        "admin_listen": "a:2",
        "page": "",
        "target": make_target(Settings()),
    }
    return "\n".join(["", *greeting_lines(**{**usual, **given}), ""])
