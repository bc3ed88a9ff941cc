"""Runs the programs of a container engine."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path


class NoEngine(Exception):
    """There is no engine; the text says what is missing."""


class Failed(Exception):
    """A program failed, or what must hold does not; the text says what."""


async def command(*words: str, folder: Path | None = None) -> str:
    """Run a program to its end; return its stdout. Raises Failed with what it said."""
    child = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    if child.returncode:
        raise Failed(f"{' '.join(words)}: exit {child.returncode}\n{(out + err).decode()[-4000:]}")
    return out.decode()


async def check_engine() -> None:
    """Raise NoEngine unless Docker, its Compose and its BuildKit answer."""
    if shutil.which("docker") is None:
        raise NoEngine("there is no docker here: apt-get install docker.io docker-compose")
    for words in (("version",), ("compose", "version"), ("buildx", "version")):
        try:
            await command("docker", *words)
        except Failed as error:
            raise NoEngine(str(error)) from None
