"""Fixtures of all tests: a real PostgreSQL, a database for each test, a port, real data.

Each test process has one embedded server. Its data is deleted at the end, so it does not fsync.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
import uvloop
from hypothesis import settings

from ingest.embedded.postgres import EmbeddedPostgres
from ingest.http import connection
from ingest.roles.embedded_broker import EmbeddedBroker, find_program
from ingest.roles.nats import streams
from ingest.roles.nats.protocol import DEAD_LETTERS
from ingest.sinks.postgres import schema
from ingest.system import logs
from ingest.system.files import filesystem_of, is_volatile
from ingest.system.state_folder import StateFolder
from tests.support import measuring, tcp_ports
from tests.support.brokers import LETTERS, api, joined
from tests.support.commands import Here
from tests.support.embedded import running
from tests.support.examples import USUAL, number
from tests.system.database import Database, give_data

pytest_plugins = [
    "tests.support.collecting",
    "tests.support.interrupted",
    "tests.support.scheduling",
]

if os.environ.get("INGEST_TEST_KNOWN_HEADS") == "off":
    connection.TRIES = 0  # the parser takes each head, also one that has come before

# A busy machine is no fault of the code.
settings.register_profile("untimed", deadline=None, max_examples=number(USUAL))
settings.load_profile("untimed")

REPOSITORY = Path(__file__).parent.parent
SKIPPED = 6  # an exit code of our own: a second try of failed tests (.ci/again.sh) cannot mend it
SERVER_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


# With INGEST_TEST_STRICT=1 no test may be skipped. Else it names a file of the tests that must be,
# one in a line: those for which a bare machine has no program.
STRICT = os.environ.get("INGEST_TEST_STRICT", "0")


def _wrongly_skipped(config: pytest.Config) -> list[str]:
    """Return the tests that were skipped and may not be, or were not and must be."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or STRICT == "0":
        return []
    skipped = {each.nodeid.partition("[")[0] for each in reporter.stats.get("skipped", [])}
    wanted = set() if STRICT == "1" else {*(REPOSITORY / STRICT).read_text().split()}
    # A second try runs only what has failed.
    return sorted(skipped - wanted if config.getoption("lf") else skipped ^ wanted)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Skipped tests may make the session fail."""
    if _wrongly_skipped(session.config):
        session.exitstatus = SKIPPED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the skipped tests that made the session fail."""
    if wrong := _wrongly_skipped(config):
        told = f"FAILED: skipped, and INGEST_TEST_STRICT={STRICT}: {', '.join(wrong)}"
        terminalreporter.write_line(told, red=True)


@pytest.fixture(scope="session", autouse=True)
def _children_are_not_measured() -> Iterator[None]:
    """Measure the coverage of those child processes only that a test names."""
    with measuring.hidden():
        yield


@pytest.fixture(autouse=True)
def _fresh_logs() -> Iterator[None]:
    """Undo a test's log settings: they are of the whole process, and a level would hide lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logs.is_of_program = False
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Give a way to run commands in this process, without what the machine sets."""
    for name in list(os.environ):
        if name.startswith("INGEST_"):
            monkeypatch.delenv(name)
    return Here(capsys)


class Server:
    """A running PostgreSQL; makes databases in it, outside of the tests' event loops."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.url = url
        self._runner = runner
        self._made = 0
        self.template_made = False

    def run(self, work: Callable[[asyncpg.Connection], Awaitable[Any]], database: str = "") -> Any:
        """Run `work` with a connection of its own."""

        async def connected() -> Any:
            connection = await asyncpg.connect(self.url_of(database) if database else self.url)
            try:
                return await work(connection)
            finally:
                await connection.close()

        return self._runner.run(connected())

    def url_of(self, database: str) -> str:
        """Return the URL of a database in this server."""
        return self.url.replace("@/postgres?", f"@/{database}?")

    def create(self, template: str) -> str:
        """Make a fresh database and return its name.

        Without fsync a copy of the files is five times faster than a copy by the WAL.
        """
        self._made += 1
        name = f"test_{self._made}"
        make = f"create database {name} template {template} strategy file_copy"
        self.run(lambda connection: connection.execute(make))
        return name

    def drop(self, name: str) -> None:
        """Drop a database; open connections are closed."""
        self.run(
            lambda connection: connection.execute(f"drop database if exists {name} with (force)")
        )


@pytest.fixture(scope="session")
def open_tmp() -> Iterator[Path]:
    """Give a folder that an unprivileged database user may enter (pytest's folder is private)."""
    base = Path("/tmp")  # noqa: S108  the folder below it gets a name of mkdtemp
    if is_volatile(filesystem_of(base)):  # a journal is refused there
        base = Path("/var/tmp")  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="ingest-test-", dir=base))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def open_tmp_path(open_tmp: Path) -> Iterator[Path]:
    """Give this test a folder of its own that an unprivileged user may enter."""
    folder = Path(tempfile.mkdtemp(dir=open_tmp))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _data_is_made_once(open_tmp: Path) -> Iterator[None]:
    """Make the data of databases once: to copy it is several times faster."""
    Database.template = open_tmp / "databases" / "data"
    yield
    Database.template = None


@pytest.fixture(scope="session")
def data_template(open_tmp: Path) -> Path:
    """Give a data folder that a server has used once; tests copy it."""

    async def make(state: Path) -> Path:
        await give_data(state)
        async with running(state / "postgres"):
            return state / "postgres" / "data"

    with asyncio.Runner() as runner:
        return runner.run(make(open_tmp / "template"))


@pytest.fixture
def made(open_tmp_path: Path, data_template: Path) -> Path:
    """Give a folder with fresh data, as a stopped server leaves it."""
    words = ["cp", "-a", "--sparse=always", str(data_template), str(open_tmp_path / "data")]
    subprocess.run(words, check=True)
    return open_tmp_path


@pytest.fixture(scope="session")
def server(open_tmp: Path) -> Iterator[Server]:
    """Run one PostgreSQL for this test process."""
    embedded = EmbeddedPostgres(open_tmp / "postgres", settings=SERVER_SETTINGS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(give_data(open_tmp))
        runner.run(embedded.start())
        url = embedded.url
        try:
            yield Server(url, runner)
        finally:
            runner.run(embedded.stop())


@pytest.fixture(scope="session")
def broker(open_tmp: Path) -> Iterator[EmbeddedBroker]:
    """Run one nats-server for this test process, in a state folder."""
    embedded = EmbeddedBroker(StateFolder.open(open_tmp / "state").broker, find_program())
    with asyncio.Runner() as runner:
        runner.run(embedded.start())
        try:
            yield embedded
        finally:
            runner.run(embedded.stop())


@pytest.fixture
async def nats(broker: EmbeddedBroker) -> EmbeddedBroker:
    """Give that nats-server with the stream of the dead letters, fresh and empty."""
    async with joined(broker, "admin") as admin:
        await api(admin, f"STREAM.DELETE.{DEAD_LETTERS}")
        await streams.apply(admin, LETTERS)
    return broker


@pytest.fixture(scope="session")
def postgres_server(server: Server) -> str:
    """Give the URL of this test process's PostgreSQL (its superuser, its database `postgres`)."""
    return server.url


@pytest.fixture
def database_url(server: Server) -> Iterator[str]:
    """Give the URL of a fresh, empty database."""
    name = server.create("template0")
    yield server.url_of(name)
    server.drop(name)


@pytest.fixture
def readings_url(server: Server) -> Iterator[str]:
    """Give the URL of a fresh database that holds the table `readings`, empty."""
    if not server.template_made:
        server.run(lambda connection: connection.execute("create database readings_template"))
        server.run(schema.apply, "readings_template")
        server.template_made = True
    name = server.create("readings_template")
    yield server.url_of(name)
    server.drop(name)


@pytest.fixture
async def readings_connection(readings_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection to a fresh database with the table."""
    connection = await asyncpg.connect(readings_url)
    yield connection
    await connection.close()


@pytest.fixture
def free_port() -> int:
    """Give a TCP port of the loopback that was free a moment ago, and that no client gets."""
    return tcp_ports.free_port()


@pytest.fixture(scope="session")
def nab_dir() -> Path:
    """Give the folder of real readings (INGEST_TEST_DATA, else beside the repository)."""
    root = Path(os.environ.get("INGEST_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (root / "nab").is_dir():
        pytest.skip(f"no real data in {root}: set INGEST_TEST_DATA")
    return root / "nab"
