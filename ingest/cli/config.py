"""`ingest config`: prints all settings with their origins, one value for a script, example files.

Passwords are masked, except when one value is printed by its name.
"""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from typing import Any

from ingest.cli.parser import AllSettings, Command, Ending, OneOf, flag
from ingest.config.loading import Loaded
from ingest.config.named_files import state_dir
from ingest.config.settings import (
    SECRETS,
    Settings,
    bounds_text,
    env_example,
    groups,
    plain,
    toml_example,
)
from ingest.config.values import mask_url, nearest, shown
from ingest.model.errors import ConfigError, StartError


def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    if args.toml:
        print(toml_example(), end="")
    elif args.env:
        print(env_example(), end="")
    elif args.only:
        print(_one_value(args.only, loaded.settings))
    else:
        Ending(as_json(loaded), table(loaded)).print(as_json=args.json)
    return 0


def _one_value(name: str, settings: Settings) -> str:
    known = [each.name for each in fields(Settings)]
    if name not in known:
        raise ConfigError(f"there is no setting {name!r}{nearest(name, known)}")
    value = getattr(settings, name)
    if name == "state_dir":
        return str(state_dir(settings))
    if name == "database_url":
        from ingest.cli.context import known_url  # noqa: PLC0415

        value = known_url(settings)
        if value is None:
            raise StartError(
                "no database_url is set and no service runs on the state folder "
                f"{state_dir(settings)}; start one with `ingest serve`, or set INGEST_DATABASE_URL"
            )
    if name == "admin_token" and not value:
        from ingest.cli.context import service_of  # noqa: PLC0415

        value = service_of(settings).token
    return plain(value)


def as_json(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return value and origin of every setting, by name. Passwords are masked."""
    settings = loaded.settings
    values = {each.name: getattr(settings, each.name) for each in fields(Settings)}
    values |= {name: "***" for name in SECRETS if values[name]}
    values["database_url"] = mask_url(settings.database_url) if settings.database_url else ""
    values["state_dir"] = str(state_dir(settings))
    return {
        name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()
    }


def table(loaded: Loaded) -> str:
    """Return all settings as aligned text, in their groups."""
    rows = {
        each.name: (each.name, _value_text(each, loaded.settings), loaded.origins[each.name])
        for each in fields(Settings)
    }
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]

    def line(declared: Field[Any]) -> str:
        cells = zip(rows[declared.name], widths, strict=True)
        padded = "  ".join(text.ljust(width) for text, width in cells)
        return f"  {padded}  {bounds_text(declared)}".rstrip()

    return "\n\n".join("\n".join([title, *map(line, members)]) for title, members in groups())


def _value_text(declared: Field[Any], settings: Settings) -> str:
    value = getattr(settings, declared.name)
    if declared.name == "state_dir":
        return str(state_dir(settings))
    if declared.name == "database_url":
        return mask_url(value) if value else "the embedded one"
    if declared.name in SECRETS:
        return "***" if value else "empty"
    return shown(declared.name, value) or "empty"


COMMAND = Command(
    examples=("ingest config --print listen", "ingest config --toml"),
    run=_run,
    flags=(
        OneOf(
            (
                flag(
                    "--print",
                    metavar="NAME",
                    dest="only",
                    help="only this value; database_url and admin_token: as configured, else that "
                    "of the running service",
                ),
                flag("--toml", action="store_true", help="an example of a TOML file"),
                flag(
                    "--env",
                    action="store_true",
                    help="an example of a file with environment variables",
                ),
                flag("--json", action="store_true", help="every setting with its origin, as JSON"),
            ),
            title="what to print",
        ),
    ),
    settings=AllSettings(),
)
