"""The recorded requests in an app of aiohttp in place of `ingest serve`; the app is the one that
the benchmarks measure.

in_app.json lists the requests that it answers otherwise, by the reason: all are about HTTP itself.
Of one post nothing is kept: CLOSING.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.path.recorded.exchange import differences
from tests.path.recorded.service import Running
from tests.path.recorded.stage import STARTING
from tests.support import constants

REASONS: dict[str, list[str]] = json.loads(Path(__file__).with_name("in_app.json").read_text())
OTHERWISE = {name for names in REASONS.values() for name in names}
CLOSING = "connection: nothing behind close"
CLOSING_DEVICE = "d489"
OF_A_READING = ("received", "accepted", "committed")
Line = dict[str, Any]


class RunningApp(Running):
    """The app. Of the admin port it has /readyz and /metrics."""

    program = ("-m", "tests.path.recorded.app")


def asked_of_app(lines: list[Line]) -> list[Line]:
    """Return the requests to the data port, but for those where no pipeline can be entered."""
    return [line for line in lines if line["port"] == "data" and line["at"] != STARTING]


def differences_in_app(line: Line, got: list[Any], then: str) -> list[str]:
    """Return a sentence for each difference; the order of headers is aiohttp's, and `Server`."""
    recorded = [[status, *sorted(headers), body] for status, *headers, body in line["got"]]
    now = [
        [status, *sorted(each for each in headers if not each.startswith("Server: ")), body]
        for status, *headers, body in got
    ]
    return differences({**line, "got": recorded}, now, then)


def told_of_app(lines: list[Line], results: dict[str, tuple[list[Any], str]]) -> Iterator[str]:
    """Yield what is answered otherwise and not listed, and what is listed in vain."""
    for line in lines:
        found = differences_in_app(line, *results.get(line["name"], ([], "never sent")))
        if line["name"] not in OTHERWISE:
            yield from found
        elif not found:
            yield f"{line['name']}: is listed, and is answered as by the service"


def kept_in_app(kept: Line) -> Line:
    """Return what the app keeps, from what the service has kept."""
    expected = copy.deepcopy(kept)
    del expected["rows"][CLOSING_DEVICE]
    for name in OF_A_READING:
        expected["counters"][f"ingest_readings_{name}_total"] -= 1
    return expected


if __name__ == "__main__":
    with constants.wanted():
        from benchmarks.library import main

        main(sys.argv[1:])
