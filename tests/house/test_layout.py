"""The layout of the packages as tests: one folder a role, imports go down, no circle, unique names.

layout.py has the rules. Each rule gets samples that it must find, since a rule that cannot fail
proves nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import pytest

import ingest
from tests.house.layout import (
    FILES_MAX,
    HALVES,
    LAYERS,
    LINES_MAX,
    LINES_MIN,
    MADE_IN,
    RIDDLES,
    SHORT_FILES,
    Found,
    aiohttp_stays_outside,
    circles,
    classes_of_one_name,
    files_of,
    files_out_of_size,
    full_folders,
    halves_reach_each_other,
    imports_absolutely,
    imports_go_down,
    init_is_a_docstring,
    keeps_to_public_names,
    layers_table,
    lists_said_twice,
    made_elsewhere,
    model_knows_no_library,
    names_no_annex,
    names_of,
    one_folder_knows_the_library,
    settings_end_in_the_composition,
    subclasses,
    top_holds_no_logic,
)
from tests.printing.documents import refreshed
from tests.support.documents import REPOSITORY

Rule = Callable[[PurePosixPath, ast.Module], Found]

PACKAGES = ("ingest", "loadgen")
TOP_FILES_MAX = 4
# Use the standard terms of docs/reference/contract.md instead of these words.
PRIVATE_WORDS = re.compile(r"(^|_)(door|gate|laws?|poison|mends?|intake|hello|witness\w*)(_|$)")

RULES: list[tuple[Rule, str]] = [
    (imports_absolutely, "ingest loadgen benchmarks"),
    (imports_go_down, "ingest loadgen"),
    (names_no_annex, "ingest"),
    (model_knows_no_library, "ingest"),
    (top_holds_no_logic, "ingest loadgen"),
    (one_folder_knows_the_library, "ingest"),
    (settings_end_in_the_composition, "ingest"),
    (made_elsewhere, "ingest"),
    (init_is_a_docstring, "ingest loadgen benchmarks"),
    (keeps_to_public_names, "ingest loadgen benchmarks"),
    (aiohttp_stays_outside, "ingest"),
]


@pytest.mark.parametrize(
    ("rule", "packages"), RULES, ids=lambda each: getattr(each, "__name__", "")
)
def test_every_file_keeps_the_rule(rule: Rule, packages: str) -> None:
    """Each file keeps the rule; a failure lists file:line and the fault."""
    broken = [
        f"{path}:{line}: {fault}"
        for package in packages.split()
        for path, tree in files_of(package).items()
        for line, fault in rule(path, tree)
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        (imports_go_down, "model/ports.py", "from ingest.system.clock import unix_us"),
        (imports_absolutely, "writer/batch.py", "from ..buffers.memory import MemoryBuffer"),
        (imports_absolutely, "writer/batch.py", "from .. import http"),
        (imports_absolutely, "writer/batch.py", "from ingest.model.ports import *"),
        (imports_absolutely, "writer/batch.py", "import_module('ingest.http.routes')"),
        (imports_go_down, "writer/batch.py", "from ingest import buffers"),
        (imports_go_down, "writer/batch.py", "import ingest.buffers as b"),
        (imports_go_down, "writer/batch.py", "from loadgen.words import counted"),
        (model_knows_no_library, "model/block.py", "import orjson"),
        (one_folder_knows_the_library, "admin/port.py", "import prometheus_client"),
        (settings_end_in_the_composition, "writer/writer.py", "import ingest.config as c"),
        (keeps_to_public_names, "writer/batch.py", "def f(o):\n    o._blocks = 3"),
        (keeps_to_public_names, "writer/batch.py", "def f(o):\n    getattr(o, '_blocks')"),
        (keeps_to_public_names, "writer/batch.py", "from ingest.writer._x import y"),
        (
            keeps_to_public_names,
            "writer/batch.py",
            "from ingest.model.x import B\nclass A(B):\n    def f(self):\n        self._b()",
        ),
        (imports_go_down, "words.py", "from ingest.model.ports import Sink"),
        (imports_go_down, "writer/batch.py", "from ingest.buffers.memory import MemoryBuffer"),
        (imports_go_down, "http/routes.py", "import ingest.receiver.endpoint"),
        (imports_go_down, "receiver/posts.py", "from ingest.dead_letters import queue"),
        (imports_go_down, "admin/dashboard/history.py", "from ingest.app.health import Health"),
        (imports_go_down, "cli/psql.py", "def f():\n    from ingest.attic.x import y"),
        (imports_go_down, "sinks/webhook/sink.py", "from ingest.sinks.postgres.schema import KEY"),
        (
            imports_go_down,
            "model/ports.py",
            "if TYPE_CHECKING:\n    from ingest.app.service import serve",
        ),
        (imports_go_down, "cli/psql.py", "import ingest.mqtt.bridge"),
        (imports_go_down, "app/database.py", "def f():\n    from ingest import years"),
        (
            imports_go_down,
            "app/annexes.py",
            "if TYPE_CHECKING:\n    from ingest.roles.role import R",
        ),
        (imports_go_down, "roles/annex.py", "def f():\n    import ingest.years.retention as r"),
        (names_no_annex, "cli/commands.py", "find('ingest.roles.role')"),
        (names_no_annex, "app/process.py", "PATH = f'{folder}/ingest/years/archive'"),
        (names_no_annex, "roles/supervisor/child.py", "WORDS = ['-m', 'ingest.mqtt']"),
        (top_holds_no_logic, "attic/old.py", "x = 1"),
        (one_folder_knows_the_library, "writer/writer.py", "import time"),
        (one_folder_knows_the_library, "writer/writer.py", "from time import monotonic"),
        (one_folder_knows_the_library, "cli/doctor/command.py", "import asyncpg.exceptions"),
        (one_folder_knows_the_library, "receiver/endpoint.py", "from aiohttp import web"),
        (one_folder_knows_the_library, "model/ledger.py", "import prometheus_client"),
        (one_folder_knows_the_library, "http_client/client.py", "from aiohttp import web"),
        (one_folder_knows_the_library, "http/routes.py", "from aiohttp import ClientSession"),
        (one_folder_knows_the_library, "roles/status.py", "from aiohttp import ClientError"),
        (
            settings_end_in_the_composition,
            "writer/writer.py",
            "from ingest.config.settings import Settings",
        ),
        (settings_end_in_the_composition, "http/routes.py", "import ingest.config.settings"),
        (made_elsewhere, "app/service.py", "def f():\n    return [Writer(cap=1)]"),
        (
            made_elsewhere,
            "roles/commands/services.py",
            "from ingest.receiver import endpoint as e\ne.Endpoint()",
        ),
        (init_is_a_docstring, "writer/__init__.py", '"""It."""\nfrom ingest.writer.x import y'),
        (init_is_a_docstring, "writer/__init__.py", '"""It."""\n__version__ = "1"'),
        (keeps_to_public_names, "writer/batch.py", "def f(x):\n    return x._blocks"),
        (keeps_to_public_names, "writer/batch.py", "from ingest.writer.writer import _wait"),
        (keeps_to_public_names, "http/x.py", "from aiohttp._http_parser import HttpRequestParser"),
        (aiohttp_stays_outside, "http/x.py", "import aiohttp\nclass A(aiohttp.web.Server): ..."),
        (
            aiohttp_stays_outside,
            "http/x.py",
            "from aiohttp.web import RequestHandler as R\nclass A(R):\n    x = 1",
        ),
        (
            aiohttp_stays_outside,
            "http/x.py",
            "from aiohttp import web\nclass A:\n"
            "    def f(self):\n        self._waiter = 1\n        self.body._waiter = 2",
        ),
    ],
)
def test_rule_finds_what_it_forbids(rule: Rule, path: str, code: str) -> None:
    """The rule finds a sample that breaks it."""
    assert list(rule(PurePosixPath("ingest") / path, ast.parse(code)))


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        (imports_go_down, "writer/batch.py", "from ingest.system.clock import unix_us"),
        (
            imports_go_down,
            "buffers/journal/buffer.py",
            "from ingest.buffers.memory import BlockQueue",
        ),
        (imports_go_down, "cli/psql.py", "from ingest import __version__"),
        (imports_go_down, "__main__.py", "from ingest.cli.commands import main"),
        (names_no_annex, "roles/supervisor/child.py", "WORDS = ['-m', 'ingest.roles.child']"),
        (names_no_annex, "app/annexes.py", "FOUND = 'ingest.roles.annex'"),
        (names_no_annex, "writer/batch.py", "SUBJECT = 'ingest.in.roles'"),
        (one_folder_knows_the_library, "sinks/postgres/sink.py", "import asyncpg"),
        (one_folder_knows_the_library, "system/clock.py", "import time"),
        (settings_end_in_the_composition, "app/x.py", "import ingest.config.settings"),
        (settings_end_in_the_composition, "http/x.py", "import ingest.config.values"),
        (made_elsewhere, "app/writing.py", "Writer(cap=1)"),
        (made_elsewhere, "app/service.py", "make_writers(), StreamWriter(1)"),
        (init_is_a_docstring, "__init__.py", '"""It."""\n__version__ = "1"'),
        (keeps_to_public_names, "x/y.py", "class A:\n    def _f(self):\n        return self._g"),
        (keeps_to_public_names, "x/y.py", "class A:\n    _b = 1\ndef f(a):\n    return a._b"),
        (
            aiohttp_stays_outside,
            "http/x.py",
            "from aiohttp import web\nclass A(B):\n    def f(self):\n        self._a = web.Fault()",
        ),
    ],
)
def test_rule_lets_pass_what_it_allows(rule: Rule, path: str, code: str) -> None:
    """Allowed: imports downwards, within a folder, and of a library in its own folder."""
    assert not list(rule(PurePosixPath("ingest") / path, ast.parse(code)))


@pytest.mark.parametrize("package", ["ingest", "loadgen", "benchmarks"])
def test_no_files_import_each_other_in_a_circle(package: str) -> None:
    """No files import each other in a circle, also not for types only."""
    assert circles(files_of(package)) == []


def test_circle_of_types_would_be_found() -> None:
    """A circle of imports for type checkers is found."""
    files = {
        PurePosixPath("p/a.py"): ast.parse("from p.b import B"),
        PurePosixPath("p/b.py"): ast.parse("if TYPE_CHECKING:\n    from p import a"),
    }
    assert set(circles(files)) == {"p/a.py", "p/b.py"}


def test_halves_do_not_reach_each_other() -> None:
    """Receiving goes without writer and sinks, writing without HTTP, formats and receiver."""
    files = files_of("ingest")
    assert {str(path) for path in files} >= HALVES.keys() | set(MADE_IN.values())
    assert not halves_reach_each_other(files)


@pytest.mark.parametrize(
    ("root", "way"),
    [
        ("receiving", ["ingest/writer/batch.py"]),
        ("receiving", ["ingest/app/between.py", "ingest/sinks/postgres/sink.py"]),
        ("writing", ["ingest/http/bodies.py"]),
        ("writing", ["ingest/dead_letters/manual_replay.py", "ingest/formats/json/body.py"]),
        ("writing", ["ingest/app/between.py", "ingest/receiver/posts.py"]),
    ],
)
def test_way_from_one_half_to_the_other_would_be_found(root: str, way: list[str]) -> None:
    """Also over other files, and the whole way is listed."""
    paths = [f"ingest/app/{root}.py", *way]
    codes = [f"from {path[:-3].replace('/', '.')} import x" for path in way]
    files = {
        PurePosixPath(path): ast.parse(code)
        for path, code in zip(paths, [*codes, "x = 1"], strict=True)
    }
    assert halves_reach_each_other(files) == [" > ".join(paths)]


@pytest.mark.parametrize("package", PACKAGES)
def test_class_name_stands_once(package: str) -> None:
    """No two classes of a package have the same name."""
    assert classes_of_one_name(files_of(package)) == []


def test_second_class_of_a_name_would_be_found() -> None:
    """Also in another folder."""
    tree = ast.parse("class Request: ...")
    files = {PurePosixPath("p/a.py"): tree, PurePosixPath("p/q/b.py"): tree}
    assert classes_of_one_name(files) == ["Request: p/a.py, p/q/b.py"]


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_no_name_is_of_a_private_dialect(package: str) -> None:
    """Names of files, folders, classes and functions use standard terms."""
    found = [
        f"{path}:{line}: {name}"
        for path, tree in files_of(package).items()
        for line, name in names_of(path, tree)
        if PRIVATE_WORDS.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", ["Gate", "line_to_door", "WitnessedLetters", "test_law_of_x"])
def test_private_word_would_be_found(name: str) -> None:
    """The word is found in each style of names."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    assert PRIVATE_WORDS.search(split)


def test_files_and_folders_are_neither_long_nor_short() -> None:
    """A file is one subject of 60 to 500 lines, and a folder has at most 15 of them."""
    paths = [path for package in PACKAGES for path in files_of(package)]
    lines = {str(path): len((REPOSITORY / path).read_text().splitlines()) for path in paths}
    found = [*files_out_of_size(lines), *full_folders(paths)]
    assert not found, "\n" + "\n".join(found)


def test_size_that_is_wrong_would_be_found() -> None:
    """Also a reason that is left over."""
    usual = {f"ingest/{end.removeprefix('ingest/')}": 1 for end in SHORT_FILES}
    usual |= {"ingest/a.py": LINES_MIN, "ingest/b.py": LINES_MAX}
    assert files_out_of_size(usual) == []
    usual |= {"ingest/a.py": LINES_MIN - 1, "ingest/b.py": LINES_MAX + 1}
    assert files_out_of_size(usual | {"ingest/system/words.py": LINES_MIN}) == [
        "ingest/b.py has 501 lines",
        "ingest/a.py is short",
        "ingest/system/words.py is in SHORT_FILES, and is not short",
    ]
    paths = [PurePosixPath(f"a/b/{number}.py") for number in range(FILES_MAX)]
    assert full_folders([*paths, PurePosixPath("a/c.py")]) == []
    assert full_folders([*paths, PurePosixPath("a/b/c.py")]) == ["a/b has 16 files"]


def _riddles(paths: Iterable[PurePosixPath]) -> list[str]:
    return [str(path) for path in paths if path.stem in RIDDLES.split()]


def test_no_file_is_called_a_riddle() -> None:
    """A stranger finds a subject by the name of its file."""
    assert _riddles(files_of("ingest")) == []
    assert _riddles([PurePosixPath("ingest/writer/at_fault.py")]) != []


@pytest.mark.parametrize("package", PACKAGES)
def test_top_of_a_package_has_few_files(package: str) -> None:
    """Files are in the folder of their role, not at the top."""
    assert len(list((REPOSITORY / package).glob("*.py"))) <= TOP_FILES_MAX


def test_picture_names_every_folder() -> None:
    """The docstring of `ingest` shows each folder."""
    picture = ingest.__doc__ or ""
    named = set(re.findall(r"\b([a-z_]+)/", picture))
    there = {
        path.name for path in (REPOSITORY / "ingest").iterdir() if (path / "__init__.py").is_file()
    }
    assert there == {name for row in LAYERS["ingest"] for name in row}
    assert there <= named, "the picture does not name them all"


def test_no_list_of_texts_stands_twice() -> None:
    """No list of texts is in two files, since the two would drift apart."""
    assert lists_said_twice(files_of("ingest")) == []


def test_list_said_twice_would_be_found() -> None:
    """In any order."""
    files = {
        PurePosixPath("a.py"): ast.parse('X = ("a", "b", "c", "d")'),
        PurePosixPath("b.py"): ast.parse('Y = ["d", "c", "b", "a"]'),
    }
    assert lists_said_twice(files) == ["a.py, b.py: a, b, c, d"]


def test_every_error_of_ours_is_in_the_model() -> None:
    """The service's own errors are in errors.py and model/causes.py."""
    homes = {path for path, _ in subclasses(files_of("ingest"), "IngestError")}
    assert homes == {"ingest/model/errors.py", "ingest/model/causes.py"}


def test_every_contract_has_a_suite() -> None:
    """Each Protocol of the ports has a suite in tests/contract."""
    home = PurePosixPath("ingest/model/ports.py")
    ports = {home: files_of("ingest")[home]}
    contracts = {name for _, name in subclasses(ports, "Protocol")}
    suites = "".join(path.read_text() for path in (REPOSITORY / "tests/contract").glob("*.py"))
    assert contracts
    assert {name for name in contracts if not re.search(rf"\b{name}\b", suites)} == set()


def test_design_shows_the_layers_of_the_rule() -> None:
    """`python -m tests.house.layout` prints it; tests/printing/documents.py cannot."""
    text = (REPOSITORY / "DESIGN.md").read_text()
    assert refreshed(text) == text, "the printer leaves it as it is"
    _, begin, after = text.partition("<!-- layers: ")
    assert begin
    shown = after.partition("-->")[2].partition("<!-- end -->")[0].strip()
    assert shown == layers_table()
