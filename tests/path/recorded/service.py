"""A running service, used only by its command line, its state folder, HTTP and SQL.

So a service of any commit can be recorded or tested: `checkout` is the folder of its code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import asyncpg

from tests.path.recorded.exchange import Case, exchange
from tests.support import constants
from tests.support.processes import output_of

START_S_MAX = 40.0
REPOSITORY = Path(__file__).parents[3]
TOKEN = "recorded-token-of-the-tests"


class Running:
    """An `ingest serve` or `up`. `async with Running(checkout, state_dir, url, settings) as it`.

    `program` takes the place of `ingest`.
    """

    program: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        checkout: Path,
        state_dir: Path,
        database_url: str,
        settings: Mapping[str, Any],
        command: str = "serve",
    ) -> None:
        self._command = command
        self.state_dir = state_dir
        self._checkout = checkout
        self._settings = {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "state_dir": state_dir,
            "database_url": database_url,
            "database_unsafe": True,
            "journal_unsafe": True,
            "admin_token": TOKEN,
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.info: dict[str, Any] = {}

    async def __aenter__(self) -> Running:
        try:
            await self.start()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.state_dir.with_name(self.state_dir.name + ".log")

    async def start(self) -> None:
        """Start it and wait until it has published its addresses."""
        flags: list[str] = []
        settings, smaller = self._settings, dict[str, Any]()
        if self._checkout == REPOSITORY:  # an older checkout has settings for them
            settings, smaller = constants.split(settings)
        program = self.program or (constants.PROGRAM if smaller else ("-m", "ingest"))
        for name, value in settings.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            flags += ["--" + name.replace("_", "-"), shown] if shown else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220  it does not wait
                [sys.executable, *program, self._command, *flags],
                cwd=self._checkout,
                env={**environment(self._checkout), **constants.variables(smaller)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(START_S_MAX):
            while self.info.get("pid") != self._process.pid:
                assert self._process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)
                with contextlib.suppress(OSError, ValueError):
                    self.info = json.loads((self.state_dir / "service.json").read_bytes())

    def address(self, port: str) -> str:
        """Return HOST:PORT of the port `data` or `admin`."""
        return str(self.info["listen" if port == "data" else "admin_listen"])

    async def get(self, path: str) -> list[Any]:
        """Send a GET to the admin port; return [status line, header, .., body]."""
        send = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        got, then = await exchange(self.address("admin"), Case(path, "", "admin", [send]))
        assert got, f"{path}: {then}"
        return list(got[0])

    async def wait_state(self, state: str, within_s: float = 20) -> None:
        """Wait until /readyz has this state."""
        async with asyncio.timeout(within_s):
            while (await self.get("/readyz"))[-1]["state"] != state:  # noqa: ASYNC110
                await asyncio.sleep(0.03)

    async def samples(self) -> dict[str, float]:
        """Return the samples of /metrics by name and labels, as they are written there."""
        lines = str((await self.get("/metrics"))[-1]).splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    async def wait_sample(self, name: str, value: float, within_s: float = 20) -> None:
        """Wait until a sample has this value."""
        found: float | None = None
        try:
            async with asyncio.timeout(within_s):
                while (found := (await self.samples()).get(name)) != value:  # noqa: ASYNC110
                    await asyncio.sleep(0.03)
        except TimeoutError:
            raise AssertionError(f"{name} is {found}, not {value}") from None

    async def wait_quiet(self) -> dict[str, float]:
        """Wait until nothing is held; return the samples of that moment."""
        async with asyncio.timeout(20):
            while (samples := await self.samples())["ingest_readings_held"]:  # noqa: ASYNC110
                await asyncio.sleep(0.03)
        return samples

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None, "start it first"
        self._process.send_signal(number)

    def ended(self, within_s: float = 40) -> int:
        """Wait for its end; return the exit code."""
        assert self._process is not None, "start it first"
        return self._process.wait(within_s)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def environment(checkout: Path) -> dict[str, str]:
    """Return a clean environment for code of a checkout, without variables of settings.

    Not measured for coverage: most of these services are killed, and keep nothing of it.
    """
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    found = {name: value for name, value in os.environ.items() if name in kept}
    return {**found, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(checkout)}


class Done(NamedTuple):
    """The end of a command."""

    code: int
    stdout: str
    stderr: str


async def command(checkout: Path, *words: object, within_s: float = 40) -> Done:
    """Run `ingest ..` of a checkout to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ingest", *map(str, words)),
        cwd=checkout,
        env=environment(checkout),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await output_of(process, within_s)
    return Done(process.returncode or 0, stdout.decode(), stderr.decode())


async def run_sql(url: str, *statements: str) -> list[asyncpg.Record]:
    """Run statements with a connection of its own; return the rows of the last one."""
    connection = await asyncpg.connect(url)
    rows: list[Any] = []
    try:
        for statement in statements:
            rows = await connection.fetch(statement)
    finally:
        await connection.close()
    return rows
