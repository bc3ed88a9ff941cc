"""Tries mistakes: `python -m tests.mistakes [NN ..]`; without numbers all of them.

Each patch is applied to a copy of the last commit. The tests that its first line names run first;
if they find nothing, all others but those of the house, which know names and counts of the code. A
test that fails without the mistake too does not count. Prints a line for each: what found it.
Exit codes: 0 all are found; 1 some are not, or a patch does not apply any more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


def git(folder: Path, *words: str | Path) -> bool:
    """Run git in a folder; return whether it did what it should."""
    return subprocess.run(["git", "-C", folder, *words], check=False).returncode == 0


def failing(copy: Path, *words: str) -> str:
    """Run tests of a copy until one fails; return its id, "" if none does."""
    run = ["./run", "test", "-q", "-x", "-n", "1", "--dist", "loadfile", "--no-loadscope-reorder"]
    venv = os.environ.get("RUN_VENV", str(ROOT / ".venv"))
    environment = {**os.environ, "RUN_VENV": venv}
    done = subprocess.run(
        [*run, *words], cwd=copy, env=environment, check=False, capture_output=True, text=True
    )
    found = _FAILED.search(done.stdout)
    if found is None and done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr}")
    return found[1] if found else ""


def finder(copy: Path, patch: Path, tests: Sequence[str]) -> str:
    """Return which test finds the mistake of a patch in a copy that has it; "" if none does."""
    unsure: list[str] = []
    while found := failing(copy, *tests, *(f"--deselect={each}" for each in unsure)):
        git(copy, "apply", "-R", patch)
        fails_without = failing(copy, found)
        git(copy, "apply", patch)
        if not fails_without:
            return found
        unsure.append(found)
    return ""


def tried(patch: Path) -> str:
    """Try one mistake; return what found it, or begin with "not"."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        if not git(ROOT, "worktree", "add", "--quiet", "--detach", copy):
            return "not tried: git cannot make a copy"
        try:
            if not git(copy, "apply", patch):
                return "not tried: the patch does not apply any more"
            first = patch.read_text().partition("\n")[0].split()[1:]
            first = [each for each in first if (copy / each).exists()]
            found = finder(copy, patch, first) if first else ""
            return found or finder(copy, patch, ["--ignore=tests/house"]) or "not found"
        finally:
            git(ROOT, "worktree", "remove", "--force", copy)


def main() -> int:
    """Try the mistakes that the command line names."""
    found_all = True
    for patch in sorted(HERE.glob("*.patch")):
        if sys.argv[1:] and patch.stem not in sys.argv[1:]:
            continue
        began_s = time.monotonic()
        result = tried(patch)
        what = patch.read_text().split("\n")[1]
        print(f"{patch.stem}: {result}; {time.monotonic() - began_s:.0f} s; {what}", flush=True)
        found_all = found_all and not result.startswith("not")
    return 0 if found_all else 1


sys.exit(main())
