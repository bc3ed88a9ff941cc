"""Collects the tests faster: each process prepares its share of the files, for all of them.

pytest rewrites the asserts of a file, and keeps the result beside it for the next time. In a new
checkout each process of a run would do that for every file, all at the same time, 10 s long.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from pathlib import Path

import pytest


def names_of(root: Path, where: list[str]) -> list[str]:
    """Return the modules of all tests in these folders and files."""
    found = set[Path]()
    for each in where:
        path = root / each.partition("::")[0]
        found |= {path} if path.is_file() else set(path.rglob("test_*.py"))
    return [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted(found)
        if path.is_relative_to(root)
    ]


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Import the share of this process, before all others look at all files."""
    if not isinstance(collector, pytest.Session):
        return
    gc.disable()  # it would look at all syntax trees again and again, and find nothing
    process = getattr(collector.config, "workerinput", None)
    if process is None:
        return
    number, count = int(process["workerid"].removeprefix("gw")), process["workercount"]
    names = names_of(collector.config.rootpath, collector.config.args)
    for name in names[number % count :: count]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # pytest will say it
            importlib.import_module(name)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there now stays to the end: no collection of garbage has to look at it."""
    gc.freeze()
    gc.enable()
