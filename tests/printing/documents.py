"""Prints the generated tables of the documents, and writes them into files.

`python -m tests.printing.documents` prints all tables. `--write FILE..` rewrites parts of Markdown
files, from `<!-- generated: NAME -->` to `<!-- end -->`, and the example file of the environment.
`roles.conf` are the users of a nats-server. A test compares all of it with the code.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import Field
from functools import cache, partial
from pathlib import Path
from typing import Any

import ingest
from ingest.admin import exposition
from ingest.app import metrics_and_causes
from ingest.config.settings import bounds_text, default_text, env_example, groups
from ingest.config.values import unit
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.model.ledger import Metric
from ingest.mqtt import service as mqtt
from ingest.mqtt import tally as mqtt_tally
from ingest.roles.embedded_broker import ACCOUNT, rights
from ingest.roles.forward import forwarder as forward_tally
from ingest.roles.forward import service
from ingest.roles.nats.protocol import ROLES
from ingest.sinks.postgres import durability
from ingest.sinks.postgres.schema import TABLE
from ingest.system.files import REMOTE, VOLATILE
from ingest.system.log_events import EVENTS

RETRY = " after Retry-After"  # the page says it once, for all
LEVELS = ("debug", "info", "warning", "error", "critical")
_PACKAGE = Path(ingest.__file__).parent
_LOGGER = re.compile(r"(self\.)?_?log$|(\w+\.)?get_logger\(")
_REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# All metrics, by the label that each metric of these processes has.
METRICS: dict[str, Sequence[Metric[Any]]] = {
    "": [*exposition.OF_SHOWN, *metrics_and_causes.ALL],
    "forward": [*forward_tally.METRICS, *service.OF_NOW],
    "mqtt": [*mqtt_tally.METRICS, *mqtt.OF_NOW],
}


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def problems_table() -> str:
    """Return the table of problem codes: the answers to refused posts."""
    return _table(
        ["code", "status", "title", "the client should"],
        (
            [f"`{code}`", str(each.status), each.title, each.client_should.replace(RETRY, "")]
            for code, each in PROBLEMS.items()
        ),
    )


def item_codes_table() -> str:
    """Return the table of item codes: the faults of one item of a post."""
    return _table(["code", "meaning"], ([f"`{code}`", text] for code, text in ITEM_CODES.items()))


def metrics_table(label: str = "") -> str:
    """Return the table of the metrics of these processes, with their labels but `label`."""
    rows = list[list[str]]()
    for each in METRICS[label]:
        labels = ",".join(each.labels)
        name = f"`ingest_{each.name}{labels and f'{{{labels}}}'}`"
        is_histogram = each.kind == "histogram"
        rows.append([name, f"{each.meaning}{(is_histogram and ' Histogram.') or ''}"])
    return _table([f"metric, with the label `{label}`" if label else "metric", "meaning"], rows)


def log_calls(folder: Path = _PACKAGE) -> Iterator[tuple[str, str]]:
    """Yield event and level of each call that logs. Raises ValueError without an event."""
    for path in sorted(folder.rglob("*.py")):
        yield from _log_calls_in(path.name, path.read_text())


@cache  # several tables and tests need them
def _log_calls_in(name: str, text: str) -> list[tuple[str, str]]:
    found = list[tuple[str, str]]()
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in LEVELS or not _LOGGER.match(ast.unparse(node.func.value)):
            continue
        event = node.args[0]
        if not (isinstance(event, ast.Constant) and isinstance(event.value, str)):
            raise ValueError(f"{name}:{node.lineno}: an event is a constant text")
        found.append((event.value, node.func.attr))
    return found


def log_events_table() -> str:
    """Return the table of log events, by their levels in the code: the gravest first."""
    levels = dict[str, set[str]]()
    for event, level in log_calls():
        levels.setdefault(event, set()).add(level)
    groups = dict[tuple[int, ...], list[list[str]]]()
    for event, meaning in EVENTS.items():
        grave = tuple(sorted((LEVELS.index(each) for each in levels[event]), reverse=True))
        groups.setdefault(grave, []).append([f"`{event}`", meaning])
    rows = list[list[str]]()
    for grave in sorted(groups, reverse=True):
        rows += [[f"**{' or '.join(LEVELS[each] for each in grave)}**", ""], *groups[grave]]
    return _table(["event", "meaning"], rows)


def file_systems_table() -> str:
    """Return the table of file systems on which fsynced data is lost, or may be lost."""
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


def _allowed(each: Field[Any]) -> str:
    is_plain = isinstance(each.default, bool)
    return "" if is_plain else bounds_text(each).removesuffix(f" {unit(each.name)}")


def settings_table() -> str:
    """Return the table of all settings."""
    rows = list[tuple[str, ...]]()
    for title, members in groups():
        rows.append((f"**{title}**", "", "", ""))
        rows += [
            (f"`{each.name}`", default_text(each), _allowed(each), each.metadata["why"])
            for each in members
        ]
    return _table(("setting", "default", "allowed", "meaning"), rows)


def database_table() -> str:
    """Return the table of what refuses or warns at the database."""
    refuses = f"`serve` refuses to start, unless `{durability.OVERRIDE}`; `doctor` fails"
    unlogged = f"table `{TABLE}`, or a partition of it, is unlogged: {durability.UNLOGGED}"
    rows = [
        *(
            (f"`{name} = off`: {risk}", "the same" if number else refuses)
            for number, (name, risk) in enumerate(durability.OFF.items())
        ),
        (unlogged, "the same"),
        *(
            (
                f"`synchronous_commit = {value}` beside synchronous standbys: {risk}",
                "`doctor` warns",
            )
            for value, risk in durability.STANDBY_BEHIND.items()
        ),
        (
            "`synchronous_commit` = `on` or `remote_apply`; `local` or `remote_write` without "
            "synchronous standbys",
            "the service trusts it",
        ),
    ]
    return _table(("PostgreSQL, as the service's role sees it", "what happens"), rows)


def roles_text() -> str:
    """Return the users of your own servers, with `$GATEWAY_PASSWORD` and so on for passwords."""
    users = "\n".join(
        f"    {{ user: {role}, password: ${role.upper()}_PASSWORD, permissions: "
        f"{json.dumps(rights(role, may), indent=2)} }}".replace("\n", "\n      ")
        for role, may in ROLES.items()
    )
    return f"""# The users of iot-ingest, with permissions. tests.printing.documents writes this.
# passwords.conf beside it sets the variables: GATEWAY_PASSWORD: "..", and so on.
include "passwords.conf"
accounts {{
  {ACCOUNT} {{ jetstream: enabled, users: [
{users}
  ] }}
}}
"""


TABLES: dict[str, Callable[[], str]] = {
    "database-kept": database_table,
    "file-systems": file_systems_table,
    "settings": settings_table,
    "problems": problems_table,
    "item-codes": item_codes_table,
    "metrics": metrics_table,
    "forward-metrics": partial(metrics_table, "forward"),
    "mqtt-metrics": partial(metrics_table, "mqtt"),
    "log-events": log_events_table,
}


def refreshed(text: str) -> str:
    """Return a Markdown text in which every generated part is replaced.

    Raises ValueError for a part with an unknown name.
    """

    def region(match: re.Match[str]) -> str:
        table = TABLES.get(match[2])
        if table is None:
            raise ValueError(f"no table is called {match[2]}: {', '.join(TABLES)}")
        return f"{match[1]}\n{table()}\n\n{match[3]}"

    return _REGION.sub(region, text)


def write(paths: Iterable[Path]) -> None:
    """Rewrite the generated parts of Markdown files, and all other files as a whole."""
    for path in paths:
        if path.name.endswith(".env.example"):
            path.write_text(env_example())
        elif path.name == "roles.conf":
            path.write_text(roles_text())
        else:
            path.write_text(refreshed(path.read_text()))


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables, or rewrite the files after --write."""
    parser = argparse.ArgumentParser(prog="python -m tests.printing.documents", allow_abbrev=False)
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
