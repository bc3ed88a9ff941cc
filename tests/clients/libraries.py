"""The clients that `./run clients` runs: how each is started, and how it sends its token."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.system.service import REPOSITORY, environment


class Client(NamedTuple):
    """One way to use a library. `words` are its program and the program's flags."""

    name: str
    library: str
    words: tuple[str, ...]
    token_as: str

    @property
    def measurement(self) -> str:
        """Return the measurement of its points."""
        return self.name.replace(" ", "_").replace("-", "_")


def _python(name: str, program: str, flag: str = "", *, sent_as: str = "Token") -> Client:
    words = (f"tests.clients.senders.{program}", *([flag] if flag else []))
    return Client(" ".join([name, flag]).strip(), name, words, sent_as)


CLIENTS = (
    _python("influxdb", "influxdb_1", sent_as="Basic"),
    _python("influxdb-client", "influxdb_2"),
    _python("influxdb-client", "influxdb_2", "synchronous"),
    _python("influxdb3-python", "influxdb_3"),
    _python("influxdb3-python", "influxdb_3", "synchronous", sent_as="Bearer"),
    _python("questdb", "questdb", sent_as="Basic"),
    _python("questdb", "questdb", "bearer", sent_as="Bearer"),
)


class Libraries:
    """The folder that `./run clients` has made: a Python with the clients' packages."""

    def __init__(self, folder: Path) -> None:
        self._python = folder / "bin" / "python"

    def version(self, client: Client) -> str:
        """Return the version of a client's library."""
        code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
        return _output([str(self._python), "-c", code, client.library])

    async def start(self, client: Client, document: str) -> asyncio.subprocess.Process:
        """Start the program of a client with its order."""
        words = (str(self._python), "-P", "-m", client.words[0], document, *client.words[1:])
        return await asyncio.create_subprocess_exec(
            *words,
            cwd=REPOSITORY,
            env=environment({"PYTHONPATH": str(REPOSITORY)}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1024**2,
        )


def _output(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment())
    return done.stdout.strip()
