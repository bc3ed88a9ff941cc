"""The clients that `./run clients` runs: how each is started, and how it sends its token.

Python's libraries are installed by `./run`, those of JavaScript here, by npm from a lock file.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.system.service import REPOSITORY, environment

NODE = Path(__file__).parent / "node"


class MissingProgram(Exception):
    """Node.js or npm is not installed. The text says what to do."""


class Client(NamedTuple):
    """One way to use a library. `words` are its program and the program's flags.

    The program is a file of NODE, or else a module of Python.
    """

    name: str
    library: str
    words: tuple[str, ...]
    token_as: str

    @property
    def measurement(self) -> str:
        """Return the measurement of its points."""
        return re.sub("[^a-z0-9]+", "_", self.name).strip("_")

    @property
    def needs_broker(self) -> bool:
        """Whether it writes to an MQTT broker."""
        return self.library == "paho-mqtt"

    @property
    def is_node(self) -> bool:
        """Whether it is JavaScript."""
        return self.words[0].endswith(".js")


def _python(name: str, program: str, flag: str = "", *, sent_as: str = "Token") -> Client:
    words = (f"tests.clients.senders.{program}", *([flag] if flag else []))
    return Client(" ".join([name, flag]).strip(), name, words, sent_as)


def _questdb_node(suffix: str, version: str) -> Client:
    library = "@questdb/nodejs-client"
    name = f"{library} (npm)" + (f" protocol_version{suffix}" if suffix else "")
    return Client(name, library, ("questdb.js", *([version] if version else [])), "Basic")


CLIENTS = (
    _python("influxdb", "influxdb_1", sent_as="Basic"),
    _python("influxdb-client", "influxdb_2"),
    _python("influxdb-client", "influxdb_2", "synchronous"),
    _python("influxdb3-python", "influxdb_3"),
    _python("influxdb3-python", "influxdb_3", "synchronous", sent_as="Bearer"),
    _python("questdb", "questdb", sent_as="Basic"),
    _python("questdb", "questdb", "bearer", sent_as="Bearer"),
    _python("paho-mqtt", "paho_mqtt", sent_as="ingest mqtt"),
    Client("influx (npm)", "influx", ("influx.js",), "Basic"),
    Client(
        *("@influxdata/influxdb-client (npm)", "@influxdata/influxdb-client"),
        *(("influxdb_client.js",), "Token"),
    ),
    _questdb_node("", ""),
    _questdb_node("=1", "1"),
    _questdb_node("=2", "2"),  # it is told which version to take, and takes it
)


class Libraries:
    """The folder that `./run clients` has made: a Python with the clients' packages.

    `prepare` adds the packages of npm.
    """

    def __init__(self, folder: Path) -> None:
        self._python = folder / "bin" / "python"
        self._node = folder / "node"

    def prepare(self, clients: Iterable[Client]) -> None:
        """Install what npm's lock file names, if a client needs it and it is not there yet.

        Raises MissingProgram.
        """
        if not any(client.is_node for client in clients):
            return
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise MissingProgram(
                    f"{program} is missing (apt-get install nodejs npm); or choose other clients "
                    "with --only"
                )
        lock = (NODE / "package-lock.json").read_text()
        stamp = self._node / "ok"
        if stamp.exists() and stamp.read_text() == lock:
            return
        shutil.rmtree(self._node, ignore_errors=True)
        self._node.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, self._node)
        words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(words, cwd=self._node, check=True, stdout=subprocess.DEVNULL)
        stamp.write_text(lock)

    def version(self, client: Client) -> str:
        """Return the version of a client's library."""
        if client.is_node:
            package = self._node / "node_modules" / client.library / "package.json"
            return str(json.loads(package.read_text())["version"])
        code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
        return _output([str(self._python), "-c", code, client.library])

    async def start(self, client: Client, document: str) -> asyncio.subprocess.Process:
        """Start the program of a client with its order."""
        program, *flags = client.words
        words = [str(self._python), "-P", "-m", program]
        if client.is_node:
            words = ["node", str(NODE / program)]
        paths = {"PYTHONPATH": str(REPOSITORY), "NODE_PATH": str(self._node / "node_modules")}
        return await asyncio.create_subprocess_exec(
            *(*words, document, *flags),
            cwd=REPOSITORY,
            env=environment(paths),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1024**2,
        )


def _output(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment())
    return done.stdout.strip()
