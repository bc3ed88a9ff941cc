"""The examples of deploy/ that run the housekeeping as a job of its own: what each runs.

Each gives a command (words after `python -P -m`) and settings as environment variables.
"""

from __future__ import annotations

import re
import shlex

from tests.support.deployment import (
    DEPLOY,
    compose_services,
    shown_in_head,
)

UNIT = DEPLOY / "systemd" / "ingest-housekeeping.service"


def unit_lines() -> list[tuple[str, str]]:
    """Return the keys and values of the unit."""
    lines = (each.partition("=") for each in UNIT.read_text().splitlines() if each[:1] != "#")
    return [(name, value) for name, mark, value in lines if mark]


def settings_of_systemd() -> dict[str, str]:
    """Return those of the unit, and of the file ingest.env as its head shows it."""
    given = [
        each for name, value in unit_lines() if name == "Environment" for each in value.split()
    ]
    given += [each[0] for each in shown_in_head(UNIT) if each and each[0].startswith("INGEST_")]
    return dict(each.split("=", 1) for each in given if each.startswith("INGEST_"))


def settings_of_compose() -> dict[str, str]:
    """Return those of the service in compose.yaml."""
    found: dict[str, str] = compose_services("compose.yaml")["housekeeping"]["environment"]
    return found


def commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the command and the settings of each example, by its name."""
    words = dict(unit_lines())["ExecStart"].replace(" $HOUSEKEEPING_FLAGS", "").split()
    (loop,) = compose_services("compose.yaml")["housekeeping"]["command"]
    (once,) = re.findall(r"do python -P -m (ingest [\w ]+); sleep", loop)
    assert words[1:3] == ["-P", "-m"], words
    return {
        "systemd": (words[3:], settings_of_systemd()),
        "compose": (shlex.split(once), settings_of_compose()),
    }
