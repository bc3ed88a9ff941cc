"""The layout of our packages, as data and as functions: which folder may import which one.

Each rule takes a file (its path from the repository, its tree) and yields the lines that break it.
Imports that are for type checkers only count like all others.
"""

from __future__ import annotations

import ast
import gc
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

from tests.support.documents import REPOSITORY

# From the ground up. A folder imports folders of lower rows and itself, nothing else of ours.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ingest": (
        ("model",),
        ("system",),
        ("config",),
        ("http_client",),
        ("access", "http", "formats", "buffers", "writer", "sinks", "embedded"),
        ("receiver", "dead_letters"),
        ("admin",),
        ("app",),
        ("cli", "web"),
        ("years", "roles", "mqtt"),  # the annexes
    ),
    "loadgen": (
        ("wire",),
        ("traffic", "csv"),
        ("driver",),
        ("measure", "proof"),
        ("report", "demo"),
        ("cli",),
    ),
}
ANNEXES = LAYERS["ingest"][-1]
# Sub-folders of one role: each may import those of lower rows. Others do not know each other.
INSIDE: dict[str, tuple[tuple[str, ...], ...]] = {
    "roles": (("nats",), ("forward", "supervisor"), ("commands",)),
}
# Libraries that one folder alone may know. All others are free. The longest name counts: one folder
# knows aiohttp's parser of requests, and another one its client.
LIBRARIES = {
    "aiohttp": "ingest/http ingest/web",
    "aiohttp.ClientError": "ingest/http_client",
    "aiohttp.ClientResponse": "ingest/http_client",
    "aiohttp.ClientSession": "ingest/http_client",
    "aiohttp.ClientTimeout": "ingest/http_client",
    "aiohttp.DummyCookieJar": "ingest/http_client",
    "aiohttp.TCPConnector": "ingest/http_client",
    "asyncpg": "ingest/sinks",
    "prometheus_client": "ingest/admin/exposition.py",
    "multidict": "ingest/http",
    "backports": "ingest/http",
    "compression": "ingest/http",
    "yarl": "ingest/http_client",
    "nats": "ingest/roles/nats",
    "paho": "ingest/mqtt",
    "pyarrow": "ingest/years/archive",
    "fcntl": "ingest/system",
    "time": "ingest/system",
}
READ_SETTINGS = ("app", "cli", "config", *ANNEXES)  # other parts get numbers
# A program that only receives posts, or only writes, is made from one of these files alone. So the
# file must not reach those folders, also not through other files.
HALVES = {
    "ingest/app/receiving.py": ("writer", "sinks"),
    "ingest/app/writing.py": ("http", "formats", "receiver"),
}
# Parts that only one file makes, with everything that they need.
MADE_IN = {"Endpoint": "ingest/app/receiving.py", "Writer": "ingest/app/writing.py"}
# Private names of a library that we use because it has no public ones. This list may only shrink.
FENCED = {
    "ingest/sinks/postgres/connection.py": {"_transport"},
    "ingest/sinks/postgres/statements.py": {"_copy_in"},
    "ingest/roles/nats/session.py": {"_transport"},
}
OF_ANNEX = re.compile(rf"\bingest[./]({'|'.join(ANNEXES)})\b")
LINES_MIN, LINES_MAX = 60, 500
FILES_MAX = 15  # of a folder, its __init__.py too; more go into sub-folders by subject
# Files that may be shorter than LINES_MIN: the end of their path, and why.
SHORT_FILES = {
    "__init__.py": "a docstring",
    "__main__.py": "starts the package",
    "ingest/mqtt/annex.py": "a list that must load quickly",
    "ingest/roles/annex.py": "a list that must load quickly",
    "ingest/roles/forward/options.py": "two files use it, and one of them must load quickly",
    "ingest/sinks/memory_table.py": "in place of the folder beside it, for the tests of others",
    "ingest/system/words.py": "thirty files use it",
}
# Names by which a stranger does not find the subject.
RIDDLES = """
ahead at_fault at_once begin carry fill given_check hand hints in_time in_work lacking late leaving
left live one_by_one places room rules shared take_back undone
"""
# The names for the programs of others; it loads them at their first use. So it imports the layers
# above it.
OF_LIBRARY = PurePosixPath("ingest/__init__.py")
OF_TUPLES = {"_replace", "_asdict", "_fields", "_make"}
OF_ARGPARSE = {
    "_SubParsersAction",
    "_ArgumentGroup",
    "_ActionsContainer",
}  # types that have no public name

Found = Iterator[tuple[int, str]]  # line, and the rule that it breaks
Files = Mapping[PurePosixPath, ast.Module]


@lru_cache(maxsize=4)
def files_of(package: str) -> Files:
    """Return the syntax trees of all files of a package, by path from the repository.

    To parse all takes a second, and there are thirty rules. The caller changes no tree.
    """
    gc.disable()  # it would look at a million new nodes again and again, and find nothing
    try:
        return {
            PurePosixPath(path.relative_to(REPOSITORY)): ast.parse(path.read_text())
            for path in sorted((REPOSITORY / package).rglob("*.py"))
        }
    finally:
        gc.freeze()  # the tests that come later in this process do not look at them either
        gc.enable()


@cache
def walk(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Return all nodes of a file."""
    return tuple(ast.walk(tree))


def imports_absolutely(path: PurePosixPath, tree: ast.Module) -> Found:
    """Imports are written out, with the whole path: the other rules read them."""
    for node in walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*"):
            yield node.lineno, "a relative import, or a star"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in {"import_module", "__import__"} and any(
                ours in ast.unparse(each) for each in node.args for ours in LAYERS
            ):
                yield node.lineno, f"{called} hides an import of ours"


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of all imports."""
    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def folder_of(path: PurePosixPath) -> str:
    """Return the folder of a package that a file lies in; "" for a file at its top."""
    return path.parts[1] if len(path.parts) > 2 else ""


def imports_go_down(path: PurePosixPath, tree: ast.Module) -> Found:
    """A folder imports folders of lower rows, so never a sibling."""
    package = path.parts[0]
    rows = {name: row for row, names in enumerate(LAYERS[package]) for name in names}
    own = folder_of(path)
    if (path.name == "__main__.py" and not own) or path == OF_LIBRARY:
        return  # it starts the package, or has the names of the library
    for line, dotted in imports(tree):
        parts = dotted.split(".")
        if parts[0] in {"ingest", "loadgen", "benchmarks", "tests"} - {package}:
            yield line, f"imports {dotted}: packages do not know each other"
        if parts[0] != package or len(parts) < 2 or parts[1] == "__version__":
            continue
        if parts[1] == own:
            if _are_siblings(path.parts[2:-1], parts[2:], own):
                yield line, f"imports {dotted}: folders of one role do not know each other"
        elif (REPOSITORY / package / f"{parts[1]}.py").is_file():
            continue  # a file at the top is on the ground, below all folders
        elif parts[1] not in rows:
            yield line, f"imports {dotted}: {parts[1]} has no row in LAYERS"
        elif not own or rows[parts[1]] >= rows[own]:
            yield line, f"imports {dotted}, which is not below {own or 'the ground'}"


def names_no_annex(path: PurePosixPath, tree: ast.Module) -> Found:
    """No text names a module of an annex, which could be imported by it: app/annexes.py does.

    imports_go_down has the imports: the annexes are on top, and do not know each other.
    """
    if str(path) == "ingest/app/annexes.py":
        return
    for node in walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for annex in OF_ANNEX.findall(node.value):
                if annex != folder_of(path):
                    yield node.lineno, f"names a module of {annex}"


def _are_siblings(ours: tuple[str, ...], theirs: list[str], folder: str) -> bool:
    """Whether both are in different sub-folders of one role, as two sinks would be."""
    if not ours or len(theirs) < 2:
        return False
    is_folder = (REPOSITORY / "ingest" / folder / theirs[0]).is_dir() or folder == "sinks"
    rows = {name: row for row, names in enumerate(INSIDE.get(folder, ())) for name in names}
    is_below = rows.get(theirs[0], 0) < rows.get(ours[0], 0)
    return is_folder and ours[0] != theirs[0] and not is_below


def top_holds_no_logic(path: PurePosixPath, tree: ast.Module) -> Found:
    """A folder must have a row in LAYERS; else it could import anything."""
    rows = {name for names in LAYERS[path.parts[0]] for name in names}
    if (own := folder_of(path)) and own not in rows:
        yield 1, f"{own} has no row in LAYERS"


def one_folder_knows_the_library(path: PurePosixPath, tree: ast.Module) -> Found:
    """One folder alone imports the library, so that another version concerns this folder only."""
    for line, dotted in imports(tree):
        parts = dotted.split(".")
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        home = next((LIBRARIES[name] for name in names if name in LIBRARIES), None)
        if home and not any(map(path.is_relative_to, home.split())):
            yield line, f"imports {dotted}, which only {home} may know"


def model_knows_no_library(path: PurePosixPath, tree: ast.Module) -> Found:
    """The words that all parts share depend on nothing but Python."""
    if folder_of(path) != "model":
        return
    for line, dotted in imports(tree):
        if dotted.split(".")[0] not in {*sys.stdlib_module_names, "ingest"}:
            yield line, f"imports {dotted}: model knows no library"


def settings_end_in_the_composition(path: PurePosixPath, tree: ast.Module) -> Found:
    """A part gets numbers, so that a test or another program can make it without settings."""
    if folder_of(path) in READ_SETTINGS:
        return
    for line, dotted in imports(tree):
        if dotted.startswith(("ingest.config.settings", "ingest.config.loading")) or (
            dotted == "ingest.config"
        ):
            yield line, f"imports {dotted}: only {', '.join(READ_SETTINGS)} may"


def init_is_a_docstring(path: PurePosixPath, tree: ast.Module) -> Found:
    """No re-exports: a name has one address. Programs of others know the package, and `web`."""
    if path.name != "__init__.py" or path in (OF_LIBRARY, PurePosixPath("ingest/web/__init__.py")):
        return
    for node in tree.body[1:]:
        is_version = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
        if not (is_version and not folder_of(path)):
            yield node.lineno, "an __init__.py holds its docstring and nothing else"


def keeps_to_public_names(path: PurePosixPath, tree: ast.Module) -> Found:
    """A private name is of one file. Those of a library are fenced."""
    own = set(_names_defined(tree)) | OF_TUPLES | OF_ARGPARSE | FENCED.get(str(path), set())
    inheriting = {
        id(inner)
        for node in walk(tree)
        if isinstance(node, ast.ClassDef) and _has_foreign_base(node, tree)
        for inner in ast.walk(node)
    }
    for node in walk(tree):
        if isinstance(node, ast.ImportFrom):
            for name in (*(node.module or "").split("."), *(alias.name for alias in node.names)):
                if _is_private(name):
                    yield node.lineno, f"imports {name}, a private name of {node.module}"
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            of_self = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if node.attr not in own and (not of_self or id(node) in inheriting):
                yield node.lineno, f"uses {node.attr}, a private name of another file"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "setattr"}:
            reached = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(reached, str) and _is_private(reached) and reached not in own:
                yield node.lineno, f"reaches {reached}, a private name of another file"


def aiohttp_stays_outside(path: PurePosixPath, tree: ast.Module) -> Found:
    """A file that imports aiohttp uses no private name of it, and no class of ours is one of its.

    keeps_to_public_names lets a file use names that it defines itself. Here they are ours only if
    they are of `self`: the parser and the body of a request have names of the same kind.
    """
    theirs = {
        (alias.asname or alias.name).split(".")[0]
        for node in walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).split(".")[0] == "aiohttp"
    }
    if not theirs:
        return
    for node in walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if ast.unparse(base).split("[")[0].split(".")[0] in theirs:
                    yield node.lineno, f"{node.name} is a {ast.unparse(base)} of aiohttp"
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            of_self = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if not of_self and node.attr not in OF_TUPLES:
                yield node.lineno, f"uses {node.attr}, perhaps a private name of aiohttp"


def _has_foreign_base(node: ast.ClassDef, tree: ast.Module) -> bool:
    """Whether a base of the class is a class of another file of ours."""
    ours = {
        alias.asname or alias.name
        for each in walk(tree)
        if isinstance(each, ast.ImportFrom) and (each.module or "").split(".")[0] in LAYERS
        for alias in each.names
    }
    return any(ast.unparse(base) in ours for base in node.bases)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _names_defined(tree: ast.Module) -> Iterator[str]:
    for node in walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) in {"self", "cls"}:
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            yield from (
                each.value
                for each in ast.walk(node.value)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )


def circles(files: Files) -> list[str]:
    """Return a circle of imports over more than one file, if there is one."""
    try:
        TopologicalSorter(_graph(files)).prepare()
    except CycleError as error:
        return [str(each) for each in error.args[1]]
    return []


def halves_reach_each_other(files: Files) -> list[str]:
    """Return the files of the other half that a composition root reaches, with the way to them."""
    graph = _graph(files)
    found = []
    for root, strangers in HALVES.items():
        ways = {PurePosixPath(root): root}
        pending = list(ways)
        while pending:
            path = pending.pop()
            for target in graph.get(path, set()) - ways.keys():
                ways[target] = f"{ways[path]} > {target}"
                pending.append(target)
        found += [way for path, way in ways.items() if folder_of(path) in strangers]
    return found


def made_elsewhere(path: PurePosixPath, tree: ast.Module) -> Found:
    """A part is made in one file, since a second place would miss later changes of the first."""
    for node in walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if MADE_IN.get(name, str(path)) != str(path):
                yield node.lineno, f"makes a {name}, which {MADE_IN[name]} does"


def _graph(files: Files) -> dict[PurePosixPath, set[PurePosixPath]]:
    """Return for each file the files that it imports."""
    by_dotted = {_dotted(path): path for path in files}
    return {
        path: {
            found
            for _, dotted in imports(tree)
            if (found := by_dotted.get(dotted) or by_dotted.get(dotted.rpartition(".")[0]))
        }
        - {path}
        for path, tree in files.items()
        if path != OF_LIBRARY  # all others may import its version
    }


def _dotted(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def classes_of_one_name(files: Files) -> list[str]:
    """Return the class names that stand more than once, with their files."""
    places: dict[str, list[str]] = {}
    for path, tree in files.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path))
    return [f"{name}: {', '.join(each)}" for name, each in places.items() if len(each) > 1]


def names_of(path: PurePosixPath, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the names of a file, its folders, its classes and its functions."""
    yield from ((1, part) for part in path.with_suffix("").parts)
    for node in walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def files_out_of_size(lines: Mapping[str, int]) -> list[str]:
    """Return the files that are too long or too short, and what is in SHORT_FILES in vain.

    Too long a file has two jobs. Too short a one of `ingest` is a page of imports for one reader
    next door.
    """
    found = [f"{path} has {count} lines" for path, count in lines.items() if count > LINES_MAX]
    short = [path for path, n in lines.items() if n < LINES_MIN and path.startswith("ingest/")]
    found += [f"{path} is short" for path in short if not path.endswith(tuple(SHORT_FILES))]
    return found + [
        f"{end} is in SHORT_FILES, and is not short"
        for end in SHORT_FILES
        if not any(path.endswith(end) for path in short)
    ]


def full_folders(paths: Iterable[PurePosixPath]) -> list[str]:
    """Return the folders that have more than FILES_MAX files."""
    counts = Counter(str(path.parent) for path in paths)
    return [f"{folder} has {count} files" for folder, count in counts.items() if count > FILES_MAX]


def lists_said_twice(files: Files) -> list[str]:
    """Return the lists of four or more texts that stand in two files, with these files."""
    places: dict[frozenset[str], set[str]] = {}
    for path, tree in files.items():
        for node in walk(tree):
            if isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) >= 4:
                texts = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                if len(texts) == len(node.elts) and all(isinstance(each, str) for each in texts):
                    places.setdefault(frozenset(map(str, texts)), set()).add(str(path))
    return [
        f"{', '.join(sorted(found))}: {', '.join(sorted(texts))}"
        for texts, found in places.items()
        if len(found) > 1
    ]


def subclasses(files: Files, base: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of each class that has `base` as a base."""
    for path, tree in files.items():
        for node in walk(tree):
            if isinstance(node, ast.ClassDef) and base in [
                ast.unparse(each) for each in node.bases
            ]:
                yield str(path), node.name


def folder_in(home: str) -> str:
    """Return the folder of a home in LIBRARIES."""
    return home.split(maxsplit=1)[0].split("/")[1]


def layers_table() -> str:
    """Return the layers of `ingest`, from above, as DESIGN.md shows them."""
    lines = ["| layer | folder | holds | only this folder imports |", "| --- | --- | --- | --- |"]
    for row in range(len(LAYERS["ingest"]), 0, -1):
        for name in LAYERS["ingest"][row - 1]:
            docstring = ast.get_docstring(ast.parse(_init_of(name).read_text())) or ""
            holds = docstring.partition("\n")[0].partition(": ")[2].rstrip(".")
            alone = ", ".join(
                f"`{each}`" for each, at in LIBRARIES.items() if folder_in(at) == name
            )
            lines.append(f"| {row} | `{name}` | {holds} | {alone or '-'} |")
    return "\n".join(lines)


def _init_of(folder: str) -> Path:
    return REPOSITORY / "ingest" / folder / "__init__.py"


if __name__ == "__main__":
    print(layers_table())  # noqa: T201
