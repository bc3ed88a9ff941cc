"""Where the dead letters of a service are: a folder of files, or what a program prints.

    Files    the dead-letter folder of a service with a journal, or a copy of it
    Program  a program that prints a line for each letter, as `ingest dlq list --json` does
    Local    the state folder of a service on this machine: its files, and its stream if it has one

Promises: each has the checks of app/post_rules.py. Nothing is changed. `read` blocks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from loadgen.proof.dead_letters import (
    DeadLettersError,
    LetterReader,
    RunLetters,
    read_folder,
)

PROGRAM_S_MAX = 120.0
DLQ_LIST = (sys.executable, "-m", "ingest", "dlq", "list", "--json")
OTHER_BROKER = ("INGEST_BROKER_URL", "INGEST_BROKER_URL_FILE")
_ALTERED = re.compile(r"skipped: .*?(\d+) altered")


class LetterSource(Protocol):
    """A place of dead letters."""

    def read(self, prefix: str) -> RunLetters:
        """Return the live letters about devices whose names begin with `prefix`.

        Raises DeadLettersError. Memory: some 600 bytes a letter of the run.
        """


class Files(NamedTuple):
    """A dead-letter folder."""

    folder: Path

    def read(self, prefix: str) -> RunLetters:
        """Return the letters of the files; see LetterSource."""
        reader = LetterReader(prefix)
        read_folder(self.folder, reader)
        return reader.found


class Program(NamedTuple):
    """The words of a program, which runs without a shell and prints the live letters.

    It gets this environment, `without` some variables.
    """

    words: tuple[str, ...]
    without: tuple[str, ...] = ()

    def read(self, prefix: str) -> RunLetters:
        """Return the letters that the program prints; see LetterSource."""
        reader = LetterReader(prefix)
        self.read_into(reader)
        return reader.found

    def read_into(self, reader: LetterReader) -> None:
        """Give all lines of the program to a reader. Raises DeadLettersError."""
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    self.words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=_environment(self.without),
                )
            except OSError as error:
                raise DeadLettersError(f"cannot run {self.words[0]}: {error.strerror}") from error
            timer = threading.Timer(PROGRAM_S_MAX, process.kill)
            timer.start()
            try:
                assert process.stdout is not None, "a pipe"
                with process.stdout as lines:
                    for number, line in enumerate(lines, 1):
                        reader.take(line, f"line {number} of {self.words[0]}")
            finally:
                process.kill()  # does nothing if it has ended
                code = process.wait()
                timer.cancel()
            said = _text(errors)
        if code:
            last = said.splitlines()[-1] if said else "it said nothing"
            raise DeadLettersError(f"{' '.join(self.words)}: exit code {code}: {last}")
        if match := _ALTERED.search(said):
            reader.found.altered += int(match[1])


class Local(NamedTuple):
    """A state folder of this machine.

    If a broker runs in it, the letters are in its stream. Then some may still be in the files:
    those that a service without a broker has left there. In both they count once.
    """

    state: Path

    def read(self, prefix: str) -> RunLetters:
        """Return the letters of files and stream; see LetterSource."""
        reader = LetterReader(prefix)
        folder = self.state / "dead-letters"
        has_broker = self.has_broker
        if folder.exists() or not has_broker:
            read_folder(folder, reader)
        if has_broker:
            words = (*DLQ_LIST, "--store", "stream", "--state-dir", str(self.state))
            Program(words, OTHER_BROKER).read_into(reader)
        return reader.found

    @property
    def has_broker(self) -> bool:
        """Whether a broker was started in the folder, and was not stopped in order."""
        return (self.state / "broker" / "server.json").exists()


def _environment(without: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in without}


def _text(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace").strip()
