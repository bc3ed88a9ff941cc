"""A copy of the repository for tests of `./run`, which sets up what it needs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

REPOSITORY = Path(__file__).parents[2]
PLAIN_PATH = "/usr/bin:/bin"


class Checkout:
    """A copy of the repository's files in a folder with a space and an umlaut in its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a b" / "größe"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (REPOSITORY / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, self.folder / name)

    @property
    def venv(self) -> Path:
        """The folder of the packages."""
        return self.folder / ".venv"

    def start(
        self,
        *words: str,
        cwd: Path = Path("/"),
        user: int | None = None,
        program: Path | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[str]:
        """Start `./run words` with an environment of its own, from another folder."""
        return subprocess.Popen(
            [str(program or self.folder / "run"), *words],
            env={"HOME": str(self.home), "PATH": PLAIN_PATH, **environ},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=user,
            start_new_session=True,
            umask=0,  # the worst one
        )

    def run(
        self,
        *words: str,
        cwd: Path = Path("/"),
        program: Path | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[int, str, str]:
        """Run `./run words` to its end; return exit code, stdout, stderr."""
        child = self.start(*words, cwd=cwd, program=program, environ=environ)
        out, err = child.communicate(timeout=150)
        return child.returncode, out, err
