"""Runs the commands of a Dockerfile without a container engine, in a clean folder.

`build` makes the file system of the last stage below a folder; `Image` says how a container of it
is started. Paths under the folders that the image makes are moved below that folder; `groupadd` and
`useradd` are recorded, not done. Not tested: what only an engine can show (the base image, the
isolation of the engine).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.deployment import REPOSITORY, Instruction, assignments, dockerfile

MOVED = re.compile(r"(?<![\w.-])(/opt|/var/lib/iot-ingest)\b")
RECORDED = ("groupadd", "useradd")


class Image:
    """A built image: `root` is its file system, `environ` its environment."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.recorded = folder / "recorded"
        self.environ: dict[str, str] = {}
        self.words: dict[str, str] = {}
        self._shims = folder / "shims"
        self._shims.mkdir()
        (self._shims / "python").symlink_to(Path(sys.base_prefix) / "bin" / _python_name())
        for name in RECORDED:
            shim = self._shims / name
            shim.write_text(f'#!/bin/sh\necho {name} "$@" >>{shlex.quote(str(self.recorded))}\n')
            shim.chmod(0o755)

    def moved(self, text: str) -> str:
        """Return a text of the Dockerfile with the image's own paths below `root`."""
        return MOVED.sub(lambda match: f"{self.root}{match[1]}", text)

    def command(self, word: str) -> list[str]:
        """Return ENTRYPOINT or CMD, or the command of HEALTHCHECK, as words."""
        text = self.words[word]
        words: list[str] = json.loads(text[text.index("[") :])
        return [self.moved(each) for each in words]

    def begin(self, folder: Path, name: str) -> None:
        """Keep the present stage, and begin an empty one."""
        if self.root.exists():
            self.root.rename(folder / name)
        self.root.mkdir()
        self.environ = {}
        self.words = {"WORKDIR": "/"}

    def run(self, text: str) -> None:
        """Run one RUN instruction, without what it mounts: secrets, which a build need not have."""
        text = re.sub(r"^(--mount=\S+\s+)+", "", text)
        path = f"{self._shims}{os.pathsep}/usr/bin{os.pathsep}/bin"
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        done = subprocess.run(
            ["/bin/sh", "-c", self.moved(text)],
            cwd=self.root / self.words["WORKDIR"].lstrip("/"),
            env={"PATH": path, "HOME": str(self.root), **kept, **self.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {text}\n{done.stdout}"


def _python_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def build(folder: Path) -> Image:
    """Run deploy/Dockerfile below `folder`. Needs the package index, or pip's cache of it."""
    image = Image(folder)
    previous = ""
    for stage in dockerfile():
        first, *rest = stage
        image.begin(folder, previous)
        for each in rest:
            _do(image, folder, each)
        previous = first.text.partition(" AS ")[2]
    return image


def _do(image: Image, folder: Path, instruction: Instruction) -> None:
    word, text = instruction
    image.words[word] = text
    if word == "ENV":
        image.environ |= {name: image.moved(value) for name, value in assignments(text)}
    elif word == "WORKDIR":
        (image.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif word == "RUN":
        image.run(text)
    elif word == "COPY":
        _copy(image, folder, text)


def _copy(image: Image, folder: Path, text: str) -> None:
    words = text.split()
    source = REPOSITORY
    if words[0].startswith("--from="):
        source = folder / words.pop(0).removeprefix("--from=")
    ignored = shutil.ignore_patterns("__pycache__") if source == REPOSITORY else None
    *names, target = words
    into = image.root / image.words["WORKDIR"].lstrip("/") / target.lstrip("/")
    if target.startswith("/"):
        into = image.root / target.lstrip("/")
    for name in names:
        one = source / name.lstrip("/")
        if one.is_dir():  # its content, as COPY does
            shutil.copytree(one, into, symlinks=True, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(one, into)
