"""The file of declared tables: which values of one device and time share a row of their own table.

An entry `[[table]]` names metrics, or fields of a measurement, and the time from which they go
there. Several entries of one name are one table: so it gets more columns from a later time on.
PRESETS have the fields of well-known plugins.
Promises: a wrong entry raises ConfigError with path, number, name, key, and what to write instead.
No metric has two tables.
Does not: ask a database whether the table is there, and fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ingest.config.named_files import take_entries
from ingest.config.settings import Settings
from ingest.config.values import check_name, full_path, moment_us, nearest
from ingest.model.errors import ConfigError, KeyFault
from ingest.model.moments import COLUMNS_MAX, reading_bytes_max
from ingest.model.reading import name_fault
from ingest.model.tables import ALL_READINGS, NO_TABLES, ColumnTable, Tables, stem_of

KEYS = ("name", "preset", "metrics", "measurement", "fields", "since")
OURS = "ingest_"  # what is kept beside the table of readings begins so
# The key of each table, and the names that each table of PostgreSQL has already.
RESERVED_COLUMNS = (
    *("ts", "device_id", "series"),
    *("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"),
)
_NO_TAGS = re.compile(r"(?:[^\\,]|\\.)+", re.DOTALL)
# What these plugins send from Linux, read in their source; texts are not stored. `net` has the
# fields of interfaces only: those of protocols have no fixed number, and are due to go.
_TELEGRAF = {
    "cpu": "usage_user usage_system usage_idle usage_nice usage_iowait usage_irq usage_softirq "
    "usage_steal usage_guest usage_guest_nice usage_active",
    "mem": "active available available_percent buffered cached commit_limit committed_as dirty "
    "free high_free high_total huge_page_size huge_pages_free huge_pages_total inactive low_free "
    "low_total mapped page_tables shared slab sreclaimable sunreclaim swap_cached swap_free "
    "swap_total total used used_percent vmalloc_chunk vmalloc_total vmalloc_used write_back "
    "write_back_tmp",
    "disk": "total free used used_percent inodes_total inodes_free inodes_used inodes_used_percent",
    "diskio": "reads writes read_bytes write_bytes read_time write_time io_time weighted_io_time "
    "iops_in_progress merged_reads merged_writes io_await io_svctm io_util",
    "net": "bytes_sent bytes_recv packets_sent packets_recv err_in err_out drop_in drop_out speed",
    "system": "load1 load5 load15 n_users n_unique_users n_cpus n_physical_cpus uptime",
    "processes": "running sleeping blocked stopped zombies idle dead paging parked unknown total "
    "total_threads",
}
PRESETS: dict[str, dict[str, Any]] = {
    f"telegraf_{name}": {"name": name, "measurement": name, "fields": fields.split()}
    for name, fields in _TELEGRAF.items()
}


def make_tables(settings: Settings) -> Tables:
    """Return the declared tables. Raises ConfigError."""
    if not settings.tables_file:
        return NO_TABLES
    tables = tuple(declared_tables(settings.tables_file, settings.table_name))
    for table in tables:
        _check_fits(table, settings)
    return Tables(tables)


def _check_fits(table: ColumnTable, settings: Settings) -> None:
    """Check that each post fits into the buffer, and into half of a journal: see loading.py."""
    reading_bytes, rows_max = reading_bytes_max(table), settings.post_rows_max
    for buffer, share in (("buffer_bytes_max", 1), ("journal_bytes_max", 2)):
        if rows_max * reading_bytes > getattr(settings, buffer) // share:
            raise ConfigError(
                f"{full_path(settings.tables_file)}, table {table.name!r}: a reading takes up to "
                f"{reading_bytes:,} bytes, so post_rows_max ({rows_max:,}) does not fit into "
                f"{buffer} ({getattr(settings, buffer):,})"
                + (", of which a post may use half" if share > 1 else "")
            )


def declared_tables(named: str, readings: str) -> Iterable[ColumnTable]:
    """Return the tables of a file; `readings` is the name of the table of readings.

    Raises ConfigError.
    """
    tables: dict[str, ColumnTable] = {}
    owners: dict[str, str] = {}  # the table of each metric

    def take(entry: dict[str, Any]) -> None:
        table = _compiled(entry)
        if table.name == readings or is_ours(table.name):
            raise KeyFault("name", f"{table.name!r} is taken; choose another one")
        _claim(table, owners)
        tables[table.name] = _joined(tables.get(table.name), table)

    take_entries(named, "table", KEYS, take)
    return tables.values()


def is_ours(name: str) -> bool:
    """Whether a name is that of something which is kept beside the table of readings."""
    return name == ALL_READINGS or name.startswith(OURS)


def _compiled(entry: Mapping[str, Any]) -> ColumnTable:
    """Return the table of one entry."""
    for key in entry:
        if key not in KEYS:
            raise KeyFault(key, f"there is no such key; there are {', '.join(KEYS)}")
    preset = entry.get("preset", "")
    if not isinstance(preset, str) or (preset and preset not in PRESETS):
        near = nearest(str(preset), PRESETS)
        raise KeyFault("preset", f"there is no {preset!r}; there are {', '.join(PRESETS)}{near}")
    keys = {**PRESETS.get(preset, {}), **entry}
    if "metrics" in keys and ("measurement" in keys or "fields" in keys):
        raise KeyFault("metrics", "write either `metrics`, or `measurement` and `fields`")
    of_lines = "fields" in keys or "measurement" in keys
    measurement = _text(keys, "measurement") if of_lines else ""
    if of_lines and not _NO_TAGS.fullmatch(measurement):
        raise KeyFault("measurement", r"write a comma as `\,` and a backslash as `\\`")
    columns = _columns(keys, "fields" if of_lines else "metrics", measurement)
    return ColumnTable(_name(keys), measurement, columns, (_since_us(keys),) * len(columns))


def _text(keys: Mapping[str, Any], key: str) -> str:
    text = keys.get(key)
    if not isinstance(text, str) or not text:
        raise KeyFault(key, "write a text that is not empty")
    return text


def _name(keys: Mapping[str, Any]) -> str:
    name = _text(keys, "name")
    try:
        check_name(name)
    except ValueError as error:
        raise KeyFault("name", f"{name!r:.80} {error}") from None
    return name


def _columns(keys: Mapping[str, Any], key: str, measurement: str) -> tuple[str, ...]:
    """Return the columns of an entry: names of PostgreSQL, each of a metric that can be posted."""
    columns = keys.get(key)
    if not isinstance(columns, list) or not columns:
        raise KeyFault(key, 'write a list of names, as in ["temperature", "humidity"]')
    for each in columns:
        if not isinstance(each, str):
            raise KeyFault(key, f"{each!r:.80} is not a text")
        if fault := column_fault(each, measurement):
            raise KeyFault(key, fault)
    return tuple(columns)


def column_fault(column: str, measurement: str) -> str:
    """Return why a metric or field cannot be a column, or an empty string."""
    if column in RESERVED_COLUMNS:
        return f"each table has a column {column!r} of its own; leave it out"
    try:
        check_name(column)
    except ValueError as error:
        return f"{column!r:.80} {error}"
    if not _NO_TAGS.fullmatch(column):
        return f"{column!r} has a comma: behind it are tags, which are no column"
    fault = name_fault(stem_of(measurement, column))
    return f"the metric of {column!r} {fault[1]}" if fault else ""


def _since_us(keys: Mapping[str, Any]) -> int:
    """Return the time from which on the columns take readings."""
    if "since" not in keys:
        raise KeyFault(
            "since",
            "it is missing: the time from which on these columns are used, such as "
            "2026-12-01T00:00:00Z. Readings before it stay in the table of readings",
        )
    try:
        return moment_us(str(keys["since"]))
    except ValueError:
        raise KeyFault(
            "since",
            f"{str(keys['since'])!r:.80} is no time with a zone: write it as in "
            "2026-12-01T00:00:00Z, with the Z",
        ) from None


def _claim(table: ColumnTable, owners: dict[str, str]) -> None:
    """Make the table the only one that has the metrics of its columns."""
    key = "fields" if table.measurement else "metrics"
    for column in table.columns:
        metric = table.stem(column)
        if metric in owners:
            raise KeyFault(
                key,
                f"the metric {metric!r} has a column of {owners[metric]} already; "
                "leave it out here",
            )
        owners[metric] = table.name


def _joined(earlier: ColumnTable | None, table: ColumnTable) -> ColumnTable:
    """Return a table with the columns of an earlier entry, and these."""
    if earlier is None:
        joined = table
    elif earlier.measurement != table.measurement:
        of = f"the measurement {earlier.measurement}" if earlier.measurement else "metrics"
        raise KeyFault("name", f"an earlier entry of this table is of {of}")
    else:
        joined = earlier._replace(
            columns=earlier.columns + table.columns, since_us=earlier.since_us + table.since_us
        )
    if len(joined.columns) > COLUMNS_MAX:
        key = "fields" if table.measurement else "metrics"
        raise KeyFault(key, f"the table has more than {COLUMNS_MAX} columns")
    return joined
