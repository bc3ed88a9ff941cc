"""The weight of the code: statements of each folder, and the most that each may have.

`python -m tests.house.weight` prints the table of ceilings with the counts of today: when an issue
ends, they replace the ceilings here. Docstrings do not count, imports do.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

from tests.house.layout import files_of, walk

CEILINGS = {
    "ingest": 19,
    "ingest/access": 412,
    "ingest/admin": 1157,
    "ingest/app": 1726,
    "ingest/buffers": 1708,
    "ingest/cli": 1857,
    "ingest/config": 715,
    "ingest/dead_letters": 1361,
    "ingest/embedded": 574,
    "ingest/formats": 3857,
    "ingest/http": 1941,
    "ingest/http_client": 190,
    "ingest/model": 1074,
    "ingest/mqtt": 1030,
    "ingest/receiver": 1546,
    "ingest/roles": 4827,
    "ingest/sinks": 2594,
    "ingest/system": 816,
    "ingest/web": 98,
    "ingest/writer": 607,
    "ingest/years": 2100,
    "tests": 48042,
    "loadgen": 4585,
    "benchmarks": 2629,
}
ADVICE = "take something away, or raise the ceiling and say what users get (CONTRIBUTING.md)"


def statements(tree: ast.Module) -> int:
    """Return the number of statements of a file without its docstrings."""
    nodes = [node for node in walk(tree) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(node, ast.Expr) and _is_text(node.value)) for node in nodes)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def row_of(path: PurePosixPath) -> str:
    """Return the row of a file: a folder of `ingest`, `ingest` for its own files, or the top."""
    return "/".join(path.parts[:-1][: 2 if path.parts[0] == "ingest" else 1])


def counted() -> dict[str, int]:
    """Return the statements of each folder that has a row."""
    found = Counter[str]()
    for top in ("ingest", "tests", "loadgen", "benchmarks"):
        for path, tree in files_of(top).items():
            found[row_of(path)] += statements(tree)
    return dict(found)


def faults(counts: Mapping[str, int], ceilings: Mapping[str, int]) -> list[str]:
    """Return what is too heavy, what has no ceiling, and which ceilings hold nothing back."""
    found = []
    for name in sorted({*counts, *ceilings}):
        count, ceiling = counts.get(name, 0), ceilings.get(name, 0)
        if count > ceiling:
            found.append(f"{name} has {count} statements, its ceiling is {ceiling}: {ADVICE}")
        elif ceiling > count + 25 + count // 50:  # room to work in, while an issue goes on
            found.append(f"{name} has {count} statements: lower its ceiling of {ceiling}")
    return found


if __name__ == "__main__":
    print("\n".join(f'    "{name}": {count},' for name, count in counted().items()))  # noqa: T201
