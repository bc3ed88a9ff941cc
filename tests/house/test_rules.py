"""The rules of the code as tests: the length of functions, forbidden calls, docstrings.

A failure lists file:line and the rule. test_layout.py has the rules of imports.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import PurePosixPath

import pytest

from tests.house.layout import Found, circles, files_of, imports, walk
from tests.house.weight import ADVICE, CEILINGS, counted, faults, statements
from tests.support.documents import REPOSITORY

FUNCTION_LINES_MAX = 60

Rule = Callable[[PurePosixPath, ast.Module], Found]


def knows_nothing_of_the_service(path: PurePosixPath, tree: ast.Module) -> Found:
    """The load generator does not import the service, since it measures from outside."""
    for line, dotted in imports(tree):
        if dotted.split(".")[0] == "ingest":
            yield line, "loadgen imports ingest"


def is_short(path: PurePosixPath, tree: ast.Module) -> Found:
    """A function fits on a screen."""
    for node in walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                limit = f"at most {FUNCTION_LINES_MAX}: give a part of it a name of its own"
                yield node.lineno, f"{node.name} has {lines} lines, {limit}"


def opens_with_a_docstring(path: PurePosixPath, tree: ast.Module) -> Found:
    """A module begins with a docstring: its content, what it promises, what it does not do."""
    if not ast.get_docstring(tree):
        yield 1, "no module docstring"


def avoids_traps(path: PurePosixPath, tree: ast.Module) -> Found:
    """No asyncio.wait_for (on 3.11 it swallows cancellation), sleep that blocks, broad catch."""
    for node in walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "asyncio.wait_for",
            "wait_for",
        }:
            yield node.lineno, "wait_for: use asyncio.timeout"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
            yield node.lineno, "time.sleep blocks the loop"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if "BaseException" in caught:
                yield node.lineno, "catches everything, cancellation too"


def prints_nothing(path: PurePosixPath, tree: ast.Module) -> Found:
    """Only the command line prints."""
    is_of_annex = "commands" in path.parts or path.name == "command.py"
    if path.is_relative_to("ingest/cli") or is_of_annex:
        return
    for node in walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield node.lineno, "print outside the command line"


def each_test_states_what_must_hold(path: PurePosixPath, tree: ast.Module) -> Found:
    """Each test says in its docstring what must hold."""
    for node in walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_") and not ast.get_docstring(node):
            yield node.lineno, f"{node.name} has no docstring"


RULES: list[tuple[Rule, str]] = [
    (knows_nothing_of_the_service, "loadgen"),
    (is_short, "ingest loadgen benchmarks tests"),
    (opens_with_a_docstring, "ingest loadgen benchmarks tests"),
    (avoids_traps, "ingest loadgen"),
    (prints_nothing, "ingest"),
    (each_test_states_what_must_hold, "tests"),
]


@pytest.mark.parametrize(("rule", "folders"), RULES, ids=lambda each: getattr(each, "__name__", ""))
def test_code_keeps_the_rule(rule: Rule, folders: str) -> None:
    """Every file of the named folders keeps the rule."""
    broken = [
        f"{path}:{line}: {fault}"
        for folder in folders.split()
        for path, tree in files_of(folder).items()
        for line, fault in rule(path, tree)
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "name", "code"),
    [
        (knows_nothing_of_the_service, "x", "from ingest.model.codes import PROBLEMS"),
        (is_short, "x", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
        (opens_with_a_docstring, "x", "import os"),
        (avoids_traps, "x", "await asyncio.wait_for(f(), 1)"),
        (avoids_traps, "x", "time.sleep(1)"),
        (avoids_traps, "x", "try:\n    f()\nexcept:\n    pass"),
        (avoids_traps, "x", "try:\n    f()\nexcept (OSError, BaseException):\n    raise"),
        (prints_nothing, "x", "print(1)"),
        (each_test_states_what_must_hold, "x", "async def test_x(): pass"),
    ],
)
def test_rule_finds_what_it_forbids(rule: Rule, name: str, code: str) -> None:
    """The rule finds a sample that breaks it."""
    assert list(rule(PurePosixPath(name), ast.parse(code)))


@pytest.mark.parametrize(
    ("rule", "name", "code"),
    [
        (prints_nothing, "ingest/cli/psql.py", "print(1)"),
    ],
)
def test_rule_lets_pass_what_it_allows(rule: Rule, name: str, code: str) -> None:
    """The command line may print."""
    assert not list(rule(PurePosixPath(name), ast.parse(code)))


def test_no_tests_import_each_other_in_a_circle() -> None:
    """As test_layout.py has it of the packages; here, where their files have been parsed."""
    assert circles(files_of("tests")) == []


def test_no_folder_is_heavier_than_its_ceiling() -> None:
    """Nor is a ceiling far above its folder; weight.py has the table, and prints it anew."""
    assert faults(counted(), CEILINGS) == []


def test_weight_that_grows_is_found() -> None:
    """Also in a folder without a ceiling, or whose ceiling is left over or holds nothing back."""
    assert faults({"a": 100}, {"a": 100}) == faults({"a": 100}, {"a": 127}) == []
    assert faults({"a": 101}, {"a": 100}) == [f"a has 101 statements, its ceiling is 100: {ADVICE}"]
    assert faults({"new": 1}, {}) == [f"new has 1 statements, its ceiling is 0: {ADVICE}"]
    assert faults({"a": 100}, {"a": 128}) == ["a has 100 statements: lower its ceiling of 128"]
    assert faults({}, {"gone": 26}) == ["gone has 0 statements: lower its ceiling of 26"]
    assert statements(ast.parse('"""Text."""\nimport os\ndef f():\n    """Text."""\n    f()')) == 3


def test_nothing_is_left_for_later() -> None:
    """No file has a mark of work to do; such work stands in the tracker."""
    words = re.compile("TO" + "DO|FIX" + "ME|XX" + "X:")
    left = [
        f"{path.relative_to(REPOSITORY)}:{text.count(chr(10), 0, found.start()) + 1}"
        for folder in ("ingest", "loadgen", "benchmarks", "tests", "deploy")
        for path in sorted((REPOSITORY / folder).rglob("*"))
        if path.suffix not in {".pyc", ".png"} and path.is_file()
        for text in [path.read_text(errors="replace")]
        for found in words.finditer(text)
    ]
    assert not left, "\n" + "\n".join(left)
