"""`ingest tables`: lists the declared tables, and suggests some for the readings of the last hour.

A suggestion comes from what devices sent at one time: fields of the same measurement, and metrics
that come with each other. What comes with a declared table becomes more columns of it. What is
printed is a file of tables; all else is its comments.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from textwrap import TextWrapper
from typing import Any, NamedTuple

from ingest.app.database import make_target, timeouts
from ingest.cli.context import database
from ingest.cli.dlq.show import size
from ingest.cli.parser import JSON, Command, Ending
from ingest.config.declared_tables import PRESETS, column_fault, is_ours, make_tables
from ingest.config.loading import Loaded
from ingest.model.moments import COLUMNS_MAX, form_of_table
from ingest.model.tables import ALL_READINGS, VALUE, ColumnTable, Tables, measurement_of
from ingest.sinks.postgres.column_tables import add_statement, create_statement
from ingest.sinks.postgres.connection import as_start_error, connected
from ingest.sinks.postgres.lookup import metrics_together
from ingest.sinks.postgres.schema import ColumnTarget, TargetTable
from ingest.system.clock import rfc3339, unix_us
from ingest.system.words import duration

SUGGESTED_MAX = 20
VALUES_MIN = 2.0  # of a row, on average: rows with one value cost more than those of readings
FEW = 1_000  # readings that tell little
BYTES_NARROW, BYTES_COLUMNS = (
    (140, 220),
    (17, 35),
)  # of a reading with its key, docs/run/database.md
PLAIN = "sensors"  # the name of a table of metrics
DECLARED = ","  # and a name: some metric of this declared table. No column begins so
C_ORDER = 'pg_catalog."C"'  # the collation of names in a table that we have made
_HOUR_US = 3_600_000_000
_SOON_US = _HOUR_US // 6  # to look at the file, and to restart

OneRow = tuple[frozenset[str], int]  # what came together, and how often it did
Seen = Sequence[OneRow]


class Suggestion(NamedTuple):
    """A table, and what it would take of the readings seen: so many, in so many rows."""

    table: ColumnTable
    readings: int
    rows: int


def suggestions(seen: Seen, known: Tables, readings: str, since_us: int) -> list[Suggestion]:
    """Return the tables that save most, those first; `seen` are whole metrics of a device and time.

    `known` are those that are declared: what they take is left out, and what comes with it becomes
    more columns of them. `readings` is the name of the table of readings.
    """
    declared = {each.name: each for each in known.all}
    groups, plain = defaultdict[str, list[OneRow]](list), list[OneRow]()
    measurements = {measurement_of(metric)[0] for metrics, _ in seen for metric in metrics}
    for metrics, moments in seen:
        rows = defaultdict[tuple[str, str], set[str]](set)
        for metric in metrics:
            measurement, column, series = measurement_of(metric)
            if metric in measurements:
                measurement, column = metric, VALUE
            if home := known.home(metric):
                rows[home.table.measurement, home.series].add(f"{DECLARED}{home.table.name}")
            elif not column_fault(column, measurement):
                rows[measurement, series].add(column)
        for (measurement, _), columns in rows.items():
            (groups[measurement] if measurement else plain).append((frozenset(columns), moments))
    candidates = [
        _suggestion(measurement, group, since_us, declared)
        for measurement, group in [
            *groups.items(),
            *(("", group) for group in _come_together(plain)),
        ]
    ]
    found = [
        each
        for each in candidates
        if each.readings >= (1 if each.table.name else VALUES_MIN) * each.rows > 0
    ]
    found.sort(key=lambda each: (each.rows - each.readings, each.table.columns))
    return _named(found[:SUGGESTED_MAX], {readings, *declared})


def _suggestion(
    measurement: str, group: Seen, since_us: int, declared: Mapping[str, ColumnTable]
) -> Suggestion:
    """Return a table of the most frequent columns of a group.

    It has a name if it is declared: then these are more columns of it.
    """
    counts = Counter[str]()
    for columns, moments in group:
        counts.update(dict.fromkeys(columns, moments))
    names = sorted(counts, key=lambda each: (-counts[each], each))
    name = next((each[1:] for each in names if each.startswith(DECLARED)), "")
    room = COLUMNS_MAX - (len(declared[name].columns) if name else 0)
    chosen = tuple([each for each in names if not each.startswith(DECLARED)][:room])
    rows = sum(moments for columns, moments in group if not columns.isdisjoint(chosen))
    if not name:
        chosen = _preset_columns(measurement, chosen)
    table = ColumnTable(name, measurement, chosen, (since_us,) * len(chosen))
    return Suggestion(table, sum(counts[column] for column in chosen), rows)


def _preset_columns(measurement: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of the preset that has these, and at most as many more; or these."""
    fields = tuple(PRESETS.get(f"telegraf_{measurement}", {"fields": ()})["fields"])
    return fields if len(fields) <= 2 * len(columns) and {*columns} <= {*fields} else columns


def _come_together(plain: Seen) -> list[Seen]:
    """Return the groups of plain metrics: each metric with the most frequent one it comes with."""
    counts, beside = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for metrics, moments in plain:
        counts.update(dict.fromkeys(metrics, moments))
    for metrics, moments in plain:
        first = max(metrics, key=lambda each: (counts[each], each))
        for metric in metrics:
            beside[metric][first] += moments
    root: dict[str, str] = {}
    for metric in sorted(counts, key=lambda each: (counts[each], each), reverse=True):
        first, moments = beside[metric].most_common(1)[0]
        root[metric] = root.get(first, first) if 2 * moments >= counts[metric] else metric
    groups = defaultdict[str, list[OneRow]](list)
    for metrics, moments in plain:
        parts = defaultdict[str, set[str]](set)
        for metric in metrics:
            parts[root[metric]].add(metric)
        for group, part in parts.items():
            groups[group].append((frozenset(part), moments))
    return list(groups.values())


def _named(found: Sequence[Suggestion], taken: set[str]) -> list[Suggestion]:
    """Give each table a name that is easy to type, and that no other one has."""
    named = []
    for each in found:
        if each.table.name:
            named.append(each)
            continue
        stem = re.sub(r"[^a-z0-9_]+", "_", each.table.measurement.lower())[:50].strip("_") or PLAIN
        if is_ours(stem) or stem[0].isdigit():
            stem = f"t_{stem}"
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        named.append(each._replace(table=each.table._replace(name=name)))
    return named


def file_text(found: Iterable[Suggestion]) -> str:
    """Return the file of tables. A text of JSON is one of TOML."""
    lines = []
    for table, readings, rows in found:
        lines += ["[[table]]", f"name = {json.dumps(table.name)}"]
        preset = f"telegraf_{table.measurement}"
        if preset in PRESETS and [*table.columns] == PRESETS[preset]["fields"]:
            lines.append(f"preset = {json.dumps(preset)}")
        else:
            if table.measurement:
                lines.append(f"measurement = {json.dumps(table.measurement, ensure_ascii=False)}")
            columns = ",\n".join(
                f"    {json.dumps(each, ensure_ascii=False)}" for each in table.columns
            )
            lines.append(f"{'fields' if table.measurement else 'metrics'} = [\n{columns},\n]")
        lines.append(f"since = {rfc3339(table.since_us[0])}")
        lines.append(f"# {readings:,} readings in {rows:,} rows\n")
    return "\n".join(lines)


async def _suggest(_args: argparse.Namespace, loaded: Loaded) -> Ending:
    """Print a file of tables; the exit code is 1 if there is nothing to suggest."""
    settings = loaded.settings
    known, target = make_tables(settings), make_target(settings)
    async with database(settings) as url, connected(url, timeouts(settings)) as connection:
        with as_start_error(url):
            view = TargetTable(settings.table_schema, ALL_READINGS)
            if known and await connection.fetchval("select to_regclass($1) is not null", view.name):
                target = view
            rows = await metrics_together(connection, target)
    seen = [(frozenset(row["metrics"]), row["moments"]) for row in rows]
    total = sum(len(metrics) * moments for metrics, moments in seen)
    since_us = -(-(unix_us() + _SOON_US) // _HOUR_US) * _HOUR_US
    found = suggestions(seen, known, settings.table_name, since_us)
    span = duration(max((row["age_s"] for row in rows), default=0))
    said = _words(found, total, f"{total:,} readings of the last {span}")
    schema, by_time = settings.table_schema, settings.partition_span != "none"
    declared = {each.name for each in known.all}
    targets = [ColumnTarget(schema, form_of_table(each.table)) for each in found]
    statements = [
        add_statement(each.name, each.form.columns)
        if each.table in declared
        else create_statement(each, 2 * [C_ORDER], by_time=by_time)
        for each in targets
    ]
    sql = [f"{each};" for each in statements]
    document = {
        "readings": total,
        "tables": [
            {**_described(table), "readings": readings, "rows": rows}
            for table, readings, rows in found
        ],
        "sql": sql,
        "said": said,
    }
    wrapped = TextWrapper(98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    made = ["The service does this at its start, or `ingest schema apply`:", *sql]
    text = "\n".join(
        [*map(wrapped.fill, said), "", file_text(found), *map(wrapped.fill, made if found else [])]
    )
    return Ending(document, text.strip(), 0 if found else 1)


def _words(found: Sequence[Suggestion], total: int, seen: str) -> list[str]:
    """Return what a person should know of the suggestion, in sentences."""
    if not total:
        return [
            "There is no reading of the last hour in the table, so nothing can be suggested. "
            "Let your devices post for some minutes, then repeat this."
        ]
    few = ["These are few readings: repeat this when more have come."] if total < FEW else []
    if not found:
        return [f"In {seen} few values of a device have one time: no table would help.", *few]
    taken, rows = sum(each.readings for each in found), sum(each.rows for each in found)
    narrow, columns = (
        f"{size(taken * least)} to {size(taken * most)}"
        for least, most in (BYTES_NARROW, BYTES_COLUMNS)
    )
    return [
        f"Of {seen}, {taken:,} would be {rows:,} rows in the tables below, not {taken:,} rows.",
        f"An estimate: they need {narrow} now, with the key, and would need {columns}.",
        *few,
        "Append this to your file of tables, choose names for new tables, and start all processes "
        "again with --tables-file FILE before the time in `since`. Until then the tables stay "
        "empty. Older readings stay where they are.",
    ]


def _list(_args: argparse.Namespace, loaded: Loaded) -> Ending:
    file, lines = loaded.settings.tables_file, list[str]()
    found = [_described(each) for each in make_tables(loaded.settings).all]
    for table in found:
        of = f"measurement {table['measurement']}" if table["measurement"] else "metrics"
        lines += [f"{table['name']}  ({of})"]
        lines += [f"  {column:<24} since {since}" for column, since in table["columns"].items()]
    if not found:
        lines = [f"{file} has no tables" if file else "there are no tables: tables_file is empty"]
    presets = {name: preset["fields"] for name, preset in PRESETS.items()}
    lines += ["", "presets:", *(f"  {name}: {', '.join(presets[name])}" for name in presets)]
    return Ending({"tables": found, "presets": presets}, "\n".join(lines))


def _described(table: ColumnTable) -> dict[str, Any]:
    columns = dict(zip(table.columns, map(rfc3339, table.since_us), strict=True))
    return {"name": table.name, "measurement": table.measurement, "columns": columns}


COMMAND = Command(
    examples=("ingest tables suggest", "ingest tables list --tables-file tables.toml"),
    usage="COMMAND [options]",
    commands={
        "list": Command(
            "print the declared tables with their columns, and the presets",
            ("ingest tables list --tables-file tables.toml", "ingest tables list --json"),
            _list,
            flags=(JSON,),
        ),
        "suggest": Command(
            "print a file of tables for the readings of the last hour, and what it would save",
            ("ingest tables suggest", "ingest tables suggest > suggested.toml"),
            _suggest,
            flags=(JSON,),
        ),
    },
)
