"""The names of the service's table and of its columns, as SQL has them: in quotes if need be."""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = r'\s*(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)\s*'


class TableNames(NamedTuple):
    """The table and its columns. They are put into SQL as they are, so they come from the user."""

    table: str = "readings"
    ts: str = "ts"
    device_id: str = "device_id"
    metric: str = "metric"
    value: str = "value"

    @property
    def columns(self) -> str:
        """The columns as SQL lists them."""
        return ", ".join(self[1:])


def table_name(text: str) -> str:
    """Return `text` if it names one table, such as `readings` or `plant."My table"`.

    Raises ValueError.
    """
    if not re.fullmatch(rf"{_NAME}(\.{_NAME})?", text):
        raise ValueError(f"{text!r} is not the name of a table in SQL")
    return text


def column_names(text: str) -> tuple[str, str, str, str]:
    """Read `TS,DEVICE,METRIC,VALUE`. Raises ValueError."""
    found = re.fullmatch(",".join([f"({_NAME})"] * 4), text)
    if found is None:
        raise ValueError(f"{text!r} is not four names of columns in SQL: TS,DEVICE,METRIC,VALUE")
    ts, device_id, metric, value = (each.strip() for each in found.groups())
    return ts, device_id, metric, value
