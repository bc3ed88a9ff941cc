"""Runs the programs of a container engine."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

IMAGE = "iot-ingest:1.0.0"


class Program(NamedTuple):
    """A Debian package, and commands that work if the program does."""

    package: str
    asked: tuple[tuple[str, ...], ...] = ()


PROGRAMS = {
    "docker": Program(
        "docker.io docker-cli docker-compose docker-buildx",
        (("version",), ("compose", "version"), ("buildx", "version")),
    ),
    "podman": Program("podman aardvark-dns catatonit nftables", (("info",),)),
    "kubectl": Program("kubernetes-client"),
    "systemd-nspawn": Program("systemd-container"),
}


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


async def check_programs(names: Iterable[str]) -> None:
    """Raise NoEngine unless all of these programs are here, and work."""
    for name in sorted({*names, "docker"}):  # which builds the image for all of them
        if shutil.which(name) is None:
            raise NoEngine(f"there is no {name} here: apt-get install {PROGRAMS[name].package}")
        for words in PROGRAMS[name].asked:
            try:
                await command(name, *words)
            except Failed as error:
                raise NoEngine(str(error)) from None
        if name == "systemd-nspawn" and os.geteuid() != 0:
            raise NoEngine("systemd-nspawn needs root")
