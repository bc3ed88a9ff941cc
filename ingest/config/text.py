"""The settings as text: bounds, help, two example files.

All of it is printed from the declarations in settings.py, so nothing is written twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from typing import Any

from ingest.config.settings import Settings
from ingest.config.table_settings import TableSettings
from ingest.config.values import env_name, shown, unit


def groups() -> Iterator[tuple[str, list[Field[Any]]]]:
    """Yield (title, settings) in the order of their declaration, those of TableSettings last."""
    title, members = "", list[Field[Any]]()
    last = {each.name for each in fields(TableSettings)}
    for each in sorted(fields(Settings), key=lambda each: each.name in last):
        if each.metadata["opens"]:
            if members:
                yield title, members
            title, members = each.metadata["opens"], []
        members.append(each)
    yield title, members


def default_text(declared: Field[Any]) -> str:
    """Return a default for people: `64 MiB`, or `empty`."""
    return shown(declared.name, declared.default) or "empty"


def bounds_text(declared: Field[Any]) -> str:
    """Return the allowed values: `1 KiB to 64 MiB`, `copy, insert`, `true, false`, or nothing."""
    if declared.metadata["one_of"]:
        return ", ".join(declared.metadata["one_of"])
    if isinstance(declared.default, bool):
        return "true, false"
    if declared.metadata["within"] is None:
        return ""
    word = unit(declared.name)
    least, most = (shown(declared.name, each) for each in declared.metadata["within"])
    if word != "bytes" or least == "0 bytes":
        least = least.removesuffix(word).strip()
    return f"{least} to {most}"


def metavar(declared: Field[Any]) -> str:
    """Return the placeholder of a value in --help."""
    if declared.metadata["one_of"] or isinstance(declared.default, bool):
        return bounds_text(declared).replace(", ", "|")
    words = {"bytes": "BYTES", "rows": "ROWS", "s": "SECONDS", "days": "DAYS", "rows/s": "ROWS"}
    return words.get(unit(declared.name), "TEXT" if isinstance(declared.default, str) else "N")


def help_text(declared: Field[Any], why: str = "") -> str:
    """Return one line for --help: the meaning (or `why`), the default, the bounds."""
    limits = "" if declared.metadata["within"] is None else bounds_text(declared)
    bounds = f"[{default_text(declared)}{'; ' + limits if limits else ''}]"
    return f"{why or declared.metadata['why']} {bounds}"


def env_example() -> str:
    """Return a file of environment variables with every default, commented out."""
    head = (
        "# Settings of iot-ingest as environment variables; each line shows its default.\n"
        "# Sizes may be written as 64MiB. Printed by `ingest config --env`.\n"
    )
    return head + _example(lambda each: f"#{env_name(each.name)}={plain(each.default)}")


def toml_example() -> str:
    """Return a TOML file with every default, commented out."""
    head = (
        "# Settings of iot-ingest, for `--config FILE` or INGEST_CONFIG; each line shows its\n"
        '# default. Sizes may be written as "64MiB". Printed by `ingest config --toml`.\n'
    )
    return head + _example(lambda each: f"#{each.name} = {json.dumps(each.default)}")


def _example(line: Callable[[Field[Any]], str]) -> str:
    text = ""
    for title, members in groups():
        text += f"\n# ---- {title}\n"
        for each in members:
            limits = bounds_text(each)
            text += f"\n# {each.metadata['why']}{'; ' + limits if limits else ''}\n{line(each)}\n"
    return text


def plain(value: Any) -> str:
    """Write a value as the environment and a script take it: `true`, `100000`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
