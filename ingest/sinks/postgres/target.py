"""The table that we write to: its name and those of its four columns, as SQL needs them.

A name is the one in PostgreSQL's catalog: capitals, spaces and quotes belong to it.
Promises: what it returns for SQL names exactly this table and these columns, on each server.
Does not: ask the server whether they exist.
"""

from __future__ import annotations

from typing import NamedTuple

TABLE = "readings"
KEY = ("ts", "device_id", "metric", "value")  # the default names, and those of our own SQL
KEY_LIST = ", ".join(KEY)
NAME_BYTES_MAX = 63  # of a name in PostgreSQL, which cuts longer ones silently

# Every other name is in quotes: the words that a later server reserves are not known.
_DEVICE_INDEX = "_device_idx"
_BARE = frozenset({"public", TABLE, TABLE + _DEVICE_INDEX, *KEY})


def quoted(name: str) -> str:
    """Return a name as SQL has it: in quotes, unless it is one of our own."""
    return name if name in _BARE else '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL has it, whatever `standard_conforming_strings` is."""
    doubled = text.replace("'", "''")
    return "E'" + doubled.replace("\\", "\\\\") + "'" if "\\" in text else f"'{doubled}'"


def shortened(name: str, suffix: str) -> str:
    """Return `name` and `suffix` as one name; the first is cut if both together are too long."""
    kept = name.encode()[: NAME_BYTES_MAX - len(suffix.encode())]
    return kept.decode(errors="ignore") + suffix


class TargetTable(NamedTuple):
    """A table and its four columns, all without quotes.

    An empty `schema`: the first one of the search_path that has the table.
    """

    schema: str = ""
    table: str = TABLE
    ts: str = "ts"
    device_id: str = "device_id"
    metric: str = "metric"
    value: str = "value"

    @property
    def name(self) -> str:
        """The table as SQL names it, with its schema if that is known."""
        table = quoted(self.table)
        return f"{quoted(self.schema)}.{table}" if self.schema else table

    @property
    def columns(self) -> tuple[str, str, str, str]:
        """The names of the columns, in the order of KEY."""
        return self.ts, self.device_id, self.metric, self.value

    @property
    def column_list(self) -> str:
        """The columns as SQL lists them, in the order of KEY."""
        return ", ".join(map(quoted, self.columns))

    @property
    def in_sql(self) -> tuple[str, ...]:
        """The table and its columns as SQL names them."""
        return self.name, *map(quoted, self.columns)

    @property
    def source(self) -> str:
        """What stands in FROM if a question has the names of KEY; it needs an alias."""
        if self.columns == KEY:
            return self.name
        pairs = zip(self.columns, KEY, strict=True)
        return f"(select {', '.join(f'{quoted(a)} as {b}' for a, b in pairs)} from {self.name})"  # noqa: S608

    @property
    def device_index(self) -> str:
        """The name of the index for devices, without its schema."""
        return shortened(self.table, _DEVICE_INDEX)


READINGS = TargetTable()
