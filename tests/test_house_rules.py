"""The house rules as tests: who may import whom, how long things are, what is never written.

A failure lists file:line and the rule. A new module needs a place in FLOORS, or the first test
fails; to place it is to decide what it may know.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import ingest

REPOSITORY = Path(__file__).parent.parent
MODULE_LINES_MAX = 350
FUNCTION_LINES_MAX = 60

# From the ground up. A module imports from floors below its own; on its own floor only from an
# earlier row and only within its family (`dead_letter` and `dead_letter_*`, `decode`, ..).
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors clock codes counted",),
    ("reading timestamp config_values",),
    ("block config_sources",),
    ("ports config verdict files",),
    ("retry metrics schema logs statefolder config_text filesystem sd_notify",),
    ("durability waiting",),
    ("block_queue",),
    ("bounded_memory",),
    (
        "buffer_memory batch gate breaker set_aside inflate problems request turns listener",
        "decode_item dead_letter_files dead_letter_format journal_format postgres_binaries",
        "dead_letter_live sink_connection journal_reader",
        "decode_fast dead_letter_cursor postgres_data sink_postgres journal_book journal_store",
        "decode dead_letter_reader postgres_embedded",
        "dead_letter_store journal_thread",
        "dead_letter journal",
        "journal_entries",
    ),
    (
        "connection body query replies outcomes lookup_postgres buffer_journal_loader",
        "buffer_journal",
    ),
    ("connections",),
    ("site intake",),  # site: what the two listeners share
    ("dashboard_guard",),
    ("app_buffer endpoint health admin writer replay replay_by_hand schema_apply",),
    (
        "dashboard_history dashboard_devices dashboard_tail dashboard_page dashboard_query",
        "dashboard_feed dashboard_letters",
        "dashboard",
    ),
    ("app_dashboard app_hello app_signals", "app cli_database cli_doctor_database cli_service"),
    (
        "cli_config cli_docs cli_doctor cli_hold cli_psql cli_schema cli_serve cli_dlq_show",
        "cli_dlq_replay",
        "cli_dlq",
    ),
    ("cli",),
    ("__main__",),
)
PLACES: dict[str, tuple[int, int]] = {
    name: (floor, row)
    for floor, rows in enumerate(FLOORS)
    for row, names in enumerate(rows)
    for name in names.split()
}
FAMILIES = (
    "app",
    "buffer_journal",
    "cli_dlq",
    "dashboard",
    "dead_letter",
    "decode",
    "journal",
    "postgres",
    "sink",
)

# Libraries that only the named modules may know (as for a shell).
DOORS: dict[str, str] = {
    "time": "clock",
    "asyncpg": "sink_* lookup_postgres schema schema_apply durability cli_* postgres_embedded",
    "aiohttp": "connection connections request problems body intake",
    "prometheus_client": "metrics",
}

Found = Iterator[tuple[int, str]]  # line, and the rule that it breaks
Rule = Callable[[str, ast.Module], Found]


def modules(package: str) -> dict[str, Path]:
    """Return the modules of a package by name."""
    return {each.stem: each for each in sorted((REPOSITORY / package).glob("*.py"))}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of all imports but those for type checkers only."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def family(name: str) -> str:
    """Return the family of a module: the role that its name begins with."""
    return next((each for each in FAMILIES if name == each or name.startswith(each + "_")), name)


def imports_go_down(name: str, tree: ast.Module) -> Found:
    """A module knows only what is below it, and of its own floor only its family."""
    if name not in PLACES:  # said once, by another test
        return
    floor, row = PLACES[name]
    for line, dotted in imports(tree):
        target = dotted.split(".")[1] if dotted.startswith("ingest.") else ""
        if not target or target == "__version__":
            continue
        its_floor, its_row = PLACES.get(target, (len(FLOORS), 0))
        related = its_floor == floor and its_row < row and family(target) == family(name)
        if its_floor >= floor and not related:
            yield line, f"imports {target}, which is not below it"


def libraries_have_doors(name: str, tree: ast.Module) -> Found:
    """Each foreign library is known to few modules."""
    for line, dotted in imports(tree):
        library = dotted.split(".")[0]
        if library not in DOORS:
            continue
        if not any(fnmatchcase(name, each) for each in DOORS[library].split()):
            yield line, f"imports {library}, which is for {DOORS[library]}"


def knows_nothing_of_the_service(_name: str, tree: ast.Module) -> Found:
    """The load generator measures from outside."""
    for line, dotted in imports(tree):
        if dotted.split(".")[0] == "ingest":
            yield line, "loadgen imports ingest"


def is_short(_name: str, tree: ast.Module) -> Found:
    """A function fits on a screen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def opens_with_a_docstring(_name: str, tree: ast.Module) -> Found:
    """A module says what it holds, promises, and does not do."""
    if not ast.get_docstring(tree):
        yield 1, "no module docstring"


def avoids_traps(_name: str, tree: ast.Module) -> Found:
    """No asyncio.wait_for (on 3.11 it swallows cancellation), sleep that blocks, broad catch."""
    for node in ast.walk(tree):
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


def prints_nothing(name: str, tree: ast.Module) -> Found:
    """Only the command line talks on stdout."""
    if name.startswith("cli"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield node.lineno, "print outside the command line"


def each_test_states_its_law(_name: str, tree: ast.Module) -> Found:
    """Each test says in its docstring what must hold."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_") and not ast.get_docstring(node):
            yield node.lineno, f"{node.name} has no docstring"


RULES: list[tuple[Rule, str]] = [
    (imports_go_down, "ingest"),
    (libraries_have_doors, "ingest"),
    (knows_nothing_of_the_service, "loadgen"),
    (is_short, "ingest loadgen benchmarks tests"),
    (opens_with_a_docstring, "ingest loadgen benchmarks tests"),
    (avoids_traps, "ingest loadgen"),
    (prints_nothing, "ingest"),
    (each_test_states_its_law, "tests"),
]


@pytest.mark.parametrize(("rule", "folders"), RULES, ids=lambda each: getattr(each, "__name__", ""))
def test_code_keeps_the_rule(rule: Rule, folders: str) -> None:
    """Every file of the named folders keeps the rule."""
    broken = [
        f"{path.relative_to(REPOSITORY)}:{line}: {told}"
        for folder in folders.split()
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line, told in rule(path.stem, ast.parse(path.read_text()))
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "name", "code"),
    [
        (imports_go_down, "block", "from ingest.ports import Ack"),
        (imports_go_down, "gate", "from ingest.breaker import Breaker"),
        (imports_go_down, "gate", "from ingest import breaker"),
        (imports_go_down, "dead_letter_files", "import ingest.dead_letter"),
        (imports_go_down, "decode", "from ingest.postgres_binaries import place"),
        (imports_go_down, "writer", "from ingest.endpoint import Endpoint"),
        (imports_go_down, "cli_psql", "def f():\n    from ingest.cli_config import table"),
        (imports_go_down, "app", "from ingest.not_placed import x"),
        (libraries_have_doors, "writer", "import time"),
        (libraries_have_doors, "writer", "from time import monotonic"),
        (libraries_have_doors, "writer", "import asyncpg.exceptions"),
        (libraries_have_doors, "sinks", "import asyncpg"),
        (knows_nothing_of_the_service, "x", "from ingest.codes import PROBLEMS"),
        (is_short, "x", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
        (opens_with_a_docstring, "x", "import os"),
        (avoids_traps, "x", "await asyncio.wait_for(f(), 1)"),
        (avoids_traps, "x", "time.sleep(1)"),
        (avoids_traps, "x", "try:\n    f()\nexcept:\n    pass"),
        (avoids_traps, "x", "try:\n    f()\nexcept (OSError, BaseException):\n    raise"),
        (prints_nothing, "x", "print(1)"),
        (each_test_states_its_law, "x", "async def test_x(): pass"),
    ],
)
def test_rule_finds_what_it_forbids(rule: Rule, name: str, code: str) -> None:
    """A rule that cannot fail holds nothing."""
    assert list(rule(name, ast.parse(code)))


@pytest.mark.parametrize(
    ("rule", "name", "code"),
    [
        (imports_go_down, "ports", "if TYPE_CHECKING:\n    from ingest.app import serve"),
        (imports_go_down, "dead_letter", "from ingest.dead_letter_store import Store"),
        (imports_go_down, "cli_psql", "from ingest import __version__, cli_database"),
        (libraries_have_doors, "cli_schema", "import asyncpg"),
        (libraries_have_doors, "clock", "import time"),
        (prints_nothing, "cli_psql", "print(1)"),
    ],
)
def test_rule_lets_pass_what_it_allows(rule: Rule, name: str, code: str) -> None:
    """Types are not imports, families may talk among themselves."""
    assert not list(rule(name, ast.parse(code)))


def test_every_module_has_a_place_and_is_short() -> None:
    """A module that nobody placed may import anything; a long one has two jobs."""
    found = modules("ingest")
    assert sorted(set(found) - set(PLACES) - {"__init__"}) == [], "place these in FLOORS"
    assert sorted(set(PLACES) - set(found)) == [], "these are placed, but not there"
    long = {
        f"{path.relative_to(REPOSITORY)}: {lines} lines"
        for package in ("ingest", "loadgen")
        for path in modules(package).values()
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES_MAX
    }
    assert not long, f"more than {MODULE_LINES_MAX}: {sorted(long)}"


def test_path_picture_names_every_module() -> None:
    """Whoever opens the package sees where each file stands; `cli_*` stands for all of a role."""
    picture = ingest.__doc__ or ""
    named = set(re.findall(r"[a-z_]+", picture))
    roles = tuple(re.findall(r"([a-z_]+_)\*", picture))
    missing = [
        name
        for name in modules("ingest")
        if not name.startswith("__") and name not in named and not name.startswith(roles or ("\0",))
    ]
    assert not missing, f"ingest/__init__.py does not name {', '.join(missing)}"
    gone = [name for name in PLACES if name in named and name not in modules("ingest")]
    assert not gone, f"ingest/__init__.py names {', '.join(gone)}, which is not there"


def test_nothing_is_left_for_later() -> None:
    """Work to do stands in the tracker, not in the code."""
    words = re.compile("TO" + "DO|FIX" + "ME|XX" + "X:")
    left = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for folder in ("ingest", "loadgen", "benchmarks", "tests", "deploy")
        for path in sorted((REPOSITORY / folder).rglob("*"))
        if path.is_file() and path.suffix not in {".pyc", ".png"}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if words.search(line)
    ]
    assert not left, "\n" + "\n".join(left)
