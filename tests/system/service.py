"""The real command line as a child process, for system tests.

`Service` is `python -m ingest serve` on free ports, in a clean environment; `run_command` runs any
`python -m MODULE ..` to its end, `started` starts it. Promises: no process is left after the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import aiohttp
import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from ingest.system.state_folder import ServiceInfo, running_service
from tests.support import constants, measuring
from tests.support.processes import killed_after, output_of
from tests.system.database import give_data

REPOSITORY = Path(__file__).parent.parent.parent
PLAIN = ("-m", "ingest")
START_S_MAX = 45.0
STOP_S_MAX = 45.0
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")


def environment(extra: Mapping[str, str] | None = None, *, measured: bool = True) -> dict[str, str]:
    """Return a clean environment for a child: no INGEST_ variable except the given ones.

    A child that is not measured for coverage starts in half the time.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    if measured:
        kept |= measuring.variables()
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


class Reply(NamedTuple):
    """An HTTP answer; `document` is its JSON, or None without JSON."""

    status: int
    headers: Mapping[str, str]
    text: str
    document: Any


class Done(NamedTuple):
    """The end of a command."""

    code: int
    stdout: str
    stderr: str


class Service:
    """One `ingest serve`. `async with Service(folder, batch_rows=10) as service:`.

    Settings are given as on the command line (`batch_rows=10` is `--batch-rows 10`), and so are
    constants; `env` adds to the environment. Leaving the block stops the service with SIGTERM, and
    kills it if need be.
    `program` are the words that Python runs: the service's module, or a wrapper of it. The data of
    its embedded database is a copy, if there is a template.
    """

    command = "serve"
    measured: ClassVar[bool] = True  # for coverage: see environment()
    data_url_in = re.compile(r"(https?://\S+)/v1/readings")  # in what it prints
    admin_url_in = re.compile(r"(http://\S+)/metrics")

    def __init__(
        self,
        state_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = PLAIN,
        **settings: object,
    ) -> None:
        self.state_dir = state_dir
        self.url = ""
        self.admin_url = ""
        self.lines: list[str] = []
        settings, self._constants = constants.split(settings)
        self.change(env or {}, program)
        self.pass_fds: tuple[int, ...] = ()  # what it inherits
        self._settings = {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "state_dir": state_dir,
            **settings,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []
        self._streams_open = 0
        self._news = asyncio.Condition()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.running:
                await self.stop()
        finally:
            await self.kill()

    def change(self, env: Mapping[str, str], program: Sequence[str]) -> None:
        """Use this environment and this program from the next start on."""
        env = {**env, **constants.variables(self._constants)}
        self._env = environment(env, measured=self.measured)
        plain = tuple(program) == PLAIN
        self._program = constants.PROGRAM if plain and self._constants else tuple(program)

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process id, also of one that has ended."""
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def output(self) -> str:
        """Its output and log since the last start."""
        return "\n".join(self.lines)

    @property
    def info(self) -> ServiceInfo:
        """The content of `service.json` in its state folder."""
        found = running_service(self.state_dir)
        assert found is not None, "the service has published nothing"
        return found

    async def start(self) -> None:
        """Start it (also after stop or kill) and wait until it has printed its addresses."""
        assert not self.running, "one at a time"
        if self.command == "serve" and "database_url" not in self._settings:
            await give_data(self.state_dir)
        flags: list[str] = []
        for name, value in self._settings.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            flags += ["--" + name.replace("_", "-"), shown]
        self.url = self.admin_url = ""
        self.lines = []
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(*self._program, self.command, *flags),
            cwd=REPOSITORY,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self.pass_fds,
            limit=1024**2,
        )
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        streams = (self._process.stdout, self._process.stderr)
        self._reading = [asyncio.create_task(self._read(each)) for each in streams if each]
        self._streams_open = len(self._reading)
        async with asyncio.timeout(START_S_MAX), self._news:
            await self._news.wait_for(
                lambda: bool(self.url and self.admin_url) or not self._streams_open
            )
        assert self.url, f"the service did not start:\n{self.output}"

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            line = raw.decode(errors="replace").rstrip("\n")
            async with self._news:
                self.lines.append(line)
                if found := self.data_url_in.search(line):
                    self.url = self.url or found[1]
                if found := self.admin_url_in.search(line):
                    self.admin_url = self.admin_url or found[1]
                self._news.notify_all()
        async with self._news:
            self._streams_open -= 1
            self._news.notify_all()

    # Asking it

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one HTTP request and return the answer, whatever its status."""
        assert self._session is not None, "start it first"
        async with self._session.request(
            method, url, data=body, headers=headers, params=params
        ) as response:
            text = await response.text()
            try:
                document = json.loads(text)
            except ValueError:
                document = None
            return Reply(response.status, response.headers, text, document)

    async def post(
        self, readings: object, *, headers: Mapping[str, str] | None = None, **query: str
    ) -> Reply:
        """Post bytes as they are, or anything else as JSON; `query` are the URL's parameters."""
        body = readings if isinstance(readings, bytes) else json.dumps(readings).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        return await self.request(
            "POST", f"{self.url}/v1/readings", body=body, headers=sent, params=query
        )

    async def readyz(self) -> Reply:
        """Return the admin port's /readyz."""
        return await self.request("GET", f"{self.admin_url}/readyz")

    async def wait_state(self, *states: str, within_s: float = 20) -> dict[str, Any]:
        """Wait until /readyz has one of `states`; return the document."""
        async with asyncio.timeout(within_s):
            while True:
                document: dict[str, Any] = (await self.readyz()).document
                if document["state"] in states:
                    return document
                await asyncio.sleep(0.05)

    async def metrics(self) -> dict[str, float]:
        """Return all samples, as `name` or `name{label="value",..}` (labels in their order)."""
        text = (await self.request("GET", f"{self.admin_url}/metrics")).text
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples

    async def imbalance(self) -> float:
        """Return the imbalance that /metrics reports; 0 at a quiet moment."""
        return (await self.metrics())["ingest_ledger_imbalance_rows"]

    async def wait_quiet(self, within_s: float = 30) -> dict[str, float]:
        """Wait until nothing is held; return the metrics of that moment."""
        async with asyncio.timeout(within_s):
            while True:
                samples = await self.metrics()
                if samples["ingest_readings_held"] == 0:
                    return samples
                await asyncio.sleep(0.05)

    async def wait_sample(self, name: str, value: float, within_s: float = 30) -> None:
        """Wait until a sample of /metrics has this value."""
        async with asyncio.timeout(within_s):
            while True:
                if (await self.metrics()).get(name) == value:
                    return
                await asyncio.sleep(0.05)

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Run SQL in the service's database, as the service's role."""
        connection = await asyncpg.connect(self.info.database_url)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    async def wait_rows(self, count: int, within_s: float = 30) -> None:
        """Wait until the table has so many rows. After a start the journal is read meanwhile."""
        async with asyncio.timeout(within_s):
            while True:
                (row,) = await self.query("select count(*) from readings")
                if row[0] >= count:
                    return
                await asyncio.sleep(0.05)

    async def wait_line(self, text: str, within_s: float = 20) -> str:
        """Wait until it has printed or logged a line that holds `text`; return the line."""

        def found() -> str:
            return next((line for line in self.lines if text in line), "")

        async with asyncio.timeout(within_s), self._news:
            return await self._news.wait_for(found)

    # Ending it

    async def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, wait for the end; return (exit code, output)."""
        assert self._process is not None, "start it first"
        self._process.send_signal(number)
        return await self.ended()

    async def ended(self, within_s: float = STOP_S_MAX) -> tuple[int, str]:
        """Wait until the process has ended; return (exit code, output)."""
        assert self._process is not None, "start it first"
        async with asyncio.timeout(within_s):
            await asyncio.wait(self._reading)
            return await self._process.wait(), self.output

    async def kill(self) -> None:
        """SIGKILL the service if it runs, wait for its end; close its pipes."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            await asyncio.gather(*self._reading, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None


@asynccontextmanager
async def started(
    module: str, *arguments: object, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start `python -m MODULE ..` in a clean environment; kill it if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *(str(each) for each in arguments)),
        cwd=REPOSITORY,
        env=environment(env, measured=False),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with killed_after(process):
        yield process


async def run_command(
    module: str,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    within_s: float = 60,
) -> Done:
    """Run `python -m MODULE ..` in a clean environment to its end; after the time it is killed."""
    async with started(module, *arguments, env=env) as process:
        stdout, stderr = await output_of(process, within_s)
    assert process.returncode is not None, "it has ended"
    return Done(process.returncode, stdout.decode(), stderr.decode())


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def wait_gone(pid: int, within_s: float = 20) -> None:
    """Wait until a process that is no child of the test has ended."""
    end_s = time.monotonic() + within_s
    while is_alive(pid):
        assert time.monotonic() < end_s, f"process {pid} is still there"
        await asyncio.sleep(0.05)
