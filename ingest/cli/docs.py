"""Print the tables that documents show: settings, problems, item codes, metrics; refresh files.

`python -m ingest.cli.docs` prints all; `--write FILE..` rewrites what stands in a Markdown file
between `<!-- generated: NAME -->` and `<!-- end -->`, and the example file of the environment.
A test compares, so a document cannot drift from the code.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ingest.admin.exposition import Exposition
from ingest.config.text import env_example, markdown_table
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.ports import BufferStats
from ingest.sinks.postgres import durability
from ingest.system.filesystem import REMOTE, VOLATILE

_REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def problems_table() -> str:
    """Return the table of problem codes: the answers to refused posts."""
    lines = ["| code | status | title | the client should |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{code}` | {each.status} | {each.title} | {each.client_should} |"
        for code, each in PROBLEMS.items()
    ]
    return "\n".join(lines)


def item_codes_table() -> str:
    """Return the table of item codes: what is wrong with one item of a post."""
    lines = ["| code | meaning |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{code}` | {text} |" for code, text in ITEM_CODES.items()])


def metrics_table() -> str:
    """Return the table of our metrics, from the collector itself."""
    empty = BufferStats(0, 0, 0, 0, 0, 0, 0, None)
    ledger = Ledger()
    ledger.gauges = Gauges(
        buffer=lambda: empty,
        dead_letters=DeadLetterStats,
        database_up=lambda: True,
        hold_reason=lambda: None,
    )
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for family in Exposition(ledger, "").registry.collect():
        if not family.name.startswith("ingest_"):
            continue
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(f"`{each}`" for each in getattr(family, "_labelnames", ()))
        lines.append(
            f"| `{family.name}{suffix}` | {family.type} | {labels} | {family.documentation} |"
        )
    return "\n".join(lines)


def file_systems_table() -> str:
    """Return the table of file systems that cannot keep, or may not keep, what was fsynced."""
    volatile, remote = (
        ", ".join(f"`{each}`" for each in sorted(kinds)) for kinds in (VOLATILE, REMOTE)
    )
    return (
        "| file system | what happens with `durable` on it |\n| --- | --- |\n"
        f"| {volatile}, and an `overlay` on one of them | `serve` refuses to start, unless "
        "`--journal-unsafe true`; `doctor` fails |\n"
        f"| {remote} | a warning: locks and fsync may not work |\n"
        "| any other | the service trusts it |"
    )


TABLES = {
    "database-kept": durability.table,
    "file-systems": file_systems_table,
    "settings": markdown_table,
    "problems": problems_table,
    "item-codes": item_codes_table,
    "metrics": metrics_table,
}


def refreshed(text: str) -> str:
    """Return a Markdown text with every generated region printed anew.

    Raises ValueError for a region of an unknown name.
    """

    def region(match: re.Match[str]) -> str:
        table = TABLES.get(match[2])
        if table is None:
            raise ValueError(f"no table is called {match[2]}: {', '.join(TABLES)}")
        return f"{match[1]}\n{table()}\n\n{match[3]}"

    return _REGION.sub(region, text)


def write(paths: Iterable[Path]) -> None:
    """Refresh files in place: Markdown by its regions, `.env.example` as a whole."""
    for path in paths:
        if path.name.endswith(".env.example"):
            path.write_text(env_example())
        else:
            path.write_text(refreshed(path.read_text()))


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables, or refresh the files named after --write."""
    parser = argparse.ArgumentParser(prog="python -m ingest.cli.docs", allow_abbrev=False)
    parser.add_argument("--write", nargs="+", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.write:
        write(args.write)
        return 0
    for name, table in TABLES.items():
        print(f"<!-- generated: {name} -->\n\n{table()}\n\n<!-- end -->\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
